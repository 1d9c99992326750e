"""Leases: the exclusive, time-limited right of one worker instance to mutate an active execution."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import (
    CapabilityMismatch,
    ClaimGrantExpired,
    ExecutionNotActive,
    ExecutionNotEligible,
    ExecutionNotFound,
    ExecutionNotLeaseable,
    ExecutionNotReclaimable,
    FenceRequired,
    GrantAlreadyExists,
    InvalidCapabilities,
    InvalidClaimGrant,
    InvalidInput,
    InvalidOffset,
    LaneNotAccepting,
    LeaseConflict,
    LeaseExpired,
    LeaseRevoked,
    NotAResumedExecution,
    PartialFence,
    StaleLease,
    UseClaimResumed,
)
from flowfabric.contract.ids import (
    DEFAULT_NAMESPACE,
    AttemptId,
    ClaimId,
    ExecutionId,
    Lane,
    LeaseId,
    Namespace,
    WorkerId,
    WorkerInstance,
)
from flowfabric.contract.manifest import Kind, Repeatable, Scope, operation, reading
from flowfabric.contract.payloads import Fence, Payload
from flowfabric.contract.policies import ExecutionPolicy, check_capabilities
from flowfabric.contract.states import AttemptType, GrantPurpose, LeaseEventName, PublicState


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The latest lease of an execution as stored; its id stays readable after it ended."""

    lease_id: LeaseId
    lease_epoch: int
    worker_id: WorkerId
    worker_instance: WorkerInstance
    claim_id: ClaimId | None = None
    acquired_at_ms: int
    renewed_at_ms: int | None = None
    ttl_ms: int
    expires_at_ms: int
    lost_at_ms: int | None = None
    """When it expired, was revoked or handed back."""
    lost_reason: str | None = None


class GrantRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A short-lived permission for one worker to take one execution."""

    purpose: GrantPurpose
    worker_id: WorkerId
    worker_instance: WorkerInstance
    granted_at_ms: int
    expires_at_ms: int


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as its holder gets it: everything needed to run the execution and to prove the right to."""

    execution_id: ExecutionId
    namespace: Namespace
    lane: Lane
    route: str
    kind: ids.Kind
    priority: int
    input: Payload
    tags: dict[str, str]
    policy: ExecutionPolicy
    """The effective policy: what create gave, filled from the kind's defaults."""
    idempotency_key: str | None
    traceparent: str | None
    lease_id: LeaseId
    lease_epoch: int
    lease_ttl_ms: int
    lease_expires_at_ms: int
    renewal_deadline_ms: int
    """Two thirds of the lease's life: renew before then."""
    attempt_id: AttemptId
    attempt_index: int
    attempt_type: AttemptType
    resumed: bool
    """The attempt was interrupted by delay or wait_children and continues."""
    attempt_timeout_at_ms: int | None
    deadline_at_ms: int | None
    retry_count: int
    max_retries: int
    frame_sequence: int
    """The last frame sequence of this attempt's stream; the next frame is one more."""
    created_at_ms: int

    @property
    def fence(self) -> Fence:
        """The proof of this lease, for every operation under it."""
        return Fence(
            lease_id=self.lease_id,
            lease_epoch=self.lease_epoch,
            attempt_id=self.attempt_id,
            lane=self.lane,
            route=self.route,
        )


