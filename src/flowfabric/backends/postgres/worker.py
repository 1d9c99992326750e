"""The worker registry in Postgres: one row per instance.

Leases are found through the holders in `ff.agenda`. A worker that dies loses its registration first and its leases
then, in bounded steps. Renewals of leases count as heartbeats: those of one turn of the event loop are written
together.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from flowfabric.backends.postgres.catalog import Catalog
from flowfabric.backends.postgres.store import Store
from flowfabric.contract import ids, limits
from flowfabric.contract.errors import Corrupt, OutcomeUnknown, ResourceExhausted, Unavailable
from flowfabric.contract.ids import Lane, Namespace, WorkerId, WorkerInstance
from flowfabric.contract.worker import (
    WorkerExpire,
    WorkerExpired,
    WorkerHeartbeat,
    WorkerList,
    WorkerMarkDead,
    WorkerMarkedDead,
    WorkerPage,
    WorkerRecord,
    WorkerRefreshed,
    WorkerRegister,
    WorkerRegistered,
    info,
)

_DEAD_BATCH: Final = 256
_LIVE_MAX: Final = 10 * limits.PAGE_MAX


class Details(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What an instance can run; functions do not look at it."""

    lanes: tuple[Lane, ...]
    kinds: tuple[ids.Kind, ...]
    capabilities: tuple[str, ...]


_DETAILS: Final = msgspec.json.Decoder(Details)


class PostgresWorkers:
    """Operations on the worker registry."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._calls = store.calls
        self._catalog = catalog
        self._sql = store.sql("sql/queries/worker.sql")

    async def register(self, command: WorkerRegister) -> WorkerRegistered:
        """Register an instance, and publish the defaults of its kinds."""
        command.check()
        details = Details(
            lanes=command.lanes,
            kinds=command.kinds,
            capabilities=tuple(sorted(set(command.capabilities))),
        )
        status, expires_at_ms = await self._calls.call(
            "worker_register",
            command.namespace,
            command.worker_instance,
            command.worker_id,
            command.liveness_ttl_ms,
            msgspec.json.encode(details),
            [defaults.kind for defaults in command.defaults],
            [msgspec.json.encode(defaults) for defaults in command.defaults],
        )
        if command.defaults:
            self._catalog.invalidate()
        return WorkerRegistered(
            status="refreshed" if status == "refreshed" else "registered", next_expiry_at_ms=expires_at_ms
        )

    async def heartbeat(self, command: WorkerHeartbeat) -> WorkerRefreshed:
        """Say that an instance is alive."""
        command.check()
        (expires_at_ms,) = await self._calls.call(
            "worker_heartbeat", command.namespace, command.worker_instance
        )
        return WorkerRefreshed(next_expiry_at_ms=expires_at_ms)

    async def expire(self, command: WorkerExpire) -> WorkerExpired:
        """Mark an overdue registration as lapsed, or forget one that lapsed long ago."""
        command.check()
        (status,) = await self._calls.call("worker_expire", command.namespace, command.worker_instance)
        return msgspec.convert({"status": status}, WorkerExpired)

    async def mark_dead(self, command: WorkerMarkDead) -> WorkerMarkedDead:
        """Remove an instance and expire its leases at once."""
        command.check()
        was_known, done = False, 0
        is_first = True
        while True:
            try:
                known, looked_at, expired = await self._calls.call(
                    "worker_mark_dead",
                    command.namespace,
                    command.worker_instance,
                    command.reason,
                    _DEAD_BATCH,
                )
            except (Unavailable, ResourceExhausted) as error:
                if is_first or isinstance(error, OutcomeUnknown):
                    raise
                raise OutcomeUnknown(
                    f"the worker has left the registry, but some of its leases may still live: {error.message}; "
                    "repeating it is safe"
                ) from error
            was_known, done, is_first = was_known or known, done + expired, False
            if looked_at < _DEAD_BATCH:
                return WorkerMarkedDead(
                    status="marked" if was_known else "not_registered", leases_expired=done
                )

    async def list(self, command: WorkerList) -> WorkerPage:
        """List the instances of a namespace by name. The cursor is the name of the last instance on the page."""
        command.check()
        found = await self._calls.rows(
            self._sql["page"], command.namespace, command.cursor or "", command.limit + 1
        )
        page = found[: command.limit]
        return WorkerPage(
            workers=tuple(info(_record(row), row["leases"], row["now_ms"]) for row in page),
            next_cursor=page[-1]["instance"] if len(found) > command.limit else None,
        )

    # For other concepts -------------------------------------------------------------------------------------------

    async def live(self, namespace: str, now_ms: int) -> list[WorkerRecord]:
        """Read the instances of a namespace whose heartbeat has not lapsed (the first 10,000 by name)."""
        found = await self._calls.rows(self._sql["live"], namespace, now_ms, _LIVE_MAX)
        return [_record(row) for row in found]


def _record(row: Any) -> WorkerRecord:
    try:
        details = _DETAILS.decode(row["details"])
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the registered worker {row['instance']} cannot be read: {error}") from error
    return WorkerRecord(
        worker_id=WorkerId(row["worker_id"]),
        worker_instance=WorkerInstance(row["instance"]),
        namespace=Namespace(row["namespace"]),
        lanes=details.lanes,
        kinds=details.kinds,
        capabilities=details.capabilities,
        liveness_ttl_ms=row["liveness_ttl_ms"],
        registered_at_ms=row["registered_at_ms"],
        last_heartbeat_at_ms=row["last_heartbeat_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        lapsed_at_ms=row["lapsed_at_ms"],
    )
