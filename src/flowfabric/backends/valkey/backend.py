"""The Valkey backend: one server or a cluster, the operations of all concepts, and what holds them together."""

from __future__ import annotations

from typing import Final

from flowfabric.backends.bells import deliver
from flowfabric.backends.clock import Clock
from flowfabric.backends.valkey.attempt import ValkeyAttempts
from flowfabric.backends.valkey.create import Creator
from flowfabric.backends.valkey.execution import ValkeyExecutions
from flowfabric.backends.valkey.hints import Hints
from flowfabric.backends.valkey.lane import ValkeyLanes
from flowfabric.backends.valkey.lease import ValkeyLeases
from flowfabric.backends.valkey.listing import Listing
from flowfabric.backends.valkey.maintenance import ValkeyMaintenance
from flowfabric.backends.valkey.routing import Routes
from flowfabric.backends.valkey.store import Store, open_store, open_target
from flowfabric.backends.valkey.stream import ValkeyStreams
from flowfabric.backends.valkey.sweep import Sweep
from flowfabric.backends.valkey.timers import ValkeyTimers
from flowfabric.backends.valkey.trim import Retention
from flowfabric.backends.valkey.wakes import Wakes
from flowfabric.backends.valkey.worker import ValkeyWorkers
from flowfabric.contract.backend import Capabilities
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability
from flowfabric.version import VERSION

PING_PATIENCE_S: Final = 2.0


class ValkeyBackend:
    """A store in Valkey. Made by `open_backend`; close it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hints = Hints(store)
        store.calls.effects = self._hints
        self._wakes = Wakes(store, self._hints)
        calls, partitions, catalog = store.calls, store.partitions, store.catalog
        routes = Routes(calls, partitions)
        self.worker = ValkeyWorkers(calls, partitions, catalog)
        self.lane = ValkeyLanes(calls, partitions, catalog, self._hints.resumed)
        self.execution = ValkeyExecutions(
            calls,
            partitions,
            catalog,
            self.worker,
            wakes=self._wakes,
            routes=routes,
            creator=Creator(calls, partitions, catalog, store.layout.partitions, store.retention_ms),
            listing=Listing(calls, partitions),
            retention=Retention(calls, partitions),
        )
        self.lease = ValkeyLeases(store, self._hints, self._wakes, routes, self.worker)
        self.attempt = ValkeyAttempts(calls, partitions)
        self.stream = ValkeyStreams(calls, partitions, store.bells, self._wakes)
        self._sweep = Sweep(store, self._hints)
        self.timers = ValkeyTimers(store, self._hints, self._sweep)
        self.maintenance = ValkeyMaintenance(store)
        self._stop_clock = store.clock.subscribe(self._clock_moved) if store.clock is not None else None
        self._closed = False

    async def start(self) -> None:
        """Begin to listen for what other processes do."""
        await self._wakes.start()
        self._store.client.on_topology_change(lambda: self._store.spawn(self._sweep.after_change()) and None)
        self._store.spawn(self.lane.keep_repaired())

    @property
    def url(self) -> str:
        """The URL it was opened with, without credentials."""
        return self._store.url

    async def now_ms(self) -> int:
        """Return the store's time."""
        return await self._store.calls.now_ms()

    async def another(self) -> ValkeyBackend:
        """Open the store again for the running event loop, for calls that do not wait for anything."""
        store = self._store
        return ValkeyBackend(
            await open_target(
                store.target,
                clock=store.clock,
                partitions=store.layout.partitions,
                retention_ms=store.retention_ms,
            )
        )

    async def capabilities(self) -> Capabilities:
        """Say what the store physically is."""
        found = self._store.found
        return Capabilities(
            family="valkey",
            version=found.version,
            flowfabric=VERSION,
            durability=found.promise.level,
            several_nodes=True,
            push=True,
            partitions=self._store.layout.partitions,
        )

    async def ping(self) -> None:
        """Reach every primary, or raise Unavailable."""
        await self._store.client.on_primaries([("PING",)], timeout_s=PING_PATIENCE_S, repeatable=True)

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
        self._wakes.stop()
        await self.lease.close()
        await self.timers.close()
        await self._hints.close()
        await self.worker.close()

    def _clock_moved(self) -> None:
        deliver(self._store.bells.ring_due(0))


async def open_backend(
    url: str,
    *,
    clock: Clock | None = None,
    partitions: PartitionCounts | None = None,
    retention_ms: int | None = None,
    durability: Durability | None = None,
) -> ValkeyBackend:
    """Open a store, made on first use.

    A clock other than one that tests move does not count: the servers' clock does. `durability` is what
    acknowledgements must promise at least; `?durability=` in the URL asks the same.
    Raises: Misuse (no Valkey that can keep executions, other partition counts, newer layout), Corrupt, Unavailable.
    """
    store = await open_store(
        url, clock=clock, partitions=partitions, retention_ms=retention_ms, durability=durability
    )
    backend = ValkeyBackend(store)
    try:
        await backend.start()
    except BaseException:
        await backend.close()
        raise
    return backend
