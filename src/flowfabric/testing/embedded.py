"""A store in memory, its engine, a client, and the clock they all go by."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from flowfabric import backends
from flowfabric.backends.clock import MANUAL_START_MS, ManualClock
from flowfabric.client.facade import Client
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import Misuse
from flowfabric.engine.timers import run_due

MEMORY_URL: Final = "sqlite:///:memory:"
STEPS_MAX: Final = 100_000


class Embedded:
    """What `embedded` hands out."""

    def __init__(self, backend: Backend, clock: ManualClock) -> None:
        self.backend: Final = backend
        self.clock: Final = clock
        self.client: Final = Client(backend, now_ms=backend.now_ms)

    async def settle(self) -> int:
        """Do everything that is due at this instant and return how much that was."""
        return await run_due(self.backend)

    async def advance(
        self,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        milliseconds: float = 0,
    ) -> int:
        """Move the clock forward, stopping at every instant at which something is due to do it then.

        Return how many timers fired.
        """
        length = timedelta(
            days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds
        )
        if length < timedelta():
            raise Misuse("time moves forward: use clock.advance for a clock that jumps back")
        target_ms = self.clock.now_ms() + round(length / timedelta(milliseconds=1))
        fired = await self.settle()
        for _ in range(STEPS_MAX):
            next_due_ms = (await self.backend.timers.read_due(1)).next_due_at_ms
            if next_due_ms is None or not self.clock.now_ms() < next_due_ms <= target_ms:
                break
            self.clock.set(next_due_ms)
            fired += await self.settle()
        self.clock.set(target_ms)
        return fired + await self.settle()


@asynccontextmanager
async def embedded(*, url: str = MEMORY_URL, start_ms: int = MANUAL_START_MS) -> AsyncGenerator[Embedded]:
    """Open a store with a clock of its own and close it again: `async with embedded() as ff:`.

    No timer fires by itself: `ff.advance(minutes=5)` moves the clock and does what falls due on the way.
    """
    clock = ManualClock(start_ms)
    backend = await backends.connect(url, clock=clock)
    try:
        yield Embedded(backend, clock)
    finally:
        await backend.close()
