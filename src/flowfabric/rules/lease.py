"""Rules of leases: who gets an execution, for how long, and how a lease is lost."""

from __future__ import annotations

from typing import Any, Literal

from msgspec.structs import replace

from flowfabric.contract.attempt import AttemptRecord
from flowfabric.contract.errors import (
    CapabilityMismatch,
    ClaimGrantExpired,
    ExecutionNotEligible,
    ExecutionNotLeaseable,
    ExecutionNotReclaimable,
    GrantAlreadyExists,
    InvalidClaimGrant,
    LaneNotAccepting,
    LeaseConflict,
    NotAResumedExecution,
    Refused,
    StaleLease,
    UseClaimResumed,
)
from flowfabric.contract.execution import ExecutionRecord
from flowfabric.contract.ids import AttemptId, ClaimId, LeaseId, WorkerId, WorkerInstance
from flowfabric.contract.indexing import is_ready
from flowfabric.contract.lease import (
    GrantRecord,
    Lease,
    LeaseAlreadyGone,
    LeaseClaim,
    LeaseClaimGranted,
    LeaseEvent,
    LeaseExpire,
    LeaseExpireDone,
    LeaseGrant,
    LeaseGranted,
    LeaseRecord,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseRenewed,
    LeaseRevoke,
    LeaseRevokedReply,
    ReclaimCapExceeded,
)
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import (
    LANE_ACCEPTS_CLAIMS,
    LEASED,
    AttemptRecordState,
    AttemptState,
    AttemptType,
    EligibilityState,
    GrantPurpose,
    LaneState,
    LeaseEventName,
    LifecyclePhase,
    OwnershipState,
    PublicState,
    StreamClosedReason,
    TerminalOutcome,
)
from flowfabric.rules import execution, fencing, transitions
from flowfabric.rules.decision import Decision, Loaded

_LOST = (OwnershipState.LEASE_EXPIRED_RECLAIMABLE, OwnershipState.LEASE_REVOKED)
_TYPE_OF = {
    AttemptState.PENDING_FIRST_ATTEMPT: AttemptType.INITIAL,
    AttemptState.PENDING_RETRY_ATTEMPT: AttemptType.RETRY,
    AttemptState.PENDING_REPLAY_ATTEMPT: AttemptType.REPLAY,
}


def renewal_deadline_ms(lease: LeaseRecord) -> int:
    """Return by when the lease should be renewed: two thirds of its time."""
    return lease.expires_at_ms - lease.ttl_ms // 3


def view(loaded: Loaded, payload: Payload, frame_sequence: int) -> Lease:
    """Project the live lease as its holder gets it; `frame_sequence` is the last one of the attempt's stream."""
    definition, record = loaded.definition, loaded.record
    lease, attempt = record.lease, record.attempt
    assert lease is not None and attempt is not None, "a lease is viewed after it was taken"
    retry = definition.policy.retry_policy
    return Lease(
        execution_id=definition.execution_id,
        namespace=definition.namespace,
        lane=definition.lane,
        route=definition.route,
        kind=definition.kind,
        priority=record.priority,
        input=payload,
        tags=record.tags,
        policy=definition.policy,
        idempotency_key=definition.idempotency_key,
        traceparent=definition.traceparent,
        lease_id=lease.lease_id,
        lease_epoch=lease.lease_epoch,
        lease_ttl_ms=lease.ttl_ms,
        lease_expires_at_ms=lease.expires_at_ms,
        renewal_deadline_ms=renewal_deadline_ms(lease),
        attempt_id=attempt.attempt_id,
        attempt_index=attempt.attempt_index,
        attempt_type=attempt.attempt_type,
        resumed=attempt.lease_epoch != lease.lease_epoch,
        attempt_timeout_at_ms=attempt.timeout_at_ms,
        deadline_at_ms=record.deadline_at_ms,
        retry_count=record.retry_count,
        max_retries=retry.max_retries if retry is not None else 0,
        frame_sequence=frame_sequence,
        created_at_ms=definition.created_at_ms,
    )


