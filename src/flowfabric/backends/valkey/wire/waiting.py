"""Waiting while there is nothing to use: growing pauses, and news that end them early."""

from __future__ import annotations

import asyncio
import random
from typing import Final

PAUSE_FIRST_S: Final = 0.01
PAUSE_MAX_S: Final = 0.5


class Backoff:
    """Pauses that double from PAUSE_FIRST_S to PAUSE_MAX_S, each between half and the whole of that."""

    def __init__(self) -> None:
        self._next: float = PAUSE_FIRST_S

    def next_s(self) -> float:
        """Return the next pause in seconds."""
        pause = self._next
        self._next = min(2 * pause, PAUSE_MAX_S)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """Begin again with the shortest pause."""
        self._next = PAUSE_FIRST_S


class Signal:
    """News that any number of callers wait for, each for as long as it likes; nothing is kept for late comers."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[bool]] = set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the next `fire`; False when the time passed first."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(max(timeout_s, 0.0), _end, waiter, False)
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    def fire(self) -> None:
        """Wake everybody who waits now."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            _end(waiter, True)


def _end(waiter: asyncio.Future[bool], outcome: bool) -> None:
    if not waiter.done():
        waiter.set_result(outcome)
