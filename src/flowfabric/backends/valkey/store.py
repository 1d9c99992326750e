"""One open store: its connections, its library, what it is, and what every concept's operations share.

Opening looks at every primary before anything is written, agrees with other processes on what the store is, loads the
library and the catalog, and listens. Closing wakes whoever waits, ends what runs in the background, and drops the
connections last.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

from flowfabric.backends.bells import Bells, deliver
from flowfabric.backends.clock import Clock, ManualClock
from flowfabric.backends.valkey import keys, library, opening
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.catalog import Catalog
from flowfabric.backends.valkey.durability import confirmation
from flowfabric.backends.valkey.gates import Layout
from flowfabric.backends.valkey.keys import Partitions
from flowfabric.backends.valkey.library_loading import Loader, Registration
from flowfabric.backends.valkey.opening import Found, Target
from flowfabric.backends.valkey.wire import Client, connect
from flowfabric.contract import limits
from flowfabric.contract.errors import Corrupt, Misuse, Unavailable
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability
from flowfabric.telemetry import log

_LOG: Final = log.get_logger("flowfabric.backends.valkey")

CLOSED: Final = "the store was closed"
FAREWELL_S: Final = 2.0
"""How long closing waits for what this process still has to tell the store."""


class Store:
    """What every concept's operations share. Made by `open_store`; close it."""

    def __init__(
        self,
        target: Target,
        client: Client,
        found: Found,
        layout: Layout,
        clock: ManualClock | None,
        retention_ms: int,
    ) -> None:
        self.target: Final = target
        self.url: Final = target.address.public_url
        self.client: Final = client
        self.found = found
        self._asked = target.durability
        self.layout: Final = layout
        self.clock: Final = clock
        """Set in tests only: otherwise the servers' clock counts."""
        self.retention_ms: Final = retention_ms
        self.partitions: Final = Partitions(layout.flow)
        self.bells: Final = Bells()
        self.library: Final = library.assemble(manual_clock=clock is not None)
        self.loader: Final = Loader(client, self.library)
        self.calls: Final = Calls(
            client,
            self.library,
            clock=clock,
            load=self.loader.load,
            confirm=confirmation if found.promise.waits else None,
        )
        self.registration: Final = Registration(self.calls, self.library)
        self.catalog: Final = Catalog(self.calls, layout.store_id)
        self._background: Final[set[asyncio.Task[Any]]] = set()

    async def start(self) -> None:
        """Load the library and the catalog, and keep both as they should be."""
        await self.registration.register()
        await self.loader.load()
        self.client.on_topology_change(lambda: self.spawn(self._settle()) and None)
        await self.client.subscriber().add(
            keys.CATALOG_CHANNEL.encode(), keys.GLOBAL_SLOT, self._catalog_changed
        )
        await self.catalog.load()
        self.spawn(self.catalog.keep_fresh())
        self.spawn(self.registration.keep_registered())

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
        await self.client.close()
        await self.catalog.close()
        await self.loader.close()

    def _catalog_changed(self, message: bytes) -> None:
        if message:
            self.catalog.hear(message)
        else:
            # The connection was lost, and messages with it.
            self.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            await self.catalog.catch_up()
        except Unavailable:
            # Still not reachable: the catalog looks again every few seconds.
            return

    async def _settle(self) -> None:
        """Put right what a server may lack that was restarted, promoted or joined."""
        try:
            await self.loader.load()
            self.found = await opening.inspect(self.client, self._asked)
            await opening.agree(self.client, self.layout.partitions, self.layout.created_at_ms)
            await self.registration.register()
            await self.catalog.catch_up()
        except Unavailable:
            # It is gone again, or not ready: the next call that needs the library loads it.
            return
        except (Misuse, Corrupt) as error:
            # This process goes on, because stopping would help nobody; somebody has to put the server right.
            _LOG.error("store_unfit", store=self.url, error=error.message)


async def open_store(
    url: str,
    *,
    clock: Clock | None = None,
    partitions: PartitionCounts | None = None,
    retention_ms: int | None = None,
    durability: Durability | None = None,
) -> Store:
    """Open a store, made on first use. A clock other than a test's does not count: the servers' does.

    `durability` is what acknowledgements must promise at least, beside what the URL asks.
    Raises: Misuse (no Valkey that can keep executions, other partition counts, a newer layout, a wrong password),
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
    client = await connect(target.address)
    try:
        found = await opening.inspect(client, target.durability)
        manual = clock if isinstance(clock, ManualClock) else None
        now_ms = manual.now_ms() if manual is not None else await opening.read_time(client)
        layout = await opening.agree(client, partitions, now_ms)
        store = Store(
            target,
            client,
            found,
            layout,
            manual,
            retention_ms if retention_ms is not None else limits.RETENTION_DEFAULT_MS,
        )
    except BaseException:
        await client.close()
        raise
    try:
        await store.start()
    except BaseException:
        await store.close()
        raise
    return store
