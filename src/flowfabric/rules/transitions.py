"""Steps that several operations share: how a lease is lost, how an execution ends, how an attempt fails.

Each function returns the next record (and events), never a refusal; the operations in `execution` and `lease` guard.
"""

from __future__ import annotations

import hashlib
from typing import Final

from msgspec.structs import replace

from flowfabric.contract import limits
from flowfabric.contract.attempt import Answered, AttemptRecord, Failure
from flowfabric.contract.execution import ExecutionRecord
from flowfabric.contract.lease import LeaseEvent
from flowfabric.contract.policies import Backoff, FixedBackoff
from flowfabric.contract.states import (
    ATTEMPT_ENDED,
    ATTEMPT_ENDING,
    DELAYED,
    ELIGIBLE,
    ENDED,
    LEASE_EXPIRED,
    LEASE_REVOKED,
    RETRYABLE_CLASSES,
    AttemptRecordState,
    AttemptState,
    BlockingReason,
    FailureClass,
    LeaseEventName,
    OwnershipState,
    StateVector,
    StreamClosedReason,
    TerminalOutcome,
)
from flowfabric.rules.decision import Loaded

MAX_RECLAIMS_EXCEEDED: Final = "max_reclaims_exceeded"
ANSWERS_KEPT: Final = 8


def event(
    record: ExecutionRecord,
    name: LeaseEventName,
    now_ms: int,
    *,
    reason: str | None = None,
    outcome: TerminalOutcome | None = None,
    actor: str | None = None,
) -> LeaseEvent:
    """Build the history entry of a step, naming the lease and attempt that `record` holds."""
    lease = record.lease
    attempt = record.attempt
    return LeaseEvent(
        at_ms=now_ms,
        name=name,
        reason=reason,
        lease_id=lease.lease_id if lease is not None else None,
        lease_epoch=record.lease_epoch,
        attempt_id=attempt.attempt_id if attempt is not None else None,
        attempt_index=attempt.attempt_index if attempt is not None else None,
        worker_instance=lease.worker_instance if lease is not None else None,
        outcome=outcome.value if outcome is not None else None,
        actor=actor or None,
    )


def retry_delay_ms(backoff: Backoff, execution_id: str, retry_count: int) -> int:
    """Return how long to wait before the retry after `retry_count` earlier ones; jitter takes half to all of it.

    The jitter is deterministic, from SHA-256 of the execution id and the count.
    """
    if isinstance(backoff, FixedBackoff):
        delay = float(backoff.delay_ms)
    else:
        delay = float(backoff.max_delay_ms)
        if retry_count < 2_000:
            try:
                delay = min(backoff.initial_delay_ms * backoff.multiplier**retry_count, delay)
            except OverflowError:
                delay = float(backoff.max_delay_ms)
        elif backoff.multiplier == 1.0 or backoff.initial_delay_ms == 0:
            delay = min(float(backoff.initial_delay_ms), delay)
    if backoff.jitter:
        digest = hashlib.sha256(f"{execution_id}:{retry_count}".encode()).digest()
        delay *= 0.5 + int.from_bytes(digest[:8], "big") / 2**65
    return int(delay)


def with_answer(attempt: AttemptRecord, answer: Answered | None) -> AttemptRecord:
    """Remember an operation's answer in the attempt it was done under."""
    if answer is None:
        return attempt
    return replace(attempt, answered=(*attempt.answered, answer)[-ANSWERS_KEPT:])


def end(
    loaded: Loaded,
    outcome: TerminalOutcome,
    now_ms: int,
    *,
    failure: Failure | None = None,
    answer: Answered | None = None,
) -> ExecutionRecord:
    """End the execution: its attempt, stream, lease, timers and waiting all end with it."""
    record = loaded.record
    policy = loaded.definition.policy
    attempt = record.attempt
    if attempt is None:
        kept = record.state.attempt_state
        state = ENDED[outcome, kept if kept is AttemptState.PENDING_FIRST_ATTEMPT else AttemptState.NONE]
    else:
        state = ENDED[outcome, AttemptState.ATTEMPT_TERMINAL]
        if attempt.state not in ATTEMPT_ENDED:
            attempt_state, closed_reason = ATTEMPT_ENDING[outcome]
            attempt = _close(attempt, now_ms, closed_reason)
            attempt = replace(
                attempt, state=attempt_state, ended_at_ms=now_ms, failure=failure, timeout_at_ms=None
            )
        attempt = with_answer(attempt, answer)
    retention_ms = policy.retention_ms if policy.retention_ms is not None else limits.RETENTION_DEFAULT_MS
    stream = policy.stream_policy
    frames_ttl_ms = stream.retention_ttl_ms if stream is not None else None
    return replace(
        record,
        state=state,
        attempt=attempt,
        lease=None,
        grant=None,
        not_before_ms=None,
        blocking_detail="",
        reclaim_at_ms=None,
        reclaim_ready=False,
        reclaim_exempt=False,
        completed_at_ms=now_ms,
        last_mutation_at_ms=now_ms,
        failure=failure,
        retention_due_at_ms=now_ms + retention_ms,
        frames_trim_at_ms=(
            now_ms + frames_ttl_ms if frames_ttl_ms is not None and frames_ttl_ms < retention_ms else None
        ),
    )


def _close(attempt: AttemptRecord, now_ms: int, reason: StreamClosedReason) -> AttemptRecord:
    if attempt.stream_closed_at_ms is not None:
        return attempt
    return replace(attempt, stream_closed_at_ms=now_ms, stream_closed_reason=reason)


