"""The grid is complete: every declared operation has its cell in every layer that exists.

The manifest `flowfabric.contract.operations.OPERATIONS` is the list. A backend takes part as soon as its package
exists. Layers that are derived from the manifest (server, client, metrics) have no cells of their own.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Final

import pytest

from tests.architecture.house import (
    BACKENDS,
    ROOT,
    SRC,
    TESTS,
    function_names,
    method_names,
    relative,
    tree,
)

if TYPE_CHECKING:
    from flowfabric.contract.operations import Operation

REFERENCE: Final = ROOT / "docs" / "reference" / "operations.md"

SHARED_RULE: Final = {
    # Each command of the batch is decided by itself.
    "execution.create_many": ("execution", "create"),
    # Each lease of the dead worker is expired by itself.
    "worker.mark_dead": ("lease", "mark_dead"),
}
"""Mutations decided by the rule of another concept or verb, with the reason."""


def _operations() -> dict[str, Operation]:
    if not (SRC / "contract" / "operations.py").is_file():
        return {}
    return dict(importlib.import_module("flowfabric.contract.operations").OPERATIONS)


OPERATIONS: Final = _operations()
MUTATIONS: Final = {name: op for name, op in OPERATIONS.items() if op.kind == "mutation"}
BACKEND_NAMES: Final = sorted(
    path.name
    for path in (BACKENDS.iterdir() if BACKENDS.is_dir() else ())
    if (path / "__init__.py").is_file()
)


@pytest.mark.parametrize("name", OPERATIONS)
def test_name_is_concept_and_verb(name: str) -> None:
    """An operation's name is its concept and its verb, and the manifest is keyed by it."""
    operation = OPERATIONS[name]
    assert operation.name == name == f"{operation.concept}.{operation.verb}"


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_backend_has_the_operation(name: str, backend: str) -> None:
    """The store class of the concept has the verb, in every backend."""
    operation = OPERATIONS[name]
    path = BACKENDS / backend / f"{operation.concept}.py"
    assert operation.verb in method_names(path), (
        f"{relative(path)}: no class with a method `{operation.verb}`"
    )


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_has_a_rule(name: str) -> None:
    """Every mutation is decided by a function of rules/<concept>.py, which may gather it from a module beside it."""
    operation = OPERATIONS[name]
    concept, wanted = SHARED_RULE.get(name, (operation.concept, operation.verb))
    rules = importlib.import_module(f"flowfabric.rules.{concept}")
    rule = getattr(rules, wanted, None)
    assert inspect.isfunction(rule), f"rules/{concept}.py: no function `{wanted}`"
    assert rule.__module__.startswith("flowfabric.rules."), (
        f"`{wanted}` is not a rule but {rule.__module__}'s"
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_has_a_conformance_test(name: str) -> None:
    """Every operation has a conformance file of its own with at least one test."""
    operation = OPERATIONS[name]
    path = TESTS / "conformance" / operation.concept / f"test_{operation.verb}.py"
    assert path.is_file(), f"{relative(path)} does not exist"
    tests = [
        found for found in function_names(tree(path).body) | method_names(path) if found.startswith("test_")
    ]
    assert tests, f"{relative(path)} holds no test"


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_documented(name: str) -> None:
    """Every operation has its entry in the reference."""
    assert REFERENCE.is_file(), f"{relative(REFERENCE)} does not exist: make docs"
    assert f"`{name}`" in REFERENCE.read_text(encoding="utf-8"), (
        f"{relative(REFERENCE)}: no `{name}`; make docs"
    )


def test_shared_rules_are_operations() -> None:
    """The list of operations without a rule of their own names only mutations that exist."""
    if OPERATIONS:
        assert set(SHARED_RULE) <= set(MUTATIONS)
