"""The worker registry: who is alive, which lanes, kinds and capabilities they have."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import (
    InstanceReassigned,
    InvalidCapabilities,
    InvalidInput,
    InvalidPolicy,
    WorkerNotRegistered,
)
from flowfabric.contract.ids import DEFAULT_NAMESPACE, Lane, Namespace, WorkerId, WorkerInstance
from flowfabric.contract.manifest import Kind, Repeatable, Scope, operation, reading
from flowfabric.contract.policies import KindDefaults, check_capabilities


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One registered worker instance as stored."""

    worker_id: WorkerId
    worker_instance: WorkerInstance
    namespace: Namespace
    lanes: tuple[Lane, ...]
    kinds: tuple[ids.Kind, ...]
    """Empty means any kind."""
    capabilities: tuple[str, ...]
    liveness_ttl_ms: int
    registered_at_ms: int
    last_heartbeat_at_ms: int
    expires_at_ms: int
    """The heartbeat lapses then."""
    lapsed_at_ms: int | None = None


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One registered worker instance as read."""

    worker_id: WorkerId
    worker_instance: WorkerInstance
    namespace: Namespace
    lanes: tuple[Lane, ...]
    kinds: tuple[ids.Kind, ...]
    capabilities: tuple[str, ...]
    liveness_ttl_ms: int
    registered_at_ms: int
    last_heartbeat_at_ms: int
    expires_at_ms: int
    alive: bool
    leases: int
    """How many leases it holds."""


def is_alive(record: WorkerRecord, now_ms: int) -> bool:
    """Say whether the heartbeat has not lapsed."""
    return record.lapsed_at_ms is None and record.expires_at_ms > now_ms


def info(record: WorkerRecord, leases: int, now_ms: int) -> WorkerInfo:
    """Project one registered instance."""
    return WorkerInfo(
        worker_id=record.worker_id,
        worker_instance=record.worker_instance,
        namespace=record.namespace,
        lanes=record.lanes,
        kinds=record.kinds,
        capabilities=record.capabilities,
        liveness_ttl_ms=record.liveness_ttl_ms,
        registered_at_ms=record.registered_at_ms,
        last_heartbeat_at_ms=record.last_heartbeat_at_ms,
        expires_at_ms=record.expires_at_ms,
        alive=is_alive(record, now_ms),
        leases=leases,
    )


class WorkerRegister(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Announce a worker instance, what it can run, and the defaults of the kinds it handles."""

    worker_id: WorkerId
    worker_instance: WorkerInstance
    namespace: Namespace = DEFAULT_NAMESPACE
    lanes: tuple[Lane, ...]
    kinds: tuple[ids.Kind, ...] = ()
    capabilities: tuple[str, ...] = ()
    liveness_ttl_ms: int = limits.LIVENESS_TTL_DEFAULT_MS
    defaults: tuple[KindDefaults, ...] = ()

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_name(self.worker_id, "worker_id")
        ids.check_name(self.worker_instance, "worker_instance")
        ids.check_name(self.namespace, "namespace")
        if not 1 <= len(self.lanes) <= limits.CLAIM_LANES_MAX:
            raise InvalidInput(f"lanes holds 1 to {limits.CLAIM_LANES_MAX} names", field="lanes")
        for lane in self.lanes:
            ids.check_lane(lane)
        if len(self.kinds) > limits.WORKER_KINDS_MAX or len(self.defaults) > limits.WORKER_KINDS_MAX:
            raise InvalidInput(f"at most {limits.WORKER_KINDS_MAX} kinds", field="kinds")
        for kind in self.kinds:
            ids.check_name(kind, "kinds")
        ids.check_range(
            self.liveness_ttl_ms, "liveness_ttl_ms", limits.LIVENESS_TTL_MIN_MS, limits.LIVENESS_TTL_MAX_MS
        )
        check_capabilities(self.capabilities, "worker")
        for default in self.defaults:
            default.check()


class WorkerRegistered(msgspec.Struct, frozen=True, kw_only=True):
    """`status` says whether the instance is new; `next_expiry_ms` when its liveness lapses without a heartbeat."""

    status: Literal["registered", "refreshed"]
    next_expiry_at_ms: int


