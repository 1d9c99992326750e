"""Rules of the worker registry. A lapsed heartbeat marks the registry only; leases expire by themselves."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from flowfabric.contract import limits
from flowfabric.contract.errors import InstanceReassigned, Refused, WorkerNotRegistered
from flowfabric.contract.worker import (
    WorkerExpired,
    WorkerRecord,
    WorkerRefreshed,
    WorkerRegister,
    WorkerRegistered,
    is_alive,
)


class WorkerDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What to store and what to answer."""

    refusal: Refused | None = None
    reply: WorkerRegistered | WorkerRefreshed | WorkerExpired | None = None
    record: WorkerRecord | None = None
    """Store this; absent: unchanged."""
    remove: bool = False


def due_ms(record: WorkerRecord) -> int:
    """Return when the registry has something to do about this worker: its heartbeat lapses, or it is forgotten."""
    if record.lapsed_at_ms is not None:
        return record.lapsed_at_ms + limits.WORKER_KEPT_AFTER_LAPSE_MS
    return record.expires_at_ms


def register(existing: WorkerRecord | None, command: WorkerRegister, now_ms: int) -> WorkerDecision:
    """Register an instance, or refresh it with new lanes, kinds and capabilities."""
    if existing is not None and existing.worker_id != command.worker_id and is_alive(existing, now_ms):
        return WorkerDecision(
            refusal=InstanceReassigned(
                f"instance {command.worker_instance} is registered by worker {existing.worker_id}: "
                "every process needs its own instance name"
            )
        )
    known = existing is not None and is_alive(existing, now_ms)
    record = WorkerRecord(
        worker_id=command.worker_id,
        worker_instance=command.worker_instance,
        namespace=command.namespace,
        lanes=command.lanes,
        kinds=command.kinds,
        capabilities=tuple(sorted(set(command.capabilities))),
        liveness_ttl_ms=command.liveness_ttl_ms,
        registered_at_ms=existing.registered_at_ms if known and existing is not None else now_ms,
        last_heartbeat_at_ms=now_ms,
        expires_at_ms=now_ms + command.liveness_ttl_ms,
    )
    status: Literal["registered", "refreshed"] = "refreshed" if known else "registered"
    return WorkerDecision(
        record=record, reply=WorkerRegistered(status=status, next_expiry_at_ms=record.expires_at_ms)
    )


def heartbeat(existing: WorkerRecord | None, now_ms: int) -> WorkerDecision:
    """Keep a registration alive; one that lapsed must be made again."""
    if existing is None or not is_alive(existing, now_ms):
        return WorkerDecision(refusal=WorkerNotRegistered())
    record = replace(existing, last_heartbeat_at_ms=now_ms, expires_at_ms=now_ms + existing.liveness_ttl_ms)
    return WorkerDecision(record=record, reply=WorkerRefreshed(next_expiry_at_ms=record.expires_at_ms))


def expire(existing: WorkerRecord | None, now_ms: int) -> WorkerDecision:
    """Mark an overdue registration as lapsed; forget one that lapsed long ago."""
    if existing is None or due_ms(existing) > now_ms:
        return WorkerDecision(reply=WorkerExpired(status="not_due"))
    if existing.lapsed_at_ms is not None:
        return WorkerDecision(reply=WorkerExpired(status="removed"), remove=True)
    return WorkerDecision(
        record=replace(existing, lapsed_at_ms=existing.expires_at_ms), reply=WorkerExpired(status="lapsed")
    )