class LeaseClaim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Choose, admit and lease up to `max_tasks` executions at once.

    `claim_id` names the set of leases: repeating the claim while they live returns the same ones.
    """

    worker_id: WorkerId
    worker_instance: WorkerInstance
    namespace: Namespace = DEFAULT_NAMESPACE
    lanes: tuple[Lane, ...]
    kinds: tuple[ids.Kind, ...] = ()
    """Empty means any kind."""
    capabilities: tuple[str, ...] = ()
    max_tasks: int = 1
    lease_ttl_ms: int = limits.LEASE_TTL_DEFAULT_MS
    wait_ms: int = 0
    claim_id: ClaimId | None = None

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_name(self.worker_id, "worker_id")
        ids.check_name(self.worker_instance, "worker_instance")
        ids.check_name(self.namespace, "namespace")
        if not 1 <= len(self.lanes) <= limits.CLAIM_LANES_MAX:
            raise InvalidInput(f"lanes holds 1 to {limits.CLAIM_LANES_MAX} names", field="lanes")
        for lane in self.lanes:
            ids.check_lane(lane)
        if len(self.kinds) > limits.CLAIM_KINDS_MAX:
            raise InvalidInput(f"at most {limits.CLAIM_KINDS_MAX} kinds", field="kinds")
        for kind in self.kinds:
            ids.check_name(kind, "kinds")
        ids.check_range(self.max_tasks, "max_tasks", 1, limits.CLAIM_TASKS_MAX)
        ids.check_range(self.lease_ttl_ms, "lease_ttl_ms", limits.LEASE_TTL_MIN_MS, limits.LEASE_TTL_MAX_MS)
        ids.check_range(self.wait_ms, "wait_ms", 0, limits.WAIT_MAX_MS)
        if self.claim_id is not None:
            ids.check_uuid(self.claim_id, "claim_id")
        check_capabilities(self.capabilities, "worker")


class LeasesClaimed(msgspec.Struct, frozen=True, kw_only=True):
    """The leases, best first; empty when nothing that this worker may run is eligible."""

    leases: tuple[Lease, ...]


class LeaseGrant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Permit one worker to take an execution within `grant_ttl_ms`.

    Without `execution_id` the best eligible execution of `lanes` is chosen (purpose `claim` or `resume` as it needs).
    """

    worker_id: WorkerId
    worker_instance: WorkerInstance
    namespace: Namespace = DEFAULT_NAMESPACE
    execution_id: ExecutionId | None = None
    lanes: tuple[Lane, ...] = ()
    capabilities: tuple[str, ...] = ()
    purpose: GrantPurpose | None = None
    """Absent: whatever the execution's state calls for."""
    grant_ttl_ms: int = limits.GRANT_TTL_DEFAULT_MS

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_name(self.worker_id, "worker_id")
        ids.check_name(self.worker_instance, "worker_instance")
        ids.check_name(self.namespace, "namespace")
        if self.execution_id is not None:
            ids.parse_execution_id(self.execution_id)
            if self.lanes:
                raise InvalidInput("give execution_id or lanes, not both", field="lanes")
        elif not 1 <= len(self.lanes) <= limits.CLAIM_LANES_MAX:
            raise InvalidInput(f"give execution_id, or 1 to {limits.CLAIM_LANES_MAX} lanes", field="lanes")
        elif self.purpose is GrantPurpose.RECLAIM:
            raise InvalidInput("a reclaim grant names its execution_id", field="execution_id")
        for lane in self.lanes:
            ids.check_lane(lane)
        ids.check_range(self.grant_ttl_ms, "grant_ttl_ms", limits.GRANT_TTL_MIN_MS, limits.GRANT_TTL_MAX_MS)
        check_capabilities(self.capabilities, "worker")


class LeaseGranted(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="granted"):
    """The grant."""

    execution_id: ExecutionId
    lane: Lane
    purpose: GrantPurpose
    expires_at_ms: int


class NothingToGrant(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="none"):
    """No eligible execution in these lanes that this worker may run."""


class ReclaimCapExceeded(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="reclaim_cap_exceeded"
):
    """The execution was taken over as often as its policy allows: it has ended as failed."""

    execution_id: ExecutionId
    reclaim_count: int


class LeaseClaimGranted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Use a grant. The lease and attempt ids may be chosen by the caller; the same ids again get the same lease."""

    execution_id: ExecutionId
    worker_id: WorkerId
    worker_instance: WorkerInstance
    purpose: GrantPurpose | None = None
    """Absent: the grant's own."""
    lease_ttl_ms: int = limits.LEASE_TTL_DEFAULT_MS
    lease_id: LeaseId | None = None
    attempt_id: AttemptId | None = None

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_name(self.worker_id, "worker_id")
        ids.check_name(self.worker_instance, "worker_instance")
        ids.check_range(self.lease_ttl_ms, "lease_ttl_ms", limits.LEASE_TTL_MIN_MS, limits.LEASE_TTL_MAX_MS)
        if self.lease_id is not None:
            ids.check_uuid(self.lease_id, "lease_id")
        if self.attempt_id is not None:
            ids.check_uuid(self.attempt_id, "attempt_id")


class LeaseTaken(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="taken"):
    """The lease that the grant turned into."""

    lease: Lease


