"""Commands with arbitrary field values: answered or refused with a declared code, and a refusal changes nothing."""

from __future__ import annotations

import asyncio
import types
import typing
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.contract.errors import Refused
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import Payload
from tests.conformance.conftest import FEW, FIRST, OTHER_STORES, emptied
from tests.conformance.world import OTHER_UUID, START_MS, World

WAITING: Final = ExecutionId("{fp:1}:00000000-0000-4000-8000-000000000001")
LEASED: Final = ExecutionId("{fp:2}:00000000-0000-4000-8000-000000000002")
ENDED: Final = ExecutionId("{fp:3}:00000000-0000-4000-8000-000000000003")

TEXTS: Final = (
    st.sampled_from([WAITING, LEASED, ENDED, "default", "w", "w-1", "k", "app.customer", "app.a=1"])
    | st.sampled_from(["", " ", "a b", "\x00", "\r\n", "{a}", "\ud800", "é", "%s' OR 1=1 --", "x" * 5_000])
    | st.sampled_from([OTHER_UUID, "0", "1-2", "0:1-2", "start", "end", "9" * 40, "-1", "\u0661"])
    | st.text(max_size=8)
)
NUMBERS: Final = st.sampled_from(
    [0, 1, 2, -1, 64, 1_000, 1_001, START_MS, 2**31, 2**53 - 1, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30]
)
WAITS: Final = st.sampled_from([0, 0, -1, 30_001, 2**63])
FLOATS: Final = st.floats()


def _values(hint: Any, field: str) -> st.SearchStrategy[Any]:
    """Draw any value of a type, however little sense it makes in its field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.NewType):
        return _values(hint.__supertype__, field)
    if origin is typing.Annotated:
        return _values(arguments[0], field)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([_values(part, field) for part in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        items = st.lists(_values(arguments[0], field), max_size=4)
        return (items | items.map(lambda found: found * 400)).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXTS, TEXTS, max_size=3)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXTS,
        int: WAITS if field == "wait_ms" else NUMBERS,
        float: FLOATS,
        bool: st.booleans(),
        bytes: st.binary(max_size=8) | st.just(b"x" * 70_000),
        type(None): st.none(),
    }
    if hint in plain:
        return plain[hint]
    if issubclass(hint, StrEnum):
        return st.sampled_from(hint)
    assert issubclass(hint, msgspec.Struct), hint
    return _structs(hint)


def _structs(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Draw a struct: required fields always, the others sometimes."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        (required if field.required else optional)[field.name] = _values(hints[field.name], field.name)
    if "execution_id" in required:
        required["execution_id"] = st.sampled_from([WAITING, LEASED, ENDED]) | TEXTS
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: _build(kind, fields))


def _build(kind: type[msgspec.Struct], fields: dict[str, Any]) -> Any:
    return Payload(*fields.values()) if kind is Payload and len(fields) == 1 else kind(**fields)


async def _populate(world: World) -> None:
    for execution_id, lane in ((WAITING, "default"), (LEASED, "held"), (ENDED, "ended")):
        await world.create(execution_id=execution_id, lane=lane)
    await world.claim_one("w", lanes=("held",))
    await world.execution.complete(await world.claim_one("w", lanes=("ended",)))


async def _send(store: str, name: str, command: Any) -> None:
    clock = ManualClock(start_ms=START_MS)
    backend = await backends.connect(emptied(store), clock=clock, partitions=FEW)
    world = World(backend, clock)
    try:
        await _populate(world)
        before = await world.observe()
        fields = {field: getattr(command, field) for field in command.__struct_fields__}
        try:
            await world.call(name, **fields)
        except Refused:
            assert await world.observe() == before, "a refused command left traces"
        await world.observe()
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings
    finally:
        await backend.close()


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_any_command_is_answered_or_refused(name: str, data: st.DataObject) -> None:
    """Whatever a command's fields hold, it is answered or refused with a declared code, and never half done.

    Acceptance: malformed-commands-are-refused-whole
    """
    asyncio.run(_send(FIRST, name, data.draw(_structs(OPERATIONS[name].command))))


@pytest.mark.parametrize("store", OTHER_STORES)
@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=settings().max_examples // 6)
@given(data=st.data())
def test_any_command_is_answered_or_refused_elsewhere(store: str, name: str, data: st.DataObject) -> None:
    """The same holds on every other store.

    Acceptance: malformed-commands-are-refused-whole
    """
    asyncio.run(_send(store, name, data.draw(_structs(OPERATIONS[name].command))))
