"""What readers see of an execution: projections of the loaded records, and why it is not running."""

from __future__ import annotations

from collections.abc import Iterable

from flowfabric.contract.attempt import AttemptInfo, AttemptRecord
from flowfabric.contract.errors import ExecutionNotTerminal
from flowfabric.contract.execution import (
    AttemptSummary,
    ExecutionContext,
    ExecutionInfo,
    ExecutionSnapshot,
    LeaseSummary,
    Loaded,
    ResultCancelled,
    ResultCompleted,
    ResultExpired,
    ResultFailed,
    ResultSkipped,
    ResultUnion,
    Waiting,
)
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import (
    LANE_ACCEPTS_CLAIMS,
    BlockingReason,
    EligibilityState,
    FailureClass,
    LaneState,
    LifecyclePhase,
    OwnershipState,
    TerminalOutcome,
)
from flowfabric.contract.worker import WorkerRecord


def info(loaded: Loaded) -> ExecutionInfo:
    """Project the short record."""
    definition, record = loaded.definition, loaded.record
    return ExecutionInfo(
        execution_id=definition.execution_id,
        namespace=definition.namespace,
        lane=definition.lane,
        kind=definition.kind,
        priority=record.priority,
        state_vector=record.state,
        public_state=record.state.public_state,
        created_at_ms=definition.created_at_ms,
        started_at_ms=record.started_at_ms,
        completed_at_ms=record.completed_at_ms,
        current_attempt_index=record.attempt.attempt_index if record.attempt is not None else None,
        flow_id=definition.flow_id,
        blocking_detail=record.blocking_detail,
        tags=record.tags,
    )


def context(loaded: Loaded, payload: Payload) -> ExecutionContext:
    """Project what a handler needs."""
    definition = loaded.definition
    return ExecutionContext(
        execution_id=definition.execution_id, kind=definition.kind, input=payload, tags=loaded.record.tags
    )


def attempt_info(execution_id: ExecutionId, attempt: AttemptRecord) -> AttemptInfo:
    """Project one attempt."""
    return AttemptInfo(
        execution_id=execution_id,
        attempt_id=attempt.attempt_id,
        attempt_index=attempt.attempt_index,
        attempt_type=attempt.attempt_type,
        state=attempt.state,
        started_at_ms=attempt.started_at_ms,
        ended_at_ms=attempt.ended_at_ms,
        worker_id=attempt.worker_id,
        worker_instance=attempt.worker_instance,
        lease_epoch=attempt.lease_epoch,
        timeout_at_ms=attempt.timeout_at_ms,
        previous_attempt_index=attempt.previous_attempt_index,
        failure=attempt.failure,
        stream_closed_at_ms=attempt.stream_closed_at_ms,
        stream_closed_reason=attempt.stream_closed_reason,
    )


def waiting(
    loaded: Loaded, *, lane_state: LaneState, workers: Iterable[WorkerRecord], now_ms: int
) -> Waiting | None:
    """Say why the execution is not running and what would let it, or None when it runs or has ended.

    `workers` are those registered in its namespace and alive.
    """
    record = loaded.record
    state = record.state
    if state.lifecycle_phase is LifecyclePhase.TERMINAL or state.ownership_state is OwnershipState.LEASED:
        return None
    if record.reclaim_at_ms is not None:
        return Waiting(
            reason="reclaim_grace",
            message="its worker lost the lease; it can be claimed again when the grace is over",
            until_ms=record.reclaim_at_ms,
        )
    match state.eligibility_state:
        case EligibilityState.NOT_ELIGIBLE_UNTIL_TIME:
            retry = state.blocking_reason is BlockingReason.WAITING_FOR_RETRY_BACKOFF
            return Waiting(
                reason="retry_backoff" if retry else "delayed",
                message="the last attempt failed; the next one follows after the backoff"
                if retry
                else "it is not to run before its time",
                until_ms=record.not_before_ms,
            )
        case EligibilityState.BLOCKED_BY_DEPENDENCIES:
            return Waiting(reason="waiting_children", message="it waits for the executions it depends on")
        case EligibilityState.ELIGIBLE_NOW | EligibilityState.NOT_APPLICABLE:
            return _waiting_for_worker(loaded, lane_state, workers, now_ms)
        case _:
            detail = f": {record.blocking_detail}" if record.blocking_detail else ""
            return Waiting(
                reason="blocked",
                message=f"it is held back ({state.blocking_reason.value}){detail}; "
                "`flowfabric admin execution unblock` lets it run",
            )


