"""Listing over many partitions: merged in small pieces, and bounded."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.backend import open_backend
from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import ExecutionId, Kind, PartitionCounts
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.stored import Keys
from tests.conformance.world import World


@pytest.fixture
async def world(place: str, clock: ManualClock) -> AsyncIterator[World]:
    backend = await open_backend(place, clock=clock, partitions=FEW)
    yield World(backend, clock)
    await backend.close()


async def create(world: World, count: int, kind: str = "k", **fields: Any) -> list[str]:
    """Create many executions in one millisecond; return their ids."""
    created: list[str] = []
    while len(created) < count:
        batch = min(count - len(created), limits.CREATE_MANY_MAX)
        commands = tuple(ExecutionCreate(kind=Kind(kind), **fields) for _ in range(batch))
        results = (await world.execution.create_many(executions=commands)).results
        created += [result.execution_id for result in results]
    return created


async def every(world: World, **filters: Any) -> tuple[list[str], int]:
    """List all pages; return the ids and how many calls it took."""
    found: list[str] = []
    calls, cursor = 0, None
    while True:
        page = await world.execution.list(cursor=cursor, **filters)
        calls += 1
        found += [info.execution_id for info in page.executions]
        cursor = page.next_cursor
        if cursor is None:
            return found, calls


@pytest.mark.parametrize("limit", [1, 7, 100, 1_000])
async def test_pages_are_the_whole_list_in_its_order(world: World, limit: int) -> None:
    """Whatever the page, executions come newest first, those of one millisecond in a fixed order, each once."""
    created: list[list[str]] = []
    for count in (3, 150, 1, 40):
        created.append(await create(world, count))
        world.clock.advance(1)
    whole, _ = await every(world, limit=1_000)
    assert (await every(world, limit=limit))[0] == whole
    position = 0
    for batch in created[::-1]:
        assert sorted(whole[position : position + len(batch)]) == sorted(batch)
        position += len(batch)
    assert position == len(whole)


async def test_a_rare_match_is_found_in_bounded_steps(single_store: World) -> None:
    """One match among 25,000 is found by going on with the cursor, 10,000 looked at per call; a whole id at once."""
    world, clock = single_store, single_store.clock
    await create(world, 9_500)
    clock.advance(1_000)
    rare = await world.create(kind="rare", tags={"app.colour": "red"})
    clock.advance(1_000)
    await create(world, 15_500)
    assert await every(world, kind=Kind("rare")) == ([rare], 3)
    assert await every(world, tag="app.colour=red") == ([rare], 3)
    assert await every(world, tag="app.colour") == ([rare], 3)
    assert await every(world, tag="app.colour=blue") == ([], 3)
    at_ms = clock.now_ms() - 1_000
    assert await every(world, created_from_ms=at_ms, created_before_ms=at_ms + 1) == ([rare], 1)
    assert await every(world, id_prefix=rare[-36:-12]) == ([rare], 3)
    assert await every(world, id_prefix=rare[-36:]) == ([rare], 1)
    found, calls = await every(world, created_before_ms=at_ms, limit=1_000)
    assert (len(found), calls) == (9_500, 10)


@pytest.fixture
async def single_store(single: Any, clock: ManualClock) -> AsyncIterator[World]:
    """A store with the usual number of partitions on one server."""
    backend = await open_backend(single.url, clock=clock, partitions=PartitionCounts())
    yield World(backend, clock)
    await backend.close()


async def test_a_few_commands_serve_a_page(single_store: World, single: Any) -> None:
    """A page of a large store costs one look at each partition, seldom two, and one record each."""
    await create(single_store, 3_000)
    single.call("CONFIG", "RESETSTAT")
    await single_store.execution.list(limit=50)
    stats = single.call("INFO", "commandstats").decode()
    calls = {
        line.partition(":")[0].removeprefix("cmdstat_"): int(line.partition("calls=")[2].partition(",")[0])
        for line in stats.splitlines()
        if line.startswith("cmdstat_")
    }
    assert calls["zrange"] <= 2 * 256
    assert calls["hmget"] == 50


async def test_alike_ids_are_told_apart(world: World) -> None:
    """Two executions may have the same uuid in different partitions: both are listed, also by that uuid."""
    same = str(uuid.uuid4())
    ids = [ExecutionId(f"{{fp:{number}}}:{same}") for number in (3, 5)]
    for execution_id in ids:
        await world.execution.create(execution_id=execution_id, kind="k")
    for limit in (1, 5):
        for prefix in (None, same[:20], same):
            assert sorted((await every(world, id_prefix=prefix, limit=limit))[0]) == ids


async def test_removed_ones_are_left_out(world: World, place: str) -> None:
    """An execution that goes away while a page is put together is left out of it."""
    from flowfabric.backends.valkey.wire import connect, parse_url

    created = [await world.create() for _ in range(5)]
    raw = await connect(parse_url(place))
    gone = Keys(raw, created[2])
    await gone("UNLINK", gone.hash)
    for filters in ({}, {"lane": "default"}, {"tag": "a.b"}):
        found = (await every(world, limit=2, **filters))[0]
        assert sorted(found) == ([] if "tag" in filters else sorted(set(created) - {created[2]}))
    await raw.close()


@pytest.mark.parametrize("cursor", ["x", "9" * 30, "0x1", "1z2z3", "1z" + "0" * 32 + "z", "g" + "z0" * 20])
async def test_a_cursor_of_somebody_else_is_refused(world: World, cursor: str) -> None:
    """A cursor that no listing returned is invalid input."""
    with pytest.raises(InvalidInput):
        await world.execution.list(cursor=cursor)


async def test_a_prefix_may_end_anywhere(world: World) -> None:
    """Every beginning of an id's uuid finds it, with its dashes where a uuid has them; others find nothing."""
    execution_id = await world.create()
    text = execution_id[-36:]
    for length in range(2, 37):
        assert await every(world, id_prefix=text[:length]) == ([execution_id], 1)
    for wrong in ("-" + text[1:5], text[:8] + "a", text.replace("-", "")[:12]):
        assert await every(world, id_prefix=wrong) == ([], 1)
