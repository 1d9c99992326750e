"""Waiting for an execution to change: look, sleep until the bell, look again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from flowfabric.backends.sqlite.bells import Bells

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