def _waiting_for_worker(
    loaded: Loaded, lane_state: LaneState, workers: Iterable[WorkerRecord], now_ms: int
) -> Waiting:
    definition, record = loaded.definition, loaded.record
    if record.grant is not None and record.grant.expires_at_ms > now_ms:
        return Waiting(
            reason="granted",
            message=f"it is granted to worker {record.grant.worker_id}, which has not taken it yet",
            until_ms=record.grant.expires_at_ms,
        )
    if lane_state not in LANE_ACCEPTS_CLAIMS:
        return Waiting(
            reason="lane_paused" if lane_state is LaneState.PAUSED else "lane_disabled",
            message=f"lane {definition.lane} is {lane_state.value}: "
            f"`flowfabric lane resume {definition.lane}` lets it run",
        )
    serving = [
        worker
        for worker in workers
        if definition.lane in worker.lanes and (not worker.kinds or definition.kind in worker.kinds)
    ]
    if not serving:
        return Waiting(
            reason="no_capable_worker",
            message=f"no live worker handles kind {definition.kind} on lane {definition.lane}: start one with "
            "`flowfabric worker`",
        )
    required = set(definition.required_capabilities)
    missing = min(
        (required - set(worker.capabilities) for worker in serving),
        key=lambda lacking: (len(lacking), sorted(lacking)),
    )
    if missing:
        return Waiting(
            reason="no_capable_worker",
            message=f"no live worker has all required capabilities; the nearest lacks {', '.join(sorted(missing))}",
            missing_capabilities=tuple(sorted(missing)),
        )
    return Waiting(
        reason="workers_busy",
        message=f"{len(serving)} live worker{'s' if len(serving) != 1 else ''} could run it and will when free; "
        "higher priority and older work goes first",
    )


def snapshot(loaded: Loaded, *, waiting: Waiting | None) -> ExecutionSnapshot:
    """Project everything but the payloads."""
    definition, record = loaded.definition, loaded.record
    attempt, lease = record.attempt, record.lease
    current_lease: LeaseSummary | None = None
    if lease is not None and attempt is not None and record.state.ownership_state is OwnershipState.LEASED:
        current_lease = LeaseSummary(
            lease_id=lease.lease_id,
            lease_epoch=lease.lease_epoch,
            worker_instance=lease.worker_instance,
            acquired_at_ms=lease.acquired_at_ms,
            expires_at_ms=lease.expires_at_ms,
            last_renewed_at_ms=lease.renewed_at_ms,
            attempt_index=attempt.attempt_index,
        )
    current_attempt: AttemptSummary | None = None
    if attempt is not None:
        current_attempt = AttemptSummary(
            attempt_id=attempt.attempt_id,
            attempt_index=attempt.attempt_index,
            state=attempt.state,
            started_at_ms=attempt.started_at_ms,
        )
    return ExecutionSnapshot(
        execution_id=definition.execution_id,
        namespace=definition.namespace,
        lane=definition.lane,
        kind=definition.kind,
        priority=record.priority,
        flow_id=definition.flow_id,
        state_vector=record.state,
        public_state=record.state.public_state,
        blocking_detail=record.blocking_detail,
        waiting=waiting,
        kind_known=definition.kind_known,
        creator=definition.creator,
        idempotency_key=definition.idempotency_key,
        traceparent=definition.traceparent,
        required_capabilities=definition.required_capabilities,
        policy=definition.policy,
        tags=record.tags,
        current_attempt=current_attempt,
        current_lease=current_lease,
        progress=record.progress,
        failure=record.failure,
        cancel_reason=record.cancel_reason,
        cancelled_by=record.cancelled_by,
        created_at_ms=definition.created_at_ms,
        started_at_ms=record.started_at_ms,
        completed_at_ms=record.completed_at_ms,
        last_mutation_at_ms=record.last_mutation_at_ms,
        not_before_ms=record.not_before_ms,
        deadline_at_ms=record.deadline_at_ms,
        retention_due_at_ms=record.retention_due_at_ms,
        total_attempt_count=record.total_attempt_count,
        retry_count=record.retry_count,
        reclaim_count=record.reclaim_count,
        replay_count=record.replay_count,
        replays=record.replays,
    )


def result(loaded: Loaded, payload: Payload | None) -> ResultUnion | ExecutionNotTerminal:
    """Project how the execution ended; `payload` is the stored result, if any."""
    record = loaded.record
    execution_id = loaded.definition.execution_id
    completed_at_ms = record.completed_at_ms if record.completed_at_ms is not None else 0
    attempt_index = record.attempt.attempt_index if record.attempt is not None else None
    match record.state.terminal_outcome:
        case TerminalOutcome.NONE:
            return ExecutionNotTerminal(public_state=record.state.public_state.value)
        case TerminalOutcome.SUCCESS:
            return ResultCompleted(
                execution_id=execution_id,
                completed_at_ms=completed_at_ms,
                attempt_index=attempt_index,
                result=payload if record.has_result else None,
            )
        case TerminalOutcome.FAILED:
            failure = record.failure
            return ResultFailed(
                execution_id=execution_id,
                completed_at_ms=completed_at_ms,
                attempt_index=attempt_index,
                failure_class=failure.failure_class if failure is not None else FailureClass.PERMANENT,
                category=failure.category if failure is not None else "",
                message=failure.message if failure is not None else "",
            )
        case TerminalOutcome.CANCELLED:
            return ResultCancelled(
                execution_id=execution_id,
                completed_at_ms=completed_at_ms,
                reason=record.cancel_reason or "",
                cancelled_by=record.cancelled_by or "",
            )
        case TerminalOutcome.EXPIRED:
            reason = record.failure.category if record.failure is not None else "execution_deadline"
            return ResultExpired(execution_id=execution_id, completed_at_ms=completed_at_ms, reason=reason)
        case TerminalOutcome.SKIPPED:
            return ResultSkipped(execution_id=execution_id, completed_at_ms=completed_at_ms)
