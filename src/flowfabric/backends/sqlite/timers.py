"""What the engine's timers see: what is due, when the next thing is, and housekeeping in bounded steps."""

from __future__ import annotations

import sqlite3
from typing import Final

from flowfabric.backends import assets
from flowfabric.backends.bells import Bells
from flowfabric.backends.clock import Clock, ManualClock
from flowfabric.backends.sqlite import faults, rows
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.backends.sqlite.writer import Transaction, Writer
from flowfabric.backends.waiting import wait_until_due
from flowfabric.contract.backend import Due, DueBatch, DueKind
from flowfabric.contract.ids import Namespace, WorkerInstance

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/timers.sql")
SWEEP_STEP: Final = 500
SWEEP_STEPS_MAX: Final = 20
FREE_PAGES_KEPT: Final = 256
"""Pages that stay in the file for what is written next."""


class SqliteTimers:
    """The due-time index."""

    def __init__(self, writer: Writer, readers: Readers, bells: Bells, clock: Clock) -> None:
        self._writer = writer
        self._readers = readers
        self._bells = bells
        self._clock = clock

    async def read_due(self, limit: int) -> DueBatch:
        """Read what is due now, earliest first, at most `limit` entries."""
        self._bells.earliest_due_ms = None
        return await self._readers.read(lambda snapshot: _read_due(snapshot, limit))

    async def wait_change(self, until_ms: int | None, timeout_s: float) -> None:
        """Wait until the store's clock reaches `until_ms`, something is due earlier than that, or the timeout."""
        await wait_until_due(
            self._bells,
            until_ms,
            timeout_s,
            now_ms=self._clock.now_ms,
            is_manual=isinstance(self._clock, ManualClock),
        )

    async def sweep(self) -> int:
        """Forget expired idempotency keys and give free space back, a bounded step at a time."""
        cleaned = 0
        for _ in range(SWEEP_STEPS_MAX):
            step = await self._writer.write(_forget_keys, weight=SWEEP_STEP)
            cleaned += step
            if step < SWEEP_STEP:
                break
        for _ in range(SWEEP_STEPS_MAX):
            step = await self._writer.alone(_give_back)
            cleaned += step
            if step < SWEEP_STEP:
                break
        return cleaned


def _read_due(snapshot: Snapshot, limit: int) -> DueBatch:
    found = [
        Due(kind=DueKind(kind), due_at_ms=due_at_ms, execution_id=rows.unpack_id(partition, uuid))
        for due_at_ms, kind, partition, uuid in snapshot.all(_SQL["due"], (snapshot.now_ms, limit))
    ]
    found += [
        Due(
            kind=DueKind.WORKER_LIVENESS,
            due_at_ms=due_at_ms,
            namespace=Namespace(namespace),
            worker_instance=WorkerInstance(instance),
        )
        for due_at_ms, namespace, instance in snapshot.all(_SQL["workers_due"], (snapshot.now_ms, limit))
    ]
    found.sort(key=lambda due: due.due_at_ms)
    later = snapshot.first(_SQL["later"], (snapshot.now_ms, snapshot.now_ms))
    return DueBatch(now_ms=snapshot.now_ms, due=tuple(found[:limit]), next_due_at_ms=_least(later))


def _least(instants: tuple[int | None, ...]) -> int | None:
    return min((instant for instant in instants if instant is not None), default=None)


def _forget_keys(transaction: Transaction) -> int:
    return transaction.execute(_SQL["forget_keys"], (transaction.now_ms, SWEEP_STEP)).rowcount


def _give_back(connection: sqlite3.Connection) -> int:
    """Shrink the file by some of its free pages; return how many. Another process at work comes first."""
    (free,) = connection.execute(_SQL["free_pages"]).fetchone()
    if free <= FREE_PAGES_KEPT:
        return 0
    try:
        # The driver stops after the first page of this statement unless it runs as a script.
        connection.executescript(_SQL["give_back"])
    except sqlite3.OperationalError as error:
        if faults.is_busy(error):
            return 0
        raise
    (left,) = connection.execute(_SQL["free_pages"]).fetchone()
    return free - left
