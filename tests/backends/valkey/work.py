"""Short ways to use a whole Valkey backend in tests, several of them on one store if need be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.backend import ValkeyBackend, open_backend
from flowfabric.backends.valkey.store import Store
from flowfabric.contract import ids
from flowfabric.contract.ids import ExecutionId, PartitionCounts
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.wire.servers import Server
from tests.backends.working import until


@asynccontextmanager
async def opened(
    url: str, count: int = 1, *, clock: ManualClock | None = None, partitions: PartitionCounts = FEW
) -> AsyncIterator[list[ValkeyBackend]]:
    """Open a store several times, as several processes would, and close it again."""
    async with AsyncExitStack() as stack:
        backends: list[ValkeyBackend] = []
        for _ in range(count):
            backend = await open_backend(url, clock=clock, partitions=partitions)
            stack.push_async_callback(backend.close)
            backends.append(backend)
        yield backends


def store_of(backend: ValkeyBackend) -> Store:
    """Return what is behind a backend."""
    return backend._store


async def settled(backend: ValkeyBackend) -> None:
    """Wait until other processes can know all timers that this one has made."""
    await backend._hints.settled()


def in_partition(number: int) -> ExecutionId:
    """Mint an id in a partition."""
    return ExecutionId(f"{{fp:{number}}}:{ids.mint_uuid()}")


async def asleep(*backends: ValkeyBackend, count: int) -> None:
    """Wait until so many claims sleep."""
    await until(lambda: sum(store_of(backend).bells.claims_sleeping for backend in backends) == count)


def forget_hints(*servers: Server) -> None:
    """Delete every hint, hold and bell, as a failover could, and what says who has swept."""
    for server in servers:
        if b"role:master" not in server.call("INFO", "replication"):
            continue
        for key in server.call("KEYS", "{w}:*"):
            name = key.decode()[4:]
            if name.partition(":")[0] in ("h", "holds", "bell", "due", "dueheld", "sweeper", "swept"):
                server.call("DEL", key)
