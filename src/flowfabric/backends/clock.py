"""Clocks: what a store takes its time from.

A store has one clock, and nothing a caller sends is ever taken for the time. Backends make time monotonic across
restarts by themselves (they never go below the latest instant they stored); a clock here may jump.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

MANUAL_START_MS: Final = 1_700_000_000_000


class Clock(Protocol):
    """A source of time in milliseconds since the epoch."""

    def now_ms(self) -> int:
        """Return the present instant."""
        ...


class SystemClock:
    """The host's clock."""

    def now_ms(self) -> int:
        """Return the host's time."""
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that stands still until it is moved; moving it wakes whatever waits for an instant."""

    def __init__(self, start_ms: int = MANUAL_START_MS) -> None:
        self._lock = threading.Lock()
        self._now_ms = start_ms
        self._listeners: dict[int, Callable[[], None]] = {}
        self._next_listener = 0

    def now_ms(self) -> int:
        """Return the instant the clock was last set to."""
        return self._now_ms

    def advance(self, ms: int) -> int:
        """Move the clock by `ms` (negative: back) and return its new instant."""
        with self._lock:
            self._now_ms += ms
            listeners = list(self._listeners.values())
            now_ms = self._now_ms
        for listener in listeners:
            listener()
        return now_ms

    def set(self, now_ms: int) -> None:
        """Move the clock to an instant."""
        self.advance(now_ms - self._now_ms)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` whenever the clock is moved, from the mover's thread; return how to stop that."""
        with self._lock:
            key = self._next_listener
            self._next_listener += 1
            self._listeners[key] = listener

        def stop() -> None:
            with self._lock:
                self._listeners.pop(key, None)

        return stop