def _take(
    loaded: Loaded,
    *,
    worker_id: WorkerId,
    worker_instance: WorkerInstance,
    ttl_ms: int,
    claim_id: ClaimId | None,
    lease_id: LeaseId,
    attempt_id: AttemptId,
    now_ms: int,
) -> Decision[Any]:
    """Lease the execution: continue its interrupted attempt, or start the attempt its state calls for."""
    record = loaded.record
    epoch = record.lease_epoch + 1
    lease = LeaseRecord(
        lease_id=lease_id,
        lease_epoch=epoch,
        worker_id=worker_id,
        worker_instance=worker_instance,
        claim_id=claim_id,
        acquired_at_ms=now_ms,
        ttl_ms=ttl_ms,
        expires_at_ms=now_ms + ttl_ms,
    )
    timeout = loaded.definition.policy.timeout_policy
    timeout_ms = timeout.attempt_timeout_ms if timeout is not None else None
    timeout_at_ms = now_ms + timeout_ms if timeout_ms is not None else None
    former = record.attempt
    superseded: AttemptRecord | None = None
    reclaiming = record.state.lifecycle_phase is LifecyclePhase.ACTIVE
    if (
        record.state.attempt_state is AttemptState.ATTEMPT_INTERRUPTED
        and former is not None
        and not reclaiming
    ):
        attempt = replace(
            former,
            state=AttemptRecordState.STARTED,
            worker_id=worker_id,
            worker_instance=worker_instance,
            timeout_at_ms=timeout_at_ms,
        )
        total = record.total_attempt_count
    else:
        if reclaiming and former is not None:
            former = transitions.close_stream(former, now_ms, StreamClosedReason.RECLAIMED)
            former = replace(
                former, state=AttemptRecordState.INTERRUPTED_RECLAIMED, ended_at_ms=now_ms, timeout_at_ms=None
            )
        superseded = former
        attempt = AttemptRecord(
            attempt_id=attempt_id,
            attempt_index=record.total_attempt_count,
            attempt_type=AttemptType.RECLAIM if reclaiming else _TYPE_OF[record.state.attempt_state],
            state=AttemptRecordState.STARTED,
            started_at_ms=now_ms,
            worker_id=worker_id,
            worker_instance=worker_instance,
            lease_epoch=epoch,
            timeout_at_ms=timeout_at_ms,
            previous_attempt_index=former.attempt_index if former is not None else None,
        )
        total = record.total_attempt_count + 1
    leased = replace(
        record,
        state=LEASED,
        lease=lease,
        lease_epoch=epoch,
        attempt=attempt,
        total_attempt_count=total,
        reclaim_count=record.reclaim_count + (1 if reclaiming and not record.reclaim_exempt else 0),
        reclaim_at_ms=None,
        reclaim_ready=False,
        reclaim_exempt=False,
        grant=None,
        started_at_ms=record.started_at_ms if record.started_at_ms is not None else now_ms,
        last_mutation_at_ms=now_ms,
        history_count=record.history_count + 1,
    )
    happened = transitions.event(
        leased, LeaseEventName.RECLAIMED if reclaiming else LeaseEventName.ACQUIRED, now_ms
    )
    return Decision(record=leased, superseded=superseded, events=(happened,))


def _end_instead(loaded: Loaded, now_ms: int) -> Decision[Any] | None:
    """Return the end of an execution that must not run any more: its deadline passed, or it is at the reclaim cap."""
    record = loaded.record
    if record.deadline_at_ms is not None and record.deadline_at_ms <= now_ms:
        ended, _, happened = execution.expire_at_deadline(loaded, now_ms, None)
        return Decision(record=replace(ended, history_count=record.history_count + 1), events=(happened,))
    if record.state.lifecycle_phase is LifecyclePhase.ACTIVE and transitions.at_reclaim_cap(loaded):
        return _end_at_cap(loaded, now_ms)
    return None


def _end_at_cap(loaded: Loaded, now_ms: int) -> Decision[Any]:
    """Return the end of lost work that may not be taken over once more."""
    record = loaded.record
    happened = transitions.event(
        record,
        LeaseEventName.ENDED,
        now_ms,
        reason=transitions.MAX_RECLAIMS_EXCEEDED,
        outcome=TerminalOutcome.FAILED,
    )
    ended = transitions.end_at_cap(loaded, now_ms)
    return Decision(record=replace(ended, history_count=record.history_count + 1), events=(happened,))


