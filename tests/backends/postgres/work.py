"""Short ways to use a whole Postgres backend in tests, several of them on one store if need be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres.backend import PostgresBackend, open_backend
from flowfabric.backends.postgres.listen import Key, Listener
from flowfabric.backends.postgres.store import Store
from flowfabric.contract.ids import (
    PartitionCounts,
)
from tests.backends.working import PATIENCE_S, until

FEW: Final = PartitionCounts(flow=16)

LONG_S: Final = 30.0
"""Longer than any test waits: a timer that is waited for so long was not heard of."""
_TIMERS: Final = ("due", 0)


@asynccontextmanager
async def opened(
    url: str, count: int = 1, *, clock: ManualClock | None = None, partitions: PartitionCounts = FEW
) -> AsyncIterator[list[PostgresBackend]]:
    """Open a store several times, as several processes would, and close it again."""
    async with AsyncExitStack() as stack:
        backends: list[PostgresBackend] = []
        for _ in range(count):
            backend = await open_backend(url, clock=clock, partitions=partitions)
            stack.push_async_callback(backend.close)
            backends.append(backend)
        yield backends


def store_of(backend: PostgresBackend) -> Store:
    """Return what is behind a backend."""
    return backend._store


def listener_of(backend: PostgresBackend) -> Listener:
    """Return what hears of commits for a backend."""
    return backend._wakes.listener


async def covered(backend: PostgresBackend, *keys: Key) -> None:
    """Wait until a backend is told of everything that somebody in it sleeps for, these things among it."""
    listener = listener_of(backend)
    await until(lambda: _is_covered(listener) and listener._covered.issuperset(keys))


def _is_covered(listener: Listener) -> bool:
    return listener.is_listening and listener._wanted.keys() <= listener._covered


async def asleep(*backends: PostgresBackend, count: int) -> None:
    """Wait until so many claims sleep, told of what they sleep for, and are done with looking."""

    def sleeping() -> int:
        claims = [waiter for backend in backends for waiter in backend._wakes._claims]
        return sum(1 for waiter in claims if waiter.idle and not waiter._rung)

    await until(
        lambda: sleeping() == count and all(_is_covered(listener_of(backend)) for backend in backends)
    )


async def told_of_timers(backend: PostgresBackend) -> None:
    """Have a backend be told of what is due."""
    while not listener_of(backend)._covered.issuperset({_TIMERS}):
        task = asyncio.create_task(backend.timers.wait_change(None, LONG_S))
        await covered(backend, _TIMERS)
        await asyncio.wait_for(task, PATIENCE_S)
    await backend.timers.read_due(1)


async def asleep_for_timers(backend: PostgresBackend, until_ms: int | None) -> asyncio.Task[None]:
    """Wait for timers, and return once that is known to those who write."""
    await told_of_timers(backend)
    task = asyncio.create_task(backend.timers.wait_change(until_ms, LONG_S))
    await until(lambda: store_of(backend).bells.waiting == 1)
    return task


@asynccontextmanager
async def held(backend: PostgresBackend, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """Keep what a statement locks locked, until the block is left."""
    async with store_of(backend).calls.transaction() as connection:
        await connection.execute(statement, *arguments)
        yield
