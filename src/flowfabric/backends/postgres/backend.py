"""The Postgres backend: one database, the operations of all concepts, and what holds them together."""

from __future__ import annotations

from typing import Final

from flowfabric.backends.bells import deliver
from flowfabric.backends.clock import Clock
from flowfabric.backends.postgres.attempt import PostgresAttempts
from flowfabric.backends.postgres.catalog import Catalog
from flowfabric.backends.postgres.create import Creator
from flowfabric.backends.postgres.execution import PostgresExecutions
from flowfabric.backends.postgres.lane import PostgresLanes
from flowfabric.backends.postgres.lease import PostgresLeases
from flowfabric.backends.postgres.listing import Listing
from flowfabric.backends.postgres.maintenance import PostgresMaintenance
from flowfabric.backends.postgres.store import Store, open_store, open_target
from flowfabric.backends.postgres.stream import PostgresStreams
from flowfabric.backends.postgres.timers import PostgresTimers
from flowfabric.backends.postgres.wakes import Wakes
from flowfabric.backends.postgres.worker import PostgresWorkers
from flowfabric.contract.backend import Capabilities
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability
from flowfabric.version import VERSION

PING_PATIENCE_S: Final = 2.0
_PING: Final = "SELECT 1"


class PostgresBackend:
    """A store in Postgres. Made by `open_backend`; close it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._catalog = Catalog(store)
        self._wakes = Wakes(store, self._catalog)
        self.worker = PostgresWorkers(store, self._catalog)
        self.lane = PostgresLanes(store)
        self.execution = PostgresExecutions(
            store,
            self._catalog,
            self.worker,
            wakes=self._wakes,
            creator=Creator(store, self._catalog),
            listing=Listing(store),
        )
        self.lease = PostgresLeases(store, self._catalog, self._wakes)
        self.attempt = PostgresAttempts(store)
        self.stream = PostgresStreams(store, self._wakes)
        self.timers = PostgresTimers(store, self._wakes)
        self.maintenance = PostgresMaintenance(store)
        self._stop_clock = store.clock.subscribe(self._clock_moved) if store.clock is not None else None
        self._closed = False

    @property
    def url(self) -> str:
        """The URL it was opened with, without credentials."""
        return self._store.url

    async def now_ms(self) -> int:
        """Return the store's time."""
        return await self._store.calls.now_ms()

    async def another(self) -> PostgresBackend:
        """Open the store again for the running event loop, for calls that do not wait for anything."""
        store = self._store
        return PostgresBackend(
            await open_target(
                store.target,
                clock=store.clock,
                partitions=store.partitions,
                retention_ms=store.retention_ms,
            )
        )

    async def capabilities(self) -> Capabilities:
        """Say what the store physically is."""
        server = self._store.found.server
        return Capabilities(
            family="postgres",
            version=server.version,
            flowfabric=VERSION,
            durability=server.durability,
            several_nodes=True,
            push=await self._wakes.is_push(),
            partitions=self._store.partitions,
        )

    async def ping(self) -> None:
        """Reach the server, or raise Unavailable."""
        await self._store.calls.value(_PING, timeout_s=PING_PATIENCE_S)

    async def close(self) -> None:
        """Finish what is under way and let go of the connections; waiting calls end with Unavailable."""
        if self._closed:
            return
        self._closed = True
        if self._stop_clock is not None:
            self._stop_clock()
        await self._store.close(first=self._settle)

    async def _settle(self) -> None:
        """Hand back what this process holds of the store while it can still be told."""
        await self.lease.close()
        await self._wakes.close()

    def _clock_moved(self) -> None:
        deliver(self._store.bells.ring_due(0))


async def open_backend(
    url: str,
    *,
    clock: Clock | None = None,
    partitions: PartitionCounts | None = None,
    retention_ms: int | None = None,
    durability: Durability | None = None,
) -> PostgresBackend:
    """Open a store, made on first use.

    A clock other than one that tests move does not count: the server's clock does. `durability` is what
    acknowledgements must promise at least; `?durability=` in the URL asks the same.
    Raises: Misuse (no server that can keep executions, other partition counts, a schema that is not up to date),
        Corrupt, Unavailable.
    """
    store = await open_store(
        url, clock=clock, partitions=partitions, retention_ms=retention_ms, durability=durability
    )
    return PostgresBackend(store)
