"""One open store: its connections, what it is, and what every concept's operations share.

Closing wakes whoever waits, ends what runs in the background, and drops the connections last.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from typing import Any, Final

from flowfabric.backends.bells import Bells, deliver
from flowfabric.backends.clock import Clock, ManualClock
from flowfabric.backends.postgres import functions, opening
from flowfabric.backends.postgres.calling import Calls
from flowfabric.backends.postgres.driver import Connection
from flowfabric.backends.postgres.migrate import Layout
from flowfabric.backends.postgres.opening import Found, Target
from flowfabric.backends.postgres.pool import CLOSED, Pool
from flowfabric.contract import limits
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability

FAREWELL_S: Final = 2.0
"""How long closing waits for what this process still has to tell the store."""


class Store:
    """What every concept's operations share. Made by `open_store`; close it."""

    def __init__(self, target: Target, found: Found, clock: ManualClock | None, retention_ms: int) -> None:
        self.target: Final = target
        self.url: Final = target.public_url
        self.schema: Final = target.schema
        self.found: Final = found
        self.layout: Final[Layout] = found.layout
        self.clock: Final = clock
        """Set in tests only: otherwise the server's clock counts."""
        self.retention_ms: Final = retention_ms
        self.bells: Final = Bells()
        self.pool: Final = Pool(target.where, target.pool_size)
        self.calls: Final = Calls(self.pool, target.schema, clock)
        self._background: Final[set[asyncio.Task[Any]]] = set()

    @property
    def partitions(self) -> PartitionCounts:
        """The partition counts."""
        return self.layout.partitions

    def sql(self, path: str) -> Mapping[str, str]:
        """Return the named statements of a file of this package, for this store's schema: `sql/queries/lane.sql`."""
        return _statements(path, self.schema)

    async def dedicated(self, *, application: str) -> Connection | None:
        """Open a connection outside of the pool to the server itself; None when only a proxy can be reached.

        The caller closes it. Raises: Misuse, Unavailable.
        """
        if self.target.listener is None:
            return None
        return await opening.connect(self.target.listener, application=application)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in the background until it ends or the store is closed.

        A failure is for whoever awaits the task; the event loop reports it when nobody does.
        """
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def close(self, *, first: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Wake whoever waits, end what runs, drop the connections; `first` runs while they are still there."""
        deliver(self.bells.ring_all(closed=CLOSED))
        if first is not None:
            with contextlib.suppress(TimeoutError):
                # What cannot be told in time is found by others, later.
                await asyncio.wait_for(first(), FAREWELL_S)
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.calls.close()
        await self.pool.close()


@cache
def _statements(path: str, schema: str) -> Mapping[str, str]:
    return functions.statements(path, schema)


async def open_store(
    url: str,
    *,
    clock: Clock | None = None,
    partitions: PartitionCounts | None = None,
    retention_ms: int | None = None,
    durability: Durability | None = None,
) -> Store:
    """Open a store, made on first use. A clock other than a test's does not count: the server's does.

    `durability` is what acknowledgements must promise at least, beside what the URL asks.
    Raises: Misuse (no server that can keep executions, other partition counts, a schema that is not up to date),
        Corrupt, Unavailable.
    """
    target = opening.parse(url).asking(durability)
    return await open_target(target, clock=clock, partitions=partitions, retention_ms=retention_ms)


async def open_target(
    target: Target,
    *,
    clock: Clock | None,
    partitions: PartitionCounts | None,
    retention_ms: int | None,
) -> Store:
    """Open what a URL asks for. Raises: as `open_store`."""
    manual = clock if isinstance(clock, ManualClock) else None
    found = await opening.prepare(target, clock=manual, partitions=partitions)
    return Store(
        target, found, manual, retention_ms if retention_ms is not None else limits.RETENTION_DEFAULT_MS
    )
