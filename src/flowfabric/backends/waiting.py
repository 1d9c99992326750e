"""Waiting for an execution to change, or for timers: look, sleep until the bell, look again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from flowfabric.backends.bells import Bells

T = TypeVar("T")

LOOK_AGAIN_S: Final = 5.0
"""How long a waiter sleeps at most before it looks by itself, should a bell have been missed."""


async def wait_for(
    look: Callable[[], Awaitable[T]],
    is_enough: Callable[[T], bool],
    *,
    bells: Bells,
    uuid: str,
    wait_ms: int,
) -> T:
    """Look until what is seen is enough, or `wait_ms` are over; return what was seen last."""
    if wait_ms <= 0:
        return await look()
    deadline = time.monotonic() + wait_ms / 1_000
    waiter = bells.add_watcher(uuid)
    try:
        while True:
            waiter.rest()
            seen = await look()
            left_s = deadline - time.monotonic()
            if is_enough(seen) or left_s <= 0:
                return seen
            await waiter.wait(min(left_s, LOOK_AGAIN_S))
            bells.refuse_closed()
    finally:
        bells.remove_watcher(uuid, waiter)


async def wait_until_due(
    bells: Bells,
    until_ms: int | None,
    timeout_s: float,
    *,
    now_ms: Callable[[], float],
    is_manual: bool,
) -> None:
    """Wait until the clock reaches `until_ms`, something is due earlier than that, or the timeout.

    What is told from the moment `bells.earliest_due_ms` was last set to None counts. A clock that `is_manual` only
    moves when somebody moves it, which rings.
    """
    deadline = time.monotonic() + timeout_s
    waiter = bells.add_timer(until_ms)
    try:
        rung_ms = bells.earliest_due_ms
        if rung_ms is not None and (until_ms is None or rung_ms < until_ms):
            return
        while True:
            left_s = deadline - time.monotonic()
            if until_ms is not None:
                until_s = (until_ms - now_ms()) / 1_000
                if until_s <= 0:
                    return
                if not is_manual:
                    left_s = min(left_s, until_s)
            if left_s <= 0:
                return
            if await waiter.wait(left_s):
                bells.refuse_closed()
                return
    finally:
        bells.remove_timer(waiter)
