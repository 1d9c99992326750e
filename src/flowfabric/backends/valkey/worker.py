"""The worker registry in Valkey: one hash per namespace, one index of when a heartbeat lapses or a worker is forgotten.

The registry is global; leases are found through the index of holders in each partition. A worker that dies loses its
entry first and its leases then, partition by partition, each in bounded steps. Renewals of leases count as heartbeats:
those of one turn of the event loop are written together.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends import reply
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.catalog import Catalog
from flowfabric.backends.valkey.everywhere import on_each
from flowfabric.backends.valkey.keys import Partition, Partitions
from flowfabric.backends.valkey.record import unpack
from flowfabric.contract import ids, limits
from flowfabric.contract.errors import Corrupt, OutcomeUnknown, Unavailable
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
    is_alive,
)

RENEWED_WITHIN_S: Final = 0.1
"""How long a renewal waits at most until it is counted as a heartbeat."""
_DEAD_BATCH: Final = 256
_LIVE_MAX: Final = 10 * limits.PAGE_MAX


class StoredWorker(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """A registered instance as stored."""

    worker_id: WorkerId
    liveness_ttl_ms: int
    registered_at_ms: int
    last_heartbeat_at_ms: int
    expires_at_ms: int
    lapsed_at_ms: int | None
    details: str


class Details(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What an instance can run; functions do not look at it."""

    lanes: tuple[Lane, ...]
    kinds: tuple[ids.Kind, ...]
    capabilities: tuple[str, ...]


_DETAILS: Final = msgspec.json.Decoder(Details)


