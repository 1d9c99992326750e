"""Housekeeping: idempotency keys are forgotten when their window is over, by one process at a time, and only then."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres import sweep
from tests.backends.postgres.work import opened
from tests.backends.working import create
from tests.postgres.servers import Node

COUNT = "SELECT count(*) FROM ff.idempotency"
DAY_MS = 86_400_000


async def test_keys_are_forgotten_when_their_time_is_over(place: str, node: Node, clock: ManualClock) -> None:
    """A key stays for its window and no longer; then it stands for something new."""
    async with opened(place, clock=clock) as (store,):
        key = "key"
        first = await create(store, idempotency_key=key)
        assert await store.timers.sweep() == 0
        assert await create(store, idempotency_key=key) == first
        clock.advance(2 * DAY_MS)
        assert await store.timers.sweep() == 1
        assert node.one(COUNT) == 0
        assert await store.timers.sweep() == 0
        assert await create(store, idempotency_key=key) != first


async def test_many_keys_are_forgotten_step_by_step(
    place: str, node: Node, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many keys are over, one sweep takes a bounded number of bounded steps, and the next ones the rest."""
    monkeypatch.setattr(sweep, "STEP", 10)
    monkeypatch.setattr(sweep, "STEPS_MAX", 3)
    async with opened(place, clock=clock) as (store,):
        await asyncio.gather(*(create(store, idempotency_key=f"key-{number}") for number in range(45)))
        clock.advance(2 * DAY_MS)
        last = await create(store, idempotency_key="stays")
        assert [await store.timers.sweep() for _ in range(3)] == [30, 15, 0]
        assert node.one(COUNT) == 1
        assert await create(store, idempotency_key="stays") == last


async def test_one_process_sweeps_at_a_time(place: str, node: Node, clock: ManualClock) -> None:
    """While one process forgets keys, another finds nothing to do, and does not wait."""
    async with opened(place, clock=clock) as (store,):
        await create(store, idempotency_key="key")
        clock.advance(2 * DAY_MS)
        await store.now_ms()
        await create(store)
        connection = await asyncpg.connect(place)
        try:
            async with connection.transaction():
                assert await connection.fetchval("SELECT ff.idempotency_forget(10)") == 1
                assert await store.timers.sweep() == 0
        finally:
            await connection.close()
        assert node.one(COUNT) == 0


async def test_several_processes_sweep_everything_once(place: str, node: Node, clock: ManualClock) -> None:
    """Sweeps at the same moment share the work without an error."""
    async with opened(place, 3, clock=clock) as stores:
        await asyncio.gather(*(create(stores[0], idempotency_key=f"key-{number}") for number in range(200)))
        clock.advance(2 * DAY_MS)
        counts = await asyncio.gather(*(store.timers.sweep() for store in stores))
        assert sum(counts) == 200
        assert node.one(COUNT) == 0