def claim(
    loaded: Loaded, command: LeaseClaim, *, lease_id: LeaseId, attempt_id: AttemptId, now_ms: int
) -> Decision[Any]:
    """Lease an execution from the eligible index.

    The decision's record is leased; or terminal, when its deadline passed or it is at the reclaim cap: go on to the
    next candidate. An entry that is not ready (index and record disagree) is refused.
    """
    if not is_ready(loaded.record):
        return fencing.refuse(ExecutionNotLeaseable())
    ended = _end_instead(loaded, now_ms)
    if ended is not None:
        return ended
    return _take(
        loaded,
        worker_id=command.worker_id,
        worker_instance=command.worker_instance,
        ttl_ms=command.lease_ttl_ms,
        claim_id=command.claim_id,
        lease_id=lease_id,
        attempt_id=attempt_id,
        now_ms=now_ms,
    )


def _purpose_of(record: ExecutionRecord) -> GrantPurpose:
    if record.state.lifecycle_phase is LifecyclePhase.ACTIVE:
        return GrantPurpose.RECLAIM
    if record.state.attempt_state is AttemptState.ATTEMPT_INTERRUPTED:
        return GrantPurpose.RESUME
    return GrantPurpose.CLAIM


def _wrong_purpose(asked: GrantPurpose | None, needed: GrantPurpose) -> Refused | None:
    if asked is None or asked is needed:
        return None
    if asked is GrantPurpose.RECLAIM:
        return ExecutionNotReclaimable()
    if needed is GrantPurpose.RESUME:
        return UseClaimResumed()
    if asked is GrantPurpose.RESUME:
        return NotAResumedExecution()
    return ExecutionNotEligible("the execution lost its lease: use a grant with purpose `reclaim`")


def grant(loaded: Loaded, command: LeaseGrant, *, lane_state: LaneState, now_ms: int) -> Decision[Any]:
    """Permit one worker to take this execution; it leaves the eligible index until the grant is used or runs out."""
    found = loaded
    events: tuple[LeaseEvent, ...] = ()
    if transitions.is_overdue(found.record, now_ms):
        after, happened = transitions.expire_lease(found, now_ms)
        found = Loaded(found.definition, replace(after, history_count=after.history_count + 1))
        events = (happened,)
    record = found.record
    refusal = _grant_refusal(found, command, lane_state, now_ms)
    if refusal is not None:
        return Decision(refusal=refusal, record=record if events else None, events=events)
    execution_id = found.definition.execution_id
    if record.state.lifecycle_phase is LifecyclePhase.ACTIVE and transitions.at_reclaim_cap(found):
        ended = _end_at_cap(found, now_ms)
        return replace(
            ended,
            reply=ReclaimCapExceeded(execution_id=execution_id, reclaim_count=record.reclaim_count),
            events=events + ended.events,
        )
    purpose = _purpose_of(record)
    granted = GrantRecord(
        purpose=purpose,
        worker_id=command.worker_id,
        worker_instance=command.worker_instance,
        granted_at_ms=now_ms,
        expires_at_ms=now_ms + command.grant_ttl_ms,
    )
    reply = LeaseGranted(
        execution_id=execution_id,
        lane=found.definition.lane,
        purpose=purpose,
        expires_at_ms=granted.expires_at_ms,
    )
    return Decision(
        reply=reply, record=replace(record, grant=granted, last_mutation_at_ms=now_ms), events=events
    )


def _grant_refusal(loaded: Loaded, command: LeaseGrant, lane_state: LaneState, now_ms: int) -> Refused | None:
    definition, record = loaded.definition, loaded.record
    lost = record.state.ownership_state in _LOST
    if command.purpose is GrantPurpose.RECLAIM and not lost:
        return ExecutionNotReclaimable(public_state=record.state.public_state.value)
    if not lost and record.state.eligibility_state is not EligibilityState.ELIGIBLE_NOW:
        return ExecutionNotEligible(public_state=record.state.public_state.value)
    if record.grant is not None and record.grant.expires_at_ms > now_ms:
        return GrantAlreadyExists(expires_at_ms=record.grant.expires_at_ms)
    if lane_state not in LANE_ACCEPTS_CLAIMS:
        return LaneNotAccepting(
            f"lane {definition.lane} is {lane_state.value} and gives no work out",
            lane=definition.lane,
            state=lane_state.value,
        )
    wrong = _wrong_purpose(command.purpose, _purpose_of(record))
    if wrong is not None:
        return wrong
    missing = sorted(set(definition.required_capabilities) - set(command.capabilities))
    if missing:
        return CapabilityMismatch(f"the worker lacks {', '.join(missing)}", missing=missing)
    return None


