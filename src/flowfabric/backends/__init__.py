"""Backends: where executions are kept. `connect` opens one by its URL; drivers are imported when they are needed."""

from __future__ import annotations

from collections.abc import Sequence

from flowfabric.backends.clock import Clock, ManualClock, SystemClock
from flowfabric.backends.inside import Inside
from flowfabric.backends.migrations import MigrationReport
from flowfabric.backends.urls import POSTGRES, kind_of, public_url
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import Misuse
from flowfabric.contract.ids import PartitionCounts

__all__ = ["Clock", "ManualClock", "SystemClock", "connect", "inside", "migrate"]

_NO_ASYNCPG = "a Postgres store needs the driver: pip install 'flowfabric[postgres]'"


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
    `valkey+unix:///path.sock`; `postgresql://host:port/database` (`postgres://` is the same). `clock` defaults to the
    store's own or the host's. `partitions` are fixed when a store is made; later they must agree. `retention_ms` is
    how long finished executions are kept when neither they nor their kind say.

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
        case "postgresql" | "postgres":
            try:
                from flowfabric.backends.postgres.backend import open_backend as open_postgres
            except ModuleNotFoundError as error:
                if error.name != "asyncpg":
                    raise
                raise Misuse(_NO_ASYNCPG) from error
            return await open_postgres(url, clock=clock, partitions=partitions, retention_ms=retention_ms)
        case _:
            raise Misuse(
                f"no store has the URL scheme {scheme[:20]!r}: use sqlite:///file.db, sqlite:////absolute/file.db, "
                "sqlite:///:memory:, valkey://host:port/0, valkey+cluster://host:port,host:port or "
                "postgresql://host:port/database"
            )


async def migrate(
    url: str,
    *,
    plan_only: bool = False,
    partitions: PartitionCounts | None = None,
    grant: Sequence[str] = (),
) -> MigrationReport:
    """Bring a store up to date, made when there is none; with `plan_only` say what would be done and change nothing.

    Stores that do this by themselves whenever they are opened are left to it. `grant` names database roles that may
    use the store from now on, without any right to change its schema; only Postgres has such roles.

    Raises: Misuse when this role may not, the store is newer, unfinished or another application's; Corrupt,
        Unavailable.
    """
    if kind_of(url) == POSTGRES:
        try:
            from flowfabric.backends.postgres.opening import migrate_store
        except ModuleNotFoundError as error:
            if error.name != "asyncpg":
                raise
            raise Misuse(_NO_ASYNCPG) from error
        return await migrate_store(url, plan_only=plan_only, partitions=partitions, grant=grant)
    if grant:
        raise Misuse("only a Postgres store has roles to grant it to")
    if not plan_only:
        backend = await connect(url, partitions=partitions)
        await backend.close()
    return MigrationReport(store=public_url(url), done=not plan_only, when_opened=True)


def inside(connection: object, *, schema: str | None = None) -> Inside:
    """Return a transaction of an application's in which executions can be created, by its connection or session.

    asyncpg, psycopg and SQLAlchemy, on the Postgres database that holds the store. `schema` is the store's, `ff`
    unless it was made in another.

    Raises: Misuse for any other connection, and for one that would commit by itself.
    """
    from flowfabric.backends.postgres import enqueue

    return enqueue.inside(connection, schema if schema is not None else enqueue.SCHEMA_DEFAULT)