class WorkerHeartbeat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say that a worker instance is alive. A lease renewal counts as one."""

    worker_instance: WorkerInstance
    namespace: Namespace = DEFAULT_NAMESPACE

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_name(self.worker_instance, "worker_instance")
        ids.check_name(self.namespace, "namespace")


class WorkerRefreshed(msgspec.Struct, frozen=True, kw_only=True):
    """When the liveness lapses without another heartbeat."""

    next_expiry_at_ms: int


class WorkerMarkDead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Declare a worker instance dead: its leases expire at once."""

    worker_instance: WorkerInstance
    namespace: Namespace = DEFAULT_NAMESPACE
    reason: str = "marked_dead"

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_name(self.worker_instance, "worker_instance")
        ids.check_name(self.namespace, "namespace")
        ids.check_text(self.reason, "reason", limits.MARK_DEAD_REASON_BYTES_MAX)
        if any(ord(character) < 32 or ord(character) == 127 for character in self.reason):
            raise InvalidInput("reason must not contain control characters", field="reason")


class WorkerMarkedDead(msgspec.Struct, frozen=True, kw_only=True):
    """`marked`, or `not_registered` when nothing was known of it; leases of the instance are expired either way."""

    status: Literal["marked", "not_registered"]
    leases_expired: int


class WorkerExpire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mark a registration as lapsed when its heartbeat is overdue, and forget it long after."""

    worker_instance: WorkerInstance
    namespace: Namespace = DEFAULT_NAMESPACE

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_name(self.worker_instance, "worker_instance")
        ids.check_name(self.namespace, "namespace")


class WorkerExpired(msgspec.Struct, frozen=True, kw_only=True):
    """What was done: nothing was due, the registration lapsed, or it was removed."""

    status: Literal["not_due", "lapsed", "removed"]


class WorkerList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """List the registered instances of a namespace, in the order of their names."""

    namespace: Namespace = DEFAULT_NAMESPACE
    cursor: str | None = None
    limit: int = limits.PAGE_MAX

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_name(self.namespace, "namespace")
        ids.check_range(self.limit, "limit", 1, limits.PAGE_MAX)
        if self.cursor is not None:
            ids.check_name(self.cursor, "cursor")


class WorkerPage(msgspec.Struct, frozen=True, kw_only=True):
    """Worker instances in the order of their names."""

    workers: tuple[WorkerInfo, ...]
    next_cursor: str | None


class WorkerStore(Protocol):
    """Operations on the worker registry."""

    @operation(
        "POST /v1/workers",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, InvalidCapabilities, InvalidPolicy, InstanceReassigned),
        body_max=limits.BODY_SIGNAL_MAX,
    )
    async def register(self, command: WorkerRegister) -> WorkerRegistered:
        """Register a worker instance, or refresh its registration with new lanes, kinds and capabilities.

        The published defaults of its kinds outlive it: creates that omit lane, priority or policy fields take them.
        """
        ...

    @operation(
        "POST /v1/workers/{worker_instance}/heartbeat",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, WorkerNotRegistered),
    )
    async def heartbeat(self, command: WorkerHeartbeat) -> WorkerRefreshed:
        """Say that a worker instance is alive."""
        ...

    @operation(
        "POST /v1/workers/{worker_instance}/mark-dead",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput,),
    )
    async def mark_dead(self, command: WorkerMarkDead) -> WorkerMarkedDead:
        """Declare a worker instance dead: it leaves the registry and its leases expire at once."""
        ...

    @operation(
        "POST /v1/workers/{worker_instance}/expire",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput,),
    )
    async def expire(self, command: WorkerExpire) -> WorkerExpired:
        """Mark a registration whose heartbeat is overdue as lapsed, or remove one that lapsed long ago.

        The engine's timers do this by themselves. Leases are not touched: they expire on their own.
        """
        ...

    @reading(
        "GET /v1/workers",
        refuses=(InvalidInput,),
        paging=True,
    )
    async def list(self, command: WorkerList) -> WorkerPage:
        """List the registered worker instances of a namespace."""
        ...