def claim_granted(
    loaded: Loaded, command: LeaseClaimGranted, *, lease_id: LeaseId, attempt_id: AttemptId, now_ms: int
) -> Decision[Any]:
    """Use a grant. Without a reply in the decision, the lease is the one that `view` shows afterwards."""
    record = loaded.record
    phase = record.state.lifecycle_phase
    if record.state.ownership_state is OwnershipState.LEASED:
        lease = record.lease
        if (
            lease is not None
            and command.lease_id == lease.lease_id
            and command.worker_instance == lease.worker_instance
            and record.attempt is not None
            and (
                command.attempt_id in (None, record.attempt.attempt_id)
                # A resumed attempt keeps its own id, whatever id the caller offered for a new one.
                or record.attempt.lease_epoch != lease.lease_epoch
            )
            and lease.expires_at_ms > now_ms
        ):
            return Decision()
        return fencing.refuse(LeaseConflict())
    if phase is not LifecyclePhase.RUNNABLE and phase is not LifecyclePhase.ACTIVE:
        return fencing.refuse(ExecutionNotLeaseable(public_state=record.state.public_state.value))
    given = record.grant
    if given is None or given.worker_id != command.worker_id:
        return fencing.refuse(InvalidClaimGrant())
    if given.expires_at_ms <= now_ms:
        return fencing.refuse(ClaimGrantExpired(expired_at_ms=given.expires_at_ms))
    wrong = _wrong_purpose(command.purpose, _purpose_of(record))
    if isinstance(wrong, ExecutionNotEligible):
        wrong = ExecutionNotLeaseable(wrong.message)
    if wrong is not None:
        return fencing.refuse(wrong)
    ended = _end_instead(loaded, now_ms)
    if ended is not None:
        assert ended.record is not None, "an end is written"
        if ended.record.state.terminal_outcome is TerminalOutcome.FAILED:
            reply = ReclaimCapExceeded(
                execution_id=loaded.definition.execution_id, reclaim_count=record.reclaim_count
            )
            return replace(ended, reply=reply)
        return replace(ended, refusal=ExecutionNotLeaseable("the execution's deadline has passed"))
    return _take(
        loaded,
        worker_id=command.worker_id,
        worker_instance=command.worker_instance,
        ttl_ms=command.lease_ttl_ms,
        claim_id=None,
        lease_id=lease_id,
        attempt_id=attempt_id,
        now_ms=now_ms,
    )


def renew(
    loaded: Loaded, command: LeaseRenew, now_ms: int, former: AttemptRecord | None = None
) -> Decision[LeaseRenewed]:
    """Extend the live lease."""
    del former
    refused = fencing.guard(loaded, command.fence, now_ms)
    if refused is not None:
        return refused
    lease = loaded.record.lease
    assert lease is not None, "the guard saw a lease"
    ttl_ms = command.lease_ttl_ms if command.lease_ttl_ms is not None else lease.ttl_ms
    renewed = replace(lease, ttl_ms=ttl_ms, expires_at_ms=now_ms + ttl_ms, renewed_at_ms=now_ms)
    record = replace(
        loaded.record,
        lease=renewed,
        last_mutation_at_ms=now_ms,
        history_count=loaded.record.history_count + 1,
    )
    reply = LeaseRenewed(
        lease_expires_at_ms=renewed.expires_at_ms, renewal_deadline_ms=renewal_deadline_ms(renewed)
    )
    return Decision(
        reply=reply, record=record, events=(transitions.event(record, LeaseEventName.RENEWED, now_ms),)
    )


def release(
    loaded: Loaded, command: LeaseRelease, now_ms: int, former: AttemptRecord | None = None
) -> Decision[LeaseReleased]:
    """Hand the execution back: claimable at once, as a new attempt, without counting towards the cap."""
    done = fencing.repeated(loaded, command.fence, "lease.release", "", LeaseReleased, former)
    if done is not None:
        return done
    refused = fencing.guard(loaded, command.fence, now_ms)
    if refused is not None:
        return refused
    reply = LeaseReleased(execution_id=loaded.definition.execution_id, public_state=PublicState.ACTIVE)
    record, happened = transitions.lose_lease(
        loaded,
        now_ms,
        revoked=True,
        lost_at_ms=now_ms,
        reason=command.reason,
        exempt=True,
        answer=fencing.answer_of(command.fence, "lease.release", "", reply),
    )
    return Decision(
        reply=reply, record=replace(record, history_count=record.history_count + 1), events=(happened,)
    )