class LeaseRenew(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Extend a live lease to now + `lease_ttl_ms` (absent: its own TTL)."""

    execution_id: ExecutionId
    fence: Fence | None = None
    lease_ttl_ms: int | None = None

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        if self.lease_ttl_ms is not None:
            ids.check_range(
                self.lease_ttl_ms, "lease_ttl_ms", limits.LEASE_TTL_MIN_MS, limits.LEASE_TTL_MAX_MS
            )
        if self.fence is None:
            raise FenceRequired
        self.fence.check()


class LeaseRenewed(msgspec.Struct, frozen=True, kw_only=True):
    """When the lease runs out now, and by when it should be renewed again."""

    lease_expires_at_ms: int
    renewal_deadline_ms: int


class LeaseRelease(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hand an execution back, as a draining worker does: the next claim starts a new attempt at once."""

    execution_id: ExecutionId
    fence: Fence | None = None
    reason: str = "released"

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_text(self.reason, "reason", limits.REASON_BYTES_MAX)
        if self.fence is None:
            raise FenceRequired
        self.fence.check()


class LeaseReleased(msgspec.Struct, frozen=True, kw_only=True):
    """The execution is claimable again."""

    execution_id: ExecutionId
    public_state: PublicState


class LeaseRevoke(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take an execution away from its worker; the worker's later writes are refused."""

    execution_id: ExecutionId
    expected_lease_id: LeaseId | None = None
    worker_instance: WorkerInstance | None = None
    """Absent: whoever holds it."""
    reason: str = "operator_revoke"

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        if self.expected_lease_id is not None:
            ids.check_uuid(self.expected_lease_id, "expected_lease_id")
        if self.worker_instance is not None:
            ids.check_name(self.worker_instance, "worker_instance")
        ids.check_text(self.reason, "reason", limits.REASON_BYTES_MAX)


class LeaseRevokedReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="revoked"):
    """The lease that was revoked."""

    lease_id: LeaseId
    lease_epoch: int


class LeaseAlreadyGone(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="already_satisfied"
):
    """There was nothing to revoke."""

    reason: Literal["no_active_lease", "already_revoked", "already_expired", "different_worker_instance"]


class LeaseExpire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Record that a lease or an unused grant ran out, and make the execution claimable once its grace is over."""

    execution_id: ExecutionId

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)


class LeaseExpireDone(msgspec.Struct, frozen=True, kw_only=True):
    """What was done.

    `expired`: just recorded; `reclaimable`: the grace is over and it can be claimed; `failed`: at the reclaim cap;
    `grant_expired`: an unused grant ran out; `not_due`: renewed, still in its grace, or nothing to do.
    """

    status: Literal["expired", "reclaimable", "failed", "grant_expired", "not_due"]


class LeaseListExpired(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """List active executions whose lease expired, was revoked or handed back, by (instant, execution id)."""

    namespace: Namespace | None = None
    cursor: str | None = None
    limit: int = limits.EXPIRED_LEASE_PAGE_DEFAULT

    def check(self) -> None:
        """Refuse malformed fields."""
        if self.namespace is not None:
            ids.check_name(self.namespace, "namespace")
        ids.check_range(self.limit, "limit", 1, limits.EXPIRED_LEASE_PAGE_MAX)
        if self.cursor is not None and len(self.cursor) > limits.CURSOR_LENGTH_MAX:
            raise InvalidInput("cursor is not one that lease.list_expired returned", field="cursor")


class ExpiredLease(msgspec.Struct, frozen=True, kw_only=True):
    """One lease that ran out or was taken away."""

    execution_id: ExecutionId
    namespace: Namespace
    lease_id: LeaseId
    lease_epoch: int
    worker_instance: WorkerInstance
    expires_at_ms: int
    """When it ran out, or was revoked or handed back."""
    attempt_index: int
    reason: str


class ExpiredLeasePage(msgspec.Struct, frozen=True, kw_only=True):
    """Oldest first."""

    leases: tuple[ExpiredLease, ...]
    next_cursor: str | None


class LeaseEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of an execution's lease history."""

    event_id: int = 0
    at_ms: int
    name: LeaseEventName
    reason: str | None = None
    lease_id: LeaseId | None = None
    lease_epoch: int
    attempt_id: AttemptId | None = None
    attempt_index: int | None = None
    worker_instance: WorkerInstance | None = None
    outcome: str | None = None
    """Set when this step ended the execution: the completion event."""
    actor: str | None = None
    """Who acted, when it was not the lease's holder."""


class LeaseHistory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read an execution's lease history, oldest first; about the latest 1,000 entries are kept."""

    execution_id: ExecutionId
    cursor: str | None = None
    limit: int = limits.PAGE_DEFAULT

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_range(self.limit, "limit", 1, limits.PAGE_MAX)
        if self.cursor is not None and not (
            self.cursor.isascii() and self.cursor.isdigit() and len(self.cursor) < 19
        ):
            raise InvalidInput("cursor is not one that lease.history returned", field="cursor")


class LeaseHistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Entries, oldest first."""

    events: tuple[LeaseEvent, ...]
    next_cursor: str | None


FENCED = (
    InvalidInput,
    FenceRequired,
    PartialFence,
    ExecutionNotFound,
    ExecutionNotActive,
    LeaseRevoked,
    LeaseExpired,
    StaleLease,
)
"""What every fenced operation may refuse with, in guard order."""


class LeaseStore(Protocol):
    """Operations on leases."""

    @operation(
        "POST /v1/workers/{worker_id}/claim",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.CLAIM_ID,
        refuses=(InvalidInput, InvalidCapabilities),
        hot=True,
        long_wait=True,
    )
    async def claim(self, command: LeaseClaim) -> LeasesClaimed:
        """Lease up to `max_tasks` eligible executions, highest priority first, then oldest.

        Looks at every lane, kind and capability set that the worker satisfies; with `wait_ms` it waits until work may
        exist. A repeat with the same claim id returns the leases of that id that are still live.
        """
        ...

    @operation(
        "POST /v1/workers/{worker_id}/grant",
        "POST /v1/executions/{execution_id}/reclaim?purpose=reclaim",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NO,
        refuses=(
            InvalidInput,
            InvalidCapabilities,
            ExecutionNotFound,
            ExecutionNotReclaimable,
            ExecutionNotEligible,
            GrantAlreadyExists,
            LaneNotAccepting,
            UseClaimResumed,
            NotAResumedExecution,
            CapabilityMismatch,
        ),
    )
    async def grant(self, command: LeaseGrant) -> LeaseGranted | NothingToGrant | ReclaimCapExceeded:
        """Permit one worker to take one execution, for schedulers that hand work to others.

        A granted execution leaves the eligible index until the grant is used or runs out.
        """
        ...

    @operation(
        "POST /v1/executions/{execution_id}/claim-granted",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.ID,
        refuses=(
            InvalidInput,
            ExecutionNotFound,
            ExecutionNotLeaseable,
            LeaseConflict,
            InvalidClaimGrant,
            ClaimGrantExpired,
            UseClaimResumed,
            NotAResumedExecution,
            ExecutionNotReclaimable,
        ),
    )
    async def claim_granted(self, command: LeaseClaimGranted) -> LeaseTaken | ReclaimCapExceeded:
        """Use a grant: take the lease on the execution it names.

        The grant is consumed; a repeat with the same `lease_id` and `attempt_id` returns the same lease.
        """
        ...

    @operation(
        "POST /v1/executions/{execution_id}/renew",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.FENCE,
        refuses=FENCED,
        hot=True,
    )
    async def renew(self, command: LeaseRenew) -> LeaseRenewed:
        """Extend a live lease. It counts as the worker's heartbeat.

        A call that arrives after expiry records the expiry and is refused.
        """
        ...

    @operation(
        "POST /v1/executions/{execution_id}/release",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.FENCE,
        refuses=FENCED,
    )
    async def release(self, command: LeaseRelease) -> LeaseReleased:
        """Hand an execution back: the attempt is interrupted and the next claim starts a new one at once.

        It counts towards no cap and waits for no grace.
        """
        ...

    @operation(
        "POST /v1/executions/{execution_id}/revoke-lease",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, ExecutionNotFound, ExecutionNotActive, StaleLease),
    )
    async def revoke(self, command: LeaseRevoke) -> LeaseRevokedReply | LeaseAlreadyGone:
        """Take an execution away from its worker; it becomes claimable again by itself."""
        ...

    @operation(
        "POST /v1/executions/{execution_id}/expire-lease",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, ExecutionNotFound),
    )
    async def expire(self, command: LeaseExpire) -> LeaseExpireDone:
        """Record a lease that ran out, and make the execution claimable when its grace is over.

        The engine's timers do this by themselves; safety never depends on when.
        """
        ...

    @reading(
        "GET /v1/leases/expired",
        refuses=(InvalidInput, InvalidOffset),
        paging=True,
    )
    async def list_expired(self, command: LeaseListExpired) -> ExpiredLeasePage:
        """List active executions whose lease expired, was revoked or handed back, oldest first."""
        ...

    @reading(
        "GET /v1/executions/{execution_id}/leases",
        refuses=(InvalidInput, ExecutionNotFound),
        paging=True,
    )
    async def history(self, command: LeaseHistory) -> LeaseHistoryPage:
        """Read an execution's lease history, oldest first."""
        ...
