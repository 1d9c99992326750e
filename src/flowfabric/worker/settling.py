"""Calls that must reach the store: repeated on lost replies, with the same content, until the lease is surely gone.

Every call made here is safe to repeat by its fence or its frame sequences: the store gives the first answer again.
What this must never do is to outlive the lease: once that has run out, whoever took over decides.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from flowfabric.contract.errors import ResourceExhausted, Unavailable
from flowfabric.telemetry import log
from flowfabric.worker.leases import HeldLease

_LOG: Final = log.get_logger("flowfabric.worker")

FIRST_PAUSE_S: Final = 0.05
PAUSE_MAX_S: Final = 2.0
TRIES_MAX: Final = 10_000

Command = TypeVar("Command")
Reply = TypeVar("Reply")


def pause_s(tries: int, longest_s: float = PAUSE_MAX_S) -> float:
    """Return how long to wait after that many failures in a row: doubling, bounded, half to all of it by chance."""
    bound = min(longest_s, FIRST_PAUSE_S * 2.0 ** min(tries, 16))
    return bound * (0.5 + random.random() / 2)  # noqa: S311 -- spreads load, protects nothing


async def persist(
    held: HeldLease, operation: str, call: Callable[[Command], Awaitable[Reply]], command: Command
) -> Reply:
    """Make a fenced call and repeat it while the store is unavailable and the lease may still live.

    Raises: what the store refuses with, or the last `Unavailable` once the lease has surely run out.
    """
    for tries in range(TRIES_MAX):
        try:
            return await call(command)
        except (Unavailable, ResourceExhausted) as error:
            pause = pause_s(tries)
            if held.lost_reason is not None or time.monotonic() + pause > held.expires_at + 1.0:
                raise
            if tries == 0:
                _LOG.warning(
                    "call_repeated",
                    op=operation,
                    execution_id=held.lease.execution_id,
                    error=error.code,
                )
        await asyncio.sleep(pause)
    raise Unavailable(f"{operation} was not answered in {TRIES_MAX} tries")