def close_stream(attempt: AttemptRecord, now_ms: int, reason: StreamClosedReason) -> AttemptRecord:
    """Close an attempt's stream unless it is closed already."""
    return _close(attempt, now_ms, reason)


def leave(
    record: ExecutionRecord, state: StateVector, now_ms: int, *, attempt: AttemptRecord | None
) -> ExecutionRecord:
    """Give the lease back without ending: the execution goes to `state`."""
    return replace(
        record,
        state=state,
        attempt=attempt,
        lease=None,
        reclaim_at_ms=None,
        reclaim_ready=False,
        reclaim_exempt=False,
        last_mutation_at_ms=now_ms,
    )


def fail_attempt(
    loaded: Loaded, failure: Failure, now_ms: int, *, answer: Answered | None = None
) -> tuple[ExecutionRecord, bool]:
    """Fail the running attempt; return the next record and whether a retry follows."""
    record = loaded.record
    retry = loaded.definition.policy.retry_policy
    may_retry = (
        retry is not None
        and record.retry_count < retry.max_retries
        and (failure.failure_class in RETRYABLE_CLASSES or failure.category in retry.retryable_categories)
    )
    if retry is None or not may_retry:
        return end(loaded, TerminalOutcome.FAILED, now_ms, failure=failure, answer=answer), False
    attempt = record.attempt
    if attempt is not None:
        attempt = _close(attempt, now_ms, StreamClosedReason.ATTEMPT_FAILURE)
        attempt = replace(
            attempt,
            state=AttemptRecordState.ENDED_FAILURE,
            ended_at_ms=now_ms,
            failure=failure,
            timeout_at_ms=None,
        )
        attempt = with_answer(attempt, answer)
    delay_ms = retry_delay_ms(retry.backoff, loaded.definition.execution_id, record.retry_count)
    if delay_ms > 0:
        state = DELAYED[BlockingReason.WAITING_FOR_RETRY_BACKOFF, AttemptState.PENDING_RETRY_ATTEMPT]
    else:
        state = ELIGIBLE[AttemptState.PENDING_RETRY_ATTEMPT]
    following = leave(record, state, now_ms, attempt=attempt)
    return (
        replace(
            following,
            retry_count=record.retry_count + 1,
            not_before_ms=now_ms + delay_ms if delay_ms > 0 else None,
            failure=failure,
        ),
        True,
    )


def at_reclaim_cap(loaded: Loaded) -> bool:
    """Say whether the execution was taken over as often as it may be."""
    cap = loaded.definition.policy.max_reclaim_count
    if cap is None:
        cap = limits.RECLAIM_COUNT_DEFAULT
    return not loaded.record.reclaim_exempt and loaded.record.reclaim_count >= cap


def end_at_cap(loaded: Loaded, now_ms: int) -> ExecutionRecord:
    """End an execution that lost its lease once too often."""
    failure = Failure(
        failure_class=FailureClass.INFRA_CRASH,
        category=MAX_RECLAIMS_EXCEEDED,
        message=f"the execution lost its lease {loaded.record.reclaim_count + 1} times, its policy allows "
        f"{loaded.record.reclaim_count} takeovers",
    )
    return end(loaded, TerminalOutcome.FAILED, now_ms, failure=failure)


def lose_lease(
    loaded: Loaded,
    now_ms: int,
    *,
    revoked: bool,
    lost_at_ms: int,
    reason: str,
    exempt: bool = False,
    answer: Answered | None = None,
) -> tuple[ExecutionRecord, LeaseEvent]:
    """Take the lease away; after its grace the execution is claimable, or ended at the reclaim cap.

    `exempt` (a worker handing work back) skips grace and cap.
    """
    record = loaded.record
    attempt = record.attempt
    lease = record.lease
    if attempt is not None:
        if not revoked:
            attempt = _close(attempt, now_ms, StreamClosedReason.LEASE_EXPIRED)
        attempt = with_answer(attempt, answer)
    grace_ms = 0 if exempt else (loaded.definition.policy.reclaim_grace_ms or 0)
    ready = lost_at_ms + grace_ms <= now_ms
    lost = replace(
        record,
        state=LEASE_REVOKED if revoked else LEASE_EXPIRED,
        lease=replace(lease, lost_at_ms=lost_at_ms, lost_reason=reason) if lease is not None else None,
        attempt=attempt,
        reclaim_exempt=exempt,
        reclaim_ready=ready,
        reclaim_at_ms=None if ready else lost_at_ms + grace_ms,
        last_mutation_at_ms=now_ms,
    )
    name = LeaseEventName.REVOKED if revoked else LeaseEventName.EXPIRED
    if exempt:
        name = LeaseEventName.RELEASED
    after = Loaded(loaded.definition, lost)
    if ready and at_reclaim_cap(after):
        ended = end_at_cap(after, now_ms)
        return ended, event(
            record, name, now_ms, reason=MAX_RECLAIMS_EXCEEDED, outcome=TerminalOutcome.FAILED
        )
    return lost, event(record, name, now_ms, reason=reason)


def expire_lease(loaded: Loaded, now_ms: int) -> tuple[ExecutionRecord, LeaseEvent]:
    """Record that the lease's time is over."""
    lease = loaded.record.lease
    lost_at_ms = lease.expires_at_ms if lease is not None else now_ms
    return lose_lease(loaded, now_ms, revoked=False, lost_at_ms=lost_at_ms, reason="lease_expired")


def is_overdue(record: ExecutionRecord, now_ms: int) -> bool:
    """Say whether the record shows a held lease whose time is over."""
    return (
        record.state.ownership_state is OwnershipState.LEASED
        and record.lease is not None
        and record.lease.expires_at_ms <= now_ms
    )
