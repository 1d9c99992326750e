"""What a layer may import from outside FlowFabric. The order of the layers themselves is checked by import-linter."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.architecture.house import SRC, dotted, files, imported_modules, is_within, relative, tree

CONTRACT: Final = files(SRC / "contract", ".py")
RULES: Final = files(SRC / "rules", ".py")

PURE: Final = frozenset(
    {
        "__future__", "base64", "binascii", "bisect", "calendar", "collections", "copy", "dataclasses", "datetime",
        "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "hmac", "itertools", "json", "math",
        "operator", "re", "string", "struct", "types", "typing", "unicodedata", "zlib", "zoneinfo",
    }
)  # fmt: skip
"""The standard library's modules that a rule may use: they see neither the clock, chance, nor the outside."""

IMPURE_CALLS: Final = frozenset(
    {
        "open", "print", "input", "breakpoint", "exec", "eval", "__import__",
        "datetime.now", "datetime.utcnow", "datetime.today", "datetime.datetime.now", "datetime.datetime.utcnow",
        "datetime.datetime.today", "date.today", "datetime.date.today",
    }
)  # fmt: skip


@pytest.mark.parametrize("path", CONTRACT, ids=relative)
def test_contract_needs_only_the_standard_library_and_msgspec(path: Path) -> None:
    """The contract imports itself, the standard library and the record library, nothing else."""
    foreign = [
        f"{relative(path)}:{line}: {module}"
        for module, line in imported_modules(path)
        if not is_within(module, "flowfabric.contract")
        and not is_within(module, "msgspec")
        and module.split(".")[0] not in sys.stdlib_module_names
    ]
    assert not foreign, "\n".join(foreign)


@pytest.mark.parametrize("path", RULES, ids=relative)
def test_rules_import_only_the_contract_and_pure_modules(path: Path) -> None:
    """A rule sees the contract, other rules and pure modules: no clock, chance, logging or input and output.

    The record library is as pure as the records themselves.
    """
    foreign = [
        f"{relative(path)}:{line}: {module}"
        for module, line in imported_modules(path)
        if not is_within(module, "flowfabric.contract")
        and not is_within(module, "flowfabric.rules")
        and not is_within(module, "msgspec")
        and module.split(".")[0] not in PURE
    ]
    assert not foreign, "\n".join(foreign)


@pytest.mark.parametrize("path", RULES, ids=relative)
def test_rules_are_pure(path: Path) -> None:
    """A rule neither awaits nor calls anything that reads the clock or touches the outside."""
    asynchronous = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    found = [
        f"{relative(path)}:{node.lineno}: {ast.unparse(node).splitlines()[0]}"
        for node in ast.walk(tree(path))
        if isinstance(node, asynchronous)
        or (isinstance(node, ast.Call) and dotted(node.func) in IMPURE_CALLS)
        or isinstance(node, ast.Global)
    ]
    assert not found, "\n".join(found)