def revoke(
    loaded: Loaded, command: LeaseRevoke, now_ms: int
) -> Decision[LeaseRevokedReply | LeaseAlreadyGone]:
    """Take the lease away from its holder."""
    record = loaded.record
    phase = record.state.lifecycle_phase
    if phase is LifecyclePhase.TERMINAL:
        return fencing.refuse(fencing.not_active(loaded))
    lease = record.lease
    if phase is not LifecyclePhase.ACTIVE or lease is None:
        return Decision(reply=LeaseAlreadyGone(reason="no_active_lease"))
    if record.state.ownership_state is OwnershipState.LEASE_REVOKED:
        return Decision(reply=LeaseAlreadyGone(reason="already_revoked"))
    if record.state.ownership_state is OwnershipState.LEASE_EXPIRED_RECLAIMABLE:
        return Decision(reply=LeaseAlreadyGone(reason="already_expired"))
    if lease.expires_at_ms <= now_ms:
        after, happened = transitions.expire_lease(loaded, now_ms)
        return Decision(
            reply=LeaseAlreadyGone(reason="already_expired"),
            record=replace(after, history_count=after.history_count + 1),
            events=(happened,),
        )
    if command.expected_lease_id is not None and command.expected_lease_id != lease.lease_id:
        return fencing.refuse(StaleLease(lease_epoch=lease.lease_epoch))
    if command.worker_instance is not None and command.worker_instance != lease.worker_instance:
        return Decision(reply=LeaseAlreadyGone(reason="different_worker_instance"))
    after, happened = transitions.lose_lease(
        loaded, now_ms, revoked=True, lost_at_ms=now_ms, reason=command.reason
    )
    return Decision(
        reply=LeaseRevokedReply(lease_id=lease.lease_id, lease_epoch=lease.lease_epoch),
        record=replace(after, history_count=after.history_count + 1),
        events=(happened,),
    )


def mark_dead(loaded: Loaded, now_ms: int, reason: str) -> Decision[Any]:
    """Expire a lease at once because its worker is dead."""
    if loaded.record.state.ownership_state is not OwnershipState.LEASED:
        return Decision()
    after, happened = transitions.lose_lease(loaded, now_ms, revoked=False, lost_at_ms=now_ms, reason=reason)
    return Decision(record=replace(after, history_count=after.history_count + 1), events=(happened,))


def expire(loaded: Loaded, command: LeaseExpire, now_ms: int) -> Decision[LeaseExpireDone]:
    """Record a lease or grant that ran out; make lost work claimable when its grace is over, or end it at the cap."""
    del command
    record = loaded.record
    if transitions.is_overdue(record, now_ms):
        after, happened = transitions.expire_lease(loaded, now_ms)
        if after.state.lifecycle_phase is LifecyclePhase.TERMINAL:
            reply = LeaseExpireDone(status="failed")
        else:
            reply = LeaseExpireDone(status="expired")
        return Decision(
            reply=reply, record=replace(after, history_count=after.history_count + 1), events=(happened,)
        )
    changed = record
    status: Literal["grant_expired", "reclaimable", "not_due"] = "not_due"
    if record.grant is not None and record.grant.expires_at_ms <= now_ms:
        changed = replace(record, grant=None, last_mutation_at_ms=now_ms)
        status = "grant_expired"
    if record.reclaim_at_ms is not None and record.reclaim_at_ms <= now_ms:
        after = Loaded(loaded.definition, changed)
        if transitions.at_reclaim_cap(after):
            return replace(_end_at_cap(after, now_ms), reply=LeaseExpireDone(status="failed"))
        changed = replace(changed, reclaim_at_ms=None, reclaim_ready=True, last_mutation_at_ms=now_ms)
        status = "reclaimable"
    if status == "not_due":
        return Decision(reply=LeaseExpireDone(status="not_due"))
    return Decision(reply=LeaseExpireDone(status=status), record=changed)
