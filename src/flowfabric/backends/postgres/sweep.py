"""Housekeeping: keys whose idempotency window is over are forgotten, a bounded step at a time, by one process at once.

Space is the server's own business (autovacuum); leases, workers and retention are the timers'.
"""

from __future__ import annotations

from typing import Final

from flowfabric.backends.postgres.store import Store

STEP: Final = 500
STEPS_MAX: Final = 20


class Sweep:
    """The store's housekeeping."""

    def __init__(self, store: Store) -> None:
        self._calls = store.calls
        self._forget: Final = store.sql("sql/queries/timers.sql")["forget"]

    async def run(self) -> int:
        """Forget expired keys; return how many. 0: there are none, or another process is at it."""
        forgotten = 0
        for _ in range(STEPS_MAX):
            ((step,),) = await self._calls.change(self._forget, STEP)
            forgotten += step
            if step < STEP:
                break
        return forgotten
