"""What comes back: space after retention, keys after their window. A file that never shrinks is SQLite's alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from flowfabric.backends.clock import ManualClock
from flowfabric.contract.execution import ExecutionTrim
from flowfabric.contract.policies import ExecutionPolicy
from tests.backends.sqlite.store import claim, complete, create, opened

MIB = 1024 * 1024
BIG = b'"' + b"x" * 100_000 + b'"'


async def test_space_comes_back_after_retention(tmp_path: Path) -> None:
    """When retention has removed executions and housekeeping ran, the file is small again."""
    from flowfabric.contract.payloads import Payload

    path = tmp_path / "store.db"
    clock = ManualClock()
    async with opened(path, clock=clock, retention_ms=1_000) as store:
        for _ in range(100):
            await create(store, input=Payload(BIG))
        while leases := await claim(store, max_tasks=16):
            await asyncio.gather(*(complete(store, lease, BIG) for lease in leases))
        clock.advance(1_000)
        batch = await store.timers.read_due(256)
        assert len(batch.due) == 100
        await asyncio.gather(
            *(store.execution.trim(ExecutionTrim(execution_id=due.execution_id)) for due in batch.due)  # type: ignore[arg-type]
        )
        assert await store.timers.sweep() > 0
        report = await store.maintenance.fsck()
        assert report.executions == 0 and not report.findings
    assert path.stat().st_size < 2 * MIB


async def test_keys_are_forgotten_after_their_window(tmp_path: Path) -> None:
    """Housekeeping removes idempotency keys whose window is over, and only those."""
    clock = ManualClock()
    async with opened(tmp_path / "store.db", clock=clock) as store:
        for number in range(1_200):
            window_ms = 1_000 if number % 2 else 5_000
            await create(
                store, idempotency_key=f"k{number}", policy=ExecutionPolicy(dedup_window_ms=window_ms)
            )
        clock.advance(2_000)
        assert await store.timers.sweep() == 600
        assert await store.timers.sweep() == 0
