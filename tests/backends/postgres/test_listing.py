"""Listing more than one call looks at, and the row numbers behind the order."""

from __future__ import annotations

import asyncpg
import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.backends.postgres.listing import SLACK_MS
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.execution import ExecutionCreate, ExecutionList
from flowfabric.contract.ids import Kind
from tests.backends.postgres.work import opened
from tests.backends.working import create, create_many
from tests.postgres.servers import Node

STEP_MS = 10 * SLACK_MS


async def every(backend: PostgresBackend, **fields: object) -> tuple[list[str], int]:
    """List all pages; return the ids and how many calls it took."""
    found: list[str] = []
    calls, cursor = 0, None
    while True:
        page = await backend.execution.list(ExecutionList(cursor=cursor, **fields))  # type: ignore[arg-type]
        calls += 1
        found += [info.execution_id for info in page.executions]
        cursor = page.next_cursor
        if cursor is None:
            return found, calls


def plain(count: int) -> list[ExecutionCreate]:
    return [ExecutionCreate(kind=Kind("k"))] * count


async def test_a_rare_match_is_found_in_bounded_steps(still_node: Node, clock: ManualClock) -> None:
    """One match among 25,000 is found by going on with the cursor, 10,000 looked at per call; so is one by prefix."""
    async with opened(still_node.url, clock=clock) as (backend,):
        await create_many(backend, plain(9_500))
        clock.advance(STEP_MS)
        rare = await create(backend, kind=Kind("rare"), tags={"app.colour": "red"})
        at_ms = clock.now_ms()
        clock.advance(STEP_MS)
        await create_many(backend, plain(15_500))
        assert await every(backend, kind=Kind("rare")) == ([rare], 3)
        assert await every(backend, tag="app.colour=red") == ([rare], 3)
        assert await every(backend, tag="app.colour") == ([rare], 3)
        assert await every(backend, tag="app.colour=blue") == ([], 3)
        assert await every(backend, created_from_ms=at_ms, created_before_ms=at_ms + 1) == ([rare], 1)
        assert (await every(backend, id_prefix=rare[-36:-20])) == ([rare], 1)
        found, calls = await every(backend, created_before_ms=at_ms, limit=1_000)
        assert (len(found), calls) == (9_500, 10)
        found, calls = await every(backend, limit=1_000)
        assert (len(found), len(set(found)), calls) == (25_001, 25_001, 26)


async def test_instants_and_numbers_may_disagree_a_little(still_node: Node, clock: ManualClock) -> None:
    """An execution whose create took long is found by its instant, though later ones have smaller numbers."""
    async with opened(still_node.url, clock=clock) as (backend,):
        created = [await create(backend) for _ in range(20)]
        now_ms = clock.now_ms()
        connection = await asyncpg.connect(still_node.url)
        for number, execution_id in enumerate(created):
            await connection.execute(
                "UPDATE ff.execution SET created_at_ms = $1 WHERE id = $2",
                now_ms + STEP_MS * (number // 4) + SLACK_MS // 2 * ((number * 7) % 3),
                execution_id[-36:],
            )
        rows = await connection.fetch("SELECT id, created_at_ms FROM ff.execution ORDER BY seq DESC")
        await connection.close()
        for low_ms in range(now_ms, now_ms + 6 * STEP_MS, STEP_MS // 20):
            for high_ms in (low_ms + 1, low_ms + STEP_MS // 4, low_ms + 2 * STEP_MS):
                found, _ = await every(backend, created_from_ms=low_ms, created_before_ms=high_ms, limit=3)
                assert [execution_id[-36:] for execution_id in found] == [
                    str(row["id"]) for row in rows if low_ms <= row["created_at_ms"] < high_ms
                ]


@pytest.mark.parametrize("cursor", ["x", "9" * 30, "0x1", "a1"])
async def test_a_cursor_of_somebody_else_is_refused(place: str, cursor: str) -> None:
    """A cursor that no listing returned is invalid input."""
    async with opened(place) as (backend,):
        with pytest.raises(InvalidInput):
            await backend.execution.list(ExecutionList(cursor=cursor))


async def test_a_prefix_may_end_anywhere(place: str) -> None:
    """Every beginning of an id's uuid finds it, with its dashes where a uuid has them; others find nothing."""
    async with opened(place) as (backend,):
        created = await create(backend)
        await create_many(backend, plain(50))
        uuid = created[-36:]
        for length in range(2, 37):
            found, _ = await every(backend, id_prefix=uuid[:length])
            assert created in found
            assert all(other[-36:].startswith(uuid[:length]) for other in found)
        for wrong in (uuid.replace("-", "")[:12], uuid[:9] + "-", "--"):
            assert await every(backend, id_prefix=wrong) == ([], 1)


async def test_a_prefix_goes_with_filters_and_pages(place: str) -> None:
    """A prefix that many share is paged like everything else, filters included."""
    async with opened(place) as (backend,):
        created = await create_many(
            backend, [ExecutionCreate(kind=Kind(f"k{number % 2}")) for number in range(600)]
        )
        for prefix in ("00", "a0", "ff"):
            wanted = [one for one in created[::-1] if one[-36:].startswith(prefix)]
            assert sorted((await every(backend, id_prefix=prefix, limit=1))[0]) == sorted(wanted)
            both = [
                execution_id
                for kind in ("k0", "k1")
                for execution_id in (await every(backend, id_prefix=prefix, kind=Kind(kind)))[0]
            ]
            assert sorted(both) == sorted(wanted)


async def test_an_empty_store_has_empty_pages(place: str) -> None:
    """Nothing is found where nothing is, whatever is asked for."""
    async with opened(place) as (backend,):
        assert await every(backend) == ([], 1)
        assert await every(backend, created_before_ms=5, kind=Kind("k")) == ([], 1)
        assert await every(backend, id_prefix="ab") == ([], 1)
