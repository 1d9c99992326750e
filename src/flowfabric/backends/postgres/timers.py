"""What the engine's timers see: what is due, when the next thing is, and housekeeping in bounded steps.

Every engine sees everything. So that several do not all do the same, one of them leads, as its listener's connection
shows: the others are given what is overdue for two seconds, because then the one that leads is busy or gone, and
begin further down where much is due. Serving one thing twice does no harm. What must stay true: an instant announced
since the latest look, or not announced because it was far away, ends a wait in time.
"""

from __future__ import annotations

import random
import time
from typing import Final

from flowfabric.backends.postgres.store import Store
from flowfabric.backends.postgres.sweep import Sweep
from flowfabric.backends.postgres.wakes import Wakes
from flowfabric.backends.waiting import wait_until_due
from flowfabric.contract.backend import Due, DueBatch, DueKind
from flowfabric.contract.ids import ExecutionId, Namespace, WorkerInstance

QUERIES: Final = "sql/queries/timers.sql"
LOOK_AGAIN_S: Final = 5.0
"""How often the earliest instant is read while it is waited for; instants further away are not announced."""
POLL_S: Final = 1.0
"""As before, when nothing is announced to this process."""
OVERDUE_MS: Final = 2_000
"""After how long what is due is everybody's."""
SHARES: Final = 4
"""Over how many times a batch the engines that do not lead are spread."""
_LEAD: Final = "timers"
_MARGIN_S: Final = 0.01


class PostgresTimers:
    """The due-time index."""

    def __init__(self, store: Store, wakes: Wakes) -> None:
        self._store = store
        self._calls = store.calls
        self._bells = store.bells
        self._wakes = wakes
        self._sweep = Sweep(store)
        self._sql: Final = store.sql(QUERIES)
        self._ahead_ms = 0.0
        """The store's time minus this process's monotonic one."""

    async def read_due(self, limit: int) -> DueBatch:
        """Read what is due now, earliest first, at most `limit` entries."""
        self._bells.earliest_due_ms = None
        leads = await self._wakes.listener.lead(_LEAD)
        self._wakes.due_heard_after_ms = 0 if leads else OVERDUE_MS
        if leads:
            return await self._read(limit, 0, 0)
        skip = limit * random.randint(1, SHARES)  # noqa: S311 (spreads load, no secret)
        batch = await self._read(limit, OVERDUE_MS, skip)
        return batch if batch.due else await self._read(limit, OVERDUE_MS, 0)

    async def _read(self, limit: int, since_ms: int, skip: int) -> DueBatch:
        *rows, last = await self._calls.rows(self._sql["due"], limit, since_ms, skip)
        now_ms, next_ms = last["now_ms"], last["due_at_ms"]
        self._ahead_ms = now_ms - time.monotonic() * 1_000
        found = [
            Due(
                kind=DueKind(row["due_kind"]),
                due_at_ms=row["due_at_ms"],
                execution_id=ExecutionId(f"{{fp:{row['partition']}}}:{row['id']}"),
            )
            if row["id"] is not None
            else Due(
                kind=DueKind.WORKER_LIVENESS,
                due_at_ms=row["due_at_ms"],
                namespace=Namespace(row["namespace"]),
                worker_instance=WorkerInstance(row["instance"]),
            )
            for row in rows
        ]
        found.sort(key=lambda due: due.due_at_ms)
        return DueBatch(
            now_ms=now_ms,
            due=tuple(found[:limit]),
            next_due_at_ms=None if next_ms is None else next_ms + since_ms,
        )

    async def wait_change(self, until_ms: int | None, timeout_s: float) -> None:
        """Wait until the store's clock reaches `until_ms`, something is due earlier than that, or the timeout."""
        deadline = time.monotonic() + timeout_s
        with self._wakes.timers() as are_told:
            while True:
                began = time.monotonic()
                wait_s = min(deadline - began, LOOK_AGAIN_S if are_told() else POLL_S)
                self._wakes.listener.still_leads(_LEAD)
                await wait_until_due(
                    self._bells,
                    until_ms,
                    wait_s,
                    now_ms=self._now_ms,
                    is_manual=self._store.clock is not None,
                )
                now = time.monotonic()
                if now >= deadline or now - began < wait_s - _MARGIN_S or await self._is_earlier(until_ms):
                    return

    async def sweep(self) -> int:
        """Forget idempotency keys whose time is over, a bounded step at a time."""
        return await self._sweep.run()

    async def _is_earlier(self, until_ms: int | None) -> bool:
        """Say whether something is due earlier than what is waited for."""
        ((earliest_ms, now_ms),) = await self._calls.rows(self._sql["earliest"])
        self._ahead_ms = now_ms - time.monotonic() * 1_000
        if earliest_ms is None:
            return False
        return until_ms is None or earliest_ms + self._wakes.due_heard_after_ms < until_ms

    def _now_ms(self) -> float:
        """Return the store's time as far as this process can tell without asking."""
        if self._store.clock is not None:
            return self._store.clock.now_ms()
        return time.monotonic() * 1_000 + self._ahead_ms