class ValkeyWorkers:
    """Operations on the worker registry."""

    def __init__(self, calls: Calls, partitions: Partitions, catalog: Catalog) -> None:
        self._calls = calls
        self._partitions = partitions
        self._catalog = catalog
        self._renewals: dict[str, set[str]] = {}
        self._next_write: asyncio.Task[None] | None = None
        self._writes: Final[set[asyncio.Task[None]]] = set()

    async def register(self, command: WorkerRegister) -> WorkerRegistered:
        """Register an instance, and publish the defaults of its kinds."""
        command.check()
        published: list[str | bytes] = []
        for defaults in command.defaults:
            published += (defaults.kind, msgspec.json.encode(defaults))
        details = Details(
            lanes=command.lanes,
            kinds=command.kinds,
            capabilities=tuple(sorted(set(command.capabilities))),
        )
        status, expires_at_ms, *changes = await self._calls.call(
            None,
            "worker_register",
            (keys.META, keys.workers(command.namespace), keys.WORKER_DUE, keys.DEFAULTS),
            namespace=command.namespace,
            worker_instance=command.worker_instance,
            worker_id=command.worker_id,
            liveness_ttl_ms=command.liveness_ttl_ms,
            details=msgspec.json.encode(details),
            published=published,
        )
        for version, kind, text in zip(changes[::3], changes[1::3], changes[2::3], strict=True):
            self._catalog.learn_defaults(version, command.namespace, reply.text(kind), text)
        return WorkerRegistered(
            status="refreshed" if status == b"refreshed" else "registered", next_expiry_at_ms=expires_at_ms
        )

    async def heartbeat(self, command: WorkerHeartbeat) -> WorkerRefreshed:
        """Say that an instance is alive."""
        command.check()
        (expires_at_ms,) = await self._on_registry("worker_heartbeat", command)
        return WorkerRefreshed(next_expiry_at_ms=expires_at_ms)

    async def expire(self, command: WorkerExpire) -> WorkerExpired:
        """Mark an overdue registration as lapsed, or forget one that lapsed long ago."""
        command.check()
        (status,) = await self._on_registry("worker_expire", command)
        return msgspec.convert({"status": reply.text(status)}, WorkerExpired)

    async def mark_dead(self, command: WorkerMarkDead) -> WorkerMarkedDead:
        """Remove an instance and expire its leases at once."""
        command.check()
        (known,) = await self._on_registry("worker_remove", command)
        try:
            expired = await on_each(
                self._partitions.all, lambda partition: self._expire_leases(partition, command)
            )
        except Unavailable as error:
            raise OutcomeUnknown(
                f"the worker has left the registry, but some of its leases may still live: {error.message}; "
                "repeating it is safe"
            ) from error
        return WorkerMarkedDead(status="marked" if known else "not_registered", leases_expired=sum(expired))

    async def list(self, command: WorkerList) -> WorkerPage:
        """List the instances of a namespace by name. The cursor is the name of the last instance on the page."""
        command.check()
        now_ms, found = await asyncio.gather(self._calls.now_ms(), self._read(command.namespace))
        names = sorted(name for name in found if name > (command.cursor or ""))
        page = names[: command.limit]
        leases = await self._count_held(command.namespace, page)
        return WorkerPage(
            workers=tuple(
                info(_record(command.namespace, name, found[name]), count, now_ms)
                for name, count in zip(page, leases, strict=True)
            ),
            next_cursor=page[-1] if len(names) > command.limit else None,
        )

    # For other concepts -------------------------------------------------------------------------------------------

    async def live(self, namespace: str, now_ms: int) -> list[WorkerRecord]:
        """Read the instances of a namespace whose heartbeat has not lapsed (the first 10,000 by name)."""
        found = await self._read(namespace)
        records = [_record(namespace, name, found[name]) for name in sorted(found)[:_LIVE_MAX]]
        return [record for record in records if is_alive(record, now_ms)]

    async def renewed(self, namespace: str, instance: str) -> None:
        """Count a lease's renewal as the worker's heartbeat; a worker that is not registered stays so.

        The renewal has happened by now, so a server that fails just then, or takes long, is no reason to say otherwise:
        it may be another one than the lease's.
        """
        self._renewals.setdefault(namespace, set()).add(instance)
        if self._next_write is None:
            self._next_write = asyncio.create_task(self._write_renewals())
            self._writes.add(self._next_write)
            self._next_write.add_done_callback(self._writes.discard)
        await asyncio.wait((self._next_write,), timeout=RENEWED_WITHIN_S)

    async def close(self) -> None:
        """Wait until nothing of this is under way."""
        await asyncio.gather(*self._writes, return_exceptions=True)

    # Private ------------------------------------------------------------------------------------------------------

    async def _on_registry(
        self, name: str, command: WorkerHeartbeat | WorkerExpire | WorkerMarkDead
    ) -> Sequence[Any]:
        return await self._calls.call(
            None,
            name,
            (keys.workers(command.namespace), keys.WORKER_DUE),
            namespace=command.namespace,
            worker_instance=command.worker_instance,
        )

    async def _write_renewals(self) -> None:
        # Whoever renews in this turn of the event loop is in the same call.
        await asyncio.sleep(0)
        renewals, self._renewals, self._next_write = self._renewals, {}, None
        with contextlib.suppress(Unavailable):
            await asyncio.gather(
                *(self._write_renewals_of(name, instances) for name, instances in renewals.items())
            )

    async def _write_renewals_of(self, namespace: str, instances: set[str]) -> None:
        await self._calls.call(
            None,
            "worker_renewed",
            (keys.workers(namespace), keys.WORKER_DUE),
            namespace=namespace,
            instances=sorted(instances),
        )

    async def _expire_leases(self, partition: Partition, command: WorkerMarkDead) -> int:
        expired = 0
        while True:
            looked_at, count, *heads = await self._calls.call(
                partition,
                "worker_mark_dead",
                (partition.due, partition.own, partition.lost),
                namespace=command.namespace,
                worker_instance=command.worker_instance,
                reason=command.reason,
                limit=_DEAD_BATCH,
            )
            expired += count
            effects = self._calls.effects
            if effects is not None:
                for rid, score in zip(heads[::2], heads[1::2], strict=True):
                    await effects.head(partition, reply.text(rid), score)
            if looked_at < _DEAD_BATCH:
                return expired

    async def _read(self, namespace: str) -> dict[str, bytes]:
        (found,) = await self._calls.read(None, [("HGETALL", keys.workers(namespace))])
        return {name.decode(): stored for name, stored in found.items()}

    async def _count_held(self, namespace: str, instances: Sequence[str]) -> list[int]:
        """Count the leases of instances over all partitions."""
        if not instances:
            return []
        found = await on_each(
            self._partitions.all,
            lambda partition: self._calls.call(
                partition, "worker_count_held", (partition.own,), namespace=namespace, instances=instances
            ),
        )
        return [sum(column) for column in zip(*found, strict=True)]


def _record(namespace: str, instance: str, stored: bytes) -> WorkerRecord:
    found = unpack(stored, StoredWorker)
    try:
        details = _DETAILS.decode(found.details)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the registered worker {instance} cannot be read: {error}") from error
    return WorkerRecord(
        worker_id=found.worker_id,
        worker_instance=WorkerInstance(instance),
        namespace=Namespace(namespace),
        lanes=details.lanes,
        kinds=details.kinds,
        capabilities=details.capabilities,
        liveness_ttl_ms=found.liveness_ttl_ms,
        registered_at_ms=found.registered_at_ms,
        last_heartbeat_at_ms=found.last_heartbeat_at_ms,
        expires_at_ms=found.expires_at_ms,
        lapsed_at_ms=found.lapsed_at_ms,
    )
