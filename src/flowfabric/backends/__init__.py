"""Backends: where executions are kept. `connect` opens one by its URL; drivers are imported when they are needed."""

from __future__ import annotations

from flowfabric.backends.clock import Clock, ManualClock, SystemClock
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import Misuse
from flowfabric.contract.ids import PartitionCounts

__all__ = ["Clock", "ManualClock", "SystemClock", "connect"]


async def connect(
    url: str,
    *,
    clock: Clock | None = None,
    partitions: PartitionCounts | None = None,
    retention_ms: int | None = None,
) -> Backend:
    """Open a store by its URL, made on first use.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, or `sqlite:///:memory:` for one that lives as long as it is
    open; `valkey://host:port/db`, `valkeys://` with TLS, `valkey+cluster://host:port,host:port`,
    `valkey+unix:///path.sock`. `clock` defaults to the store's own or the host's. `partitions` are fixed when a store
    is made; later they must agree. `retention_ms` is how long finished executions are kept when neither they nor
    their kind say.

    Raises: Misuse when the URL names nothing that can be opened or the store is not ours to open, Corrupt when it is
    damaged, Unavailable when it cannot be reached. In none of these cases anything was changed.
    """
    scheme = url.partition(":")[0]
    match scheme:
        case "sqlite":
            from flowfabric.backends.sqlite.backend import open_backend

            return await open_backend(
                url, clock=clock or SystemClock(), partitions=partitions, retention_ms=retention_ms
            )
        case "valkey" | "valkeys" | "valkey+cluster" | "valkeys+cluster" | "valkey+unix":
            try:
                from flowfabric.backends.valkey.backend import open_backend as open_valkey
            except ModuleNotFoundError as error:
                if error.name != "hiredis":
                    raise
                raise Misuse("a Valkey store needs the driver: pip install 'flowfabric[valkey]'") from error
            return await open_valkey(url, clock=clock, partitions=partitions, retention_ms=retention_ms)
        case _:
            raise Misuse(
                f"no store has the URL scheme {scheme[:20]!r}: use sqlite:///file.db, sqlite:////absolute/file.db, "
                "sqlite:///:memory:, valkey://host:port/0 or valkey+cluster://host:port,host:port"
            )
