"""Listing more than one call looks at: the bounds of SQLite's one big table."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.sqlite.backend import SqliteBackend
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.execution import ExecutionList
from flowfabric.contract.ids import Kind
from tests.backends.sqlite.store import create, create_many, opened


async def every(store: SqliteBackend, **fields: object) -> tuple[list[str], int]:
    """List all pages; return the ids and how many calls it took."""
    found: list[str] = []
    calls, cursor = 0, None
    while True:
        page = await store.execution.list(ExecutionList(cursor=cursor, **fields))  # type: ignore[arg-type]
        calls += 1
        found += [info.execution_id for info in page.executions]
        cursor = page.next_cursor
        if cursor is None:
            return found, calls


async def test_a_rare_match_is_found_in_bounded_steps(tmp_path: Path) -> None:
    """One match among 25,000 is found by going on with the cursor, 10,000 looked at per call; so is one by prefix."""
    clock = ManualClock()
    async with opened(tmp_path / "store.db", clock=clock) as store:
        await create_many(store, 9_500)
        clock.advance(1_000)
        rare = await create(store, kind=Kind("rare"), tags={"app.colour": "red"})
        clock.advance(1_000)
        await create_many(store, 15_500)
        assert await every(store, kind=Kind("rare")) == ([rare], 3)
        assert await every(store, tag="app.colour=red") == ([rare], 3)
        assert await every(store, tag="app.colour") == ([rare], 3)
        assert await every(store, tag="app.colour=blue") == ([], 3)
        at_ms = clock.now_ms() - 1_000
        assert await every(store, created_from_ms=at_ms, created_before_ms=at_ms + 1) == ([rare], 1)
        assert (await every(store, id_prefix=rare[-36:-20])) == ([rare], 1)
        found, calls = await every(store, created_before_ms=at_ms, limit=1_000)
        assert (len(found), calls) == (9_500, 10)


@pytest.mark.parametrize("cursor", ["x", "9" * 30, "0x1", "a1"])
async def test_a_cursor_of_somebody_else_is_refused(tmp_path: Path, cursor: str) -> None:
    """A cursor that no listing returned is invalid input."""
    async with opened(tmp_path / "store.db") as store:
        with pytest.raises(InvalidInput):
            await store.execution.list(ExecutionList(cursor=cursor))


async def test_a_prefix_may_end_anywhere(tmp_path: Path) -> None:
    """Every beginning of an id's uuid finds it, with its dashes where a uuid has them; others find nothing."""
    async with opened(tmp_path / "store.db") as store:
        execution_id = await create(store)
        uuid = execution_id[-36:]
        for length in range(2, 37):
            assert await every(store, id_prefix=uuid[:length]) == ([execution_id], 1)
        for wrong in ("-" + uuid[1:5], uuid[:8] + "a", uuid.replace("-", "")[:12]):
            assert await every(store, id_prefix=wrong) == ([], 1)
