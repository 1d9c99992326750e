"""How the due-time index wakes its reader, which inside one process and one file is SQLite's own affair."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from flowfabric.backends.clock import ManualClock
from flowfabric.contract.backend import DueKind
from flowfabric.contract.execution import ExecutionPromote
from tests.backends.sqlite.store import claim, create, opened, until

LONG_S = 30.0


async def test_something_earlier_wakes(tmp_path: Path) -> None:
    """A wait ends when something is due before what it waits for, and not for something later."""
    clock = ManualClock()
    async with opened(tmp_path / "store.db", clock=clock) as store:
        await store.timers.read_due(1)
        now = clock.now_ms()
        waiting = asyncio.create_task(store.timers.wait_change(now + 10_000, LONG_S))
        await until(lambda: store.bells.waiting == 1)
        await create(store, delay_until_ms=now + 20_000)
        assert not waiting.done()
        await create(store, delay_until_ms=now + 5_000)
        async with asyncio.timeout(LONG_S / 2):
            await waiting


async def test_what_came_in_between_is_not_missed(tmp_path: Path) -> None:
    """A wait that begins after something earlier became due ends at once."""
    clock = ManualClock()
    async with opened(tmp_path / "store.db", clock=clock) as store:
        batch = await store.timers.read_due(1)
        await create(store, delay_until_ms=clock.now_ms() + 5_000)
        async with asyncio.timeout(LONG_S / 2):
            await store.timers.wait_change(batch.next_due_at_ms, LONG_S)
        assert (await store.timers.read_due(1)).next_due_at_ms == clock.now_ms() + 5_000


async def test_moving_the_clock_wakes(tmp_path: Path) -> None:
    """A wait ends when the clock is moved to its instant, and what is due is what was waited for."""
    clock = ManualClock()
    async with opened(tmp_path / "store.db", clock=clock) as store:
        execution_id = await create(store, delay_until_ms=clock.now_ms() + 5_000)
        batch = await store.timers.read_due(10)
        assert batch.due == ()
        waiting = asyncio.create_task(store.timers.wait_change(batch.next_due_at_ms, LONG_S))
        await until(lambda: store.bells.waiting == 1)
        clock.advance(5_000)
        async with asyncio.timeout(LONG_S / 2):
            await waiting
        (due,) = (await store.timers.read_due(10)).due
        assert (due.kind, due.execution_id) == (DueKind.DELAYED, execution_id)
        await store.execution.promote(ExecutionPromote(execution_id=execution_id))
        assert len(await claim(store)) == 1


async def test_what_was_seen_does_not_wake_again(tmp_path: Path) -> None:
    """Something overdue that its reader has seen and left does not end the next wait."""
    clock = ManualClock()
    async with opened(tmp_path / "store.db", clock=clock) as store:
        await create(store, delay_until_ms=clock.now_ms() + 5_000)
        clock.advance(6_000)
        assert len((await store.timers.read_due(10)).due) == 1
        started = time.monotonic()
        await store.timers.wait_change(None, 0.2)
        assert time.monotonic() - started >= 0.19


async def test_the_host_clock_ends_a_wait(tmp_path: Path) -> None:
    """On the host's clock a wait ends when its instant comes."""
    async with opened(tmp_path / "store.db") as store:
        now = await store.now_ms()
        async with asyncio.timeout(LONG_S / 2):
            await store.timers.wait_change(now + 50, LONG_S)
        assert await store.now_ms() >= now + 50
