"""The manifest: every declaration is whole and agrees with its command and replies."""

from __future__ import annotations

import inspect

import msgspec
import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    ExecutionNotFound,
    FenceRequired,
    InvalidInput,
    OutcomeUnknown,
    PartialFence,
    Refused,
)
from flowfabric.contract.operations import OPERATIONS, STORES, Kind, Operation, Repeatable

NAMED = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def test_every_method_of_a_store_is_declared() -> None:
    """No store has a public method that is not an operation."""
    for concept, store in STORES.items():
        methods = {
            name for name, _ in inspect.getmembers(store, inspect.isfunction) if not name.startswith("_")
        }
        assert {f"{concept}.{name}" for name in methods} == {
            name for name, operation in OPERATIONS.items() if operation.concept == concept
        }


@NAMED
def test_commands_are_strict_frozen_and_checkable(operation: Operation) -> None:
    """Every command is frozen, refuses unknown fields, takes fields by name only and can check itself."""
    config = operation.command.__struct_config__
    assert config.frozen and config.forbid_unknown_fields
    assert callable(getattr(operation.command, "check", None))
    assert all(reply.__struct_config__.frozen for reply in operation.replies)


@NAMED
def test_routes_bind_fields_of_the_command(operation: Operation) -> None:
    """Every name in a path is a field of the command, reads are GET, changes are not."""
    assert operation.routes
    for route in operation.routes:
        assert set(route.fields) <= set(operation.command.__struct_fields__)
        assert route.path.startswith("/v1/")
        assert (route.method == "GET") == (operation.kind is Kind.READ)


def test_routes_are_unique() -> None:
    """No two operations share a method and path, whatever the names of path fields."""
    seen: dict[tuple[str, str], str] = {}
    for name, operation in OPERATIONS.items():
        for route in operation.routes:
            shape = "/".join("{}" if part.startswith("{") else part for part in route.path.split("/"))
            assert (route.method, shape) not in seen, (name, seen.get((route.method, shape)))
            seen[route.method, shape] = name


@NAMED
def test_refusals_are_distinct_refusals(operation: Operation) -> None:
    """Refusals are listed once each, malformed input first, and none is a mere base class."""
    assert len(set(operation.refuses)) == len(operation.refuses)
    assert all(issubclass(kind, Refused) and kind is not Refused for kind in operation.refuses)
    assert operation.refuses[0] is InvalidInput
    assert not issubclass(OutcomeUnknown, operation.refuses)


@NAMED
def test_an_operation_on_an_execution_may_not_find_it(operation: Operation) -> None:
    """Whoever names an existing execution may be told that there is none."""
    fields = operation.command.__struct_fields__
    names_one = "execution_id" in fields and operation.name not in ("execution.create",)
    assert names_one == (ExecutionNotFound in operation.refuses)


@NAMED
def test_fences_are_declared(operation: Operation) -> None:
    """A command with a fence may be refused for part of one, and, cancel aside, for want of one up front."""
    fenced = "fence" in operation.command.__struct_fields__
    assert fenced == (PartialFence in operation.refuses)
    if fenced and operation.name != "execution.cancel":
        order = operation.refuses
        assert order.index(FenceRequired) < order.index(PartialFence) < order.index(ExecutionNotFound)


@NAMED
def test_long_waits_and_pages_have_their_fields(operation: Operation) -> None:
    """A long wait has `wait_ms`, a listing has a limit and tells where to go on."""
    fields = operation.command.__struct_fields__
    assert operation.long_wait == ("wait_ms" in fields)
    assert operation.paging == ("limit" in fields)
    if operation.paging:
        assert all("next_cursor" in reply.__struct_fields__ for reply in operation.replies)


@NAMED
def test_reads_are_repeatable(operation: Operation) -> None:
    """A read is repeatable because it is one; a change says what makes it so, or that nothing does."""
    assert (operation.repeatable is Repeatable.READ) == (operation.kind is Kind.READ)
    by = {Repeatable.FENCE: "fence", Repeatable.CLAIM_ID: "claim_id", Repeatable.SEQUENCE: "frames"}
    if operation.repeatable in by:
        assert by[operation.repeatable] in operation.command.__struct_fields__


@NAMED
def test_replies_can_be_told_apart(operation: Operation) -> None:
    """Several replies are tagged by `status`, each with its own word; a single one needs no tag."""
    tags = [reply.__struct_config__.tag for reply in operation.replies]
    if len(tags) > 1:
        assert None not in tags and len(set(tags)) == len(tags)
        assert {reply.__struct_config__.tag_field for reply in operation.replies} == {"status"}
    assert set(operation.statuses) <= set(operation.replies)


@NAMED
def test_bodies_are_bounded(operation: Operation) -> None:
    """Every operation has a bound on its body among the known ones."""
    assert operation.body_max in {
        limits.BODY_CONTROL_MAX,
        limits.BODY_APPEND_MAX,
        limits.BODY_SIGNAL_MAX,
        limits.BODY_PAYLOAD_MAX,
        limits.BODY_BATCH_MAX,
    }


@NAMED
def test_every_operation_says_what_it_does(operation: Operation) -> None:
    """Summary, command and replies have docstrings: the reference is made of them."""
    assert operation.summary.endswith(".")
    for struct in (operation.command, *operation.replies):
        assert struct.__doc__, struct
    assert issubclass(operation.command, msgspec.Struct)
