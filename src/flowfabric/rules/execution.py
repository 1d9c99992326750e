"""Rules of executions: what each operation does to a loaded execution at `now_ms` on the store's clock.

Guards run in the manifest's order. Fenced operations take `former`, the superseded attempt that the fence names when
it is not the current one, so that repetitions are answered after later attempts started.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from flowfabric.contract import limits
from flowfabric.contract.attempt import AttemptRecord, Failure
from flowfabric.contract.errors import (
    ExecutionNotEligible,
    ExecutionNotTerminal,
    FenceRequired,
    InvalidBlockingReason,
    InvalidInput,
    MaxReplaysExhausted,
    Refused,
)
from flowfabric.contract.execution import (
    ExecutionBlock,
    ExecutionCancel,
    ExecutionCancelled,
    ExecutionChanged,
    ExecutionChangePriority,
    ExecutionExpire,
    ExecutionExpireDone,
    ExecutionPriorityChanged,
    ExecutionPromote,
    ExecutionPromoted,
    ExecutionRecord,
    ExecutionReplay,
    ExecutionReplayed,
    ExecutionSetTags,
    ExecutionTagsSet,
    ExecutionTrim,
    ExecutionTrimmed,
    ExecutionUnblock,
    ReplayRecord,
    RetryScheduled,
)
from flowfabric.contract.holding import actor_of
from flowfabric.contract.indexing import due, index_entries, is_ready
from flowfabric.contract.lease import LeaseEvent
from flowfabric.contract.projections import context, info, result, snapshot, waiting
from flowfabric.contract.states import (
    BLOCKED,
    BLOCKED_BY_REASON,
    ELIGIBLE,
    UNBLOCKABLE,
    AttemptState,
    CancelSource,
    EligibilityState,
    ExpireReason,
    FailureClass,
    LeaseEventName,
    LifecyclePhase,
    OwnershipState,
    PublicState,
    TerminalOutcome,
)
from flowfabric.rules import fencing, transitions
from flowfabric.rules.creating import (
    Creation,
    clamp_priority,
    create,
    deadline_ms,
    digest,
    duplicate,
    duplicate_of,
    lane_of,
    place,
    route_of,
)
from flowfabric.rules.decision import Decision, Loaded
from flowfabric.rules.holding import (
    accept,
    complete,
    delay,
    fail,
    fail_with,
    progress,
    wait_children,
)

__all__ = [
    "Creation",
    "block",
    "cancel",
    "change_priority",
    "complete",
    "context",
    "create",
    "delay",
    "digest",
    "due",
    "duplicate",
    "duplicate_of",
    "expire",
    "fail",
    "index_entries",
    "info",
    "is_ready",
    "lane_of",
    "place",
    "progress",
    "promote",
    "replay",
    "result",
    "route_of",
    "set_tags",
    "snapshot",
    "trim",
    "unblock",
    "wait_children",
    "waiting",
]


def cancel(
    loaded: Loaded, command: ExecutionCancel, now_ms: int, former: AttemptRecord | None = None
) -> Decision[ExecutionCancelled]:
    """Cancel in any state but a finished one; an active one needs the fence unless an operator or the system acts."""
    del former
    record = loaded.record
    execution_id = loaded.definition.execution_id
    if record.state.lifecycle_phase is LifecyclePhase.TERMINAL:
        if record.state.terminal_outcome is TerminalOutcome.CANCELLED:
            return Decision(
                reply=ExecutionCancelled(
                    execution_id=execution_id, public_state=PublicState.CANCELLED, already=True
                )
            )
        return fencing.refuse(fencing.not_active(loaded))
    if command.source is CancelSource.LEASE_HOLDER:
        if record.state.lifecycle_phase is LifecyclePhase.ACTIVE and command.fence is None:
            return fencing.refuse(
                FenceRequired(
                    "an active execution is cancelled by its lease's holder with the fence, or by an operator"
                )
            )
        if command.fence is not None:
            refused = fencing.guard(loaded, command.fence, now_ms)
            if refused is not None:
                return refused
    failure = Failure(failure_class=FailureClass.CANCELLED, category="cancelled", message=command.reason)
    ended = transitions.end(loaded, TerminalOutcome.CANCELLED, now_ms, failure=failure)
    ended = replace(
        ended,
        failure=None,
        cancel_reason=command.reason,
        cancelled_by=command.actor or command.source.value,
    )
    leased = record.state.ownership_state is OwnershipState.LEASED
    event = transitions.event(
        record,
        LeaseEventName.RELEASED if leased else LeaseEventName.ENDED,
        now_ms,
        reason="cancelled",
        outcome=TerminalOutcome.CANCELLED,
        actor=actor_of(command.source, command.actor),
    )
    reply = ExecutionCancelled(execution_id=execution_id, public_state=PublicState.CANCELLED, already=False)
    return accept(loaded, ended, reply, event)


def replay(loaded: Loaded, command: ExecutionReplay, now_ms: int) -> Decision[ExecutionReplayed]:
    """Run a finished execution again: retries, takeovers and deadline start over, the result is cleared."""
    record = loaded.record
    execution_id = loaded.definition.execution_id
    expected = command.expected_replay_count
    if expected is not None and record.replay_count != expected:
        if record.replay_count == expected + 1:
            return Decision(
                reply=ExecutionReplayed(
                    execution_id=execution_id,
                    public_state=record.state.public_state,
                    replay_count=record.replay_count,
                )
            )
        return fencing.refuse(
            ExecutionNotEligible(
                f"it was replayed {record.replay_count} times", replay_count=record.replay_count
            )
        )
    if record.state.lifecycle_phase is not LifecyclePhase.TERMINAL:
        return fencing.refuse(ExecutionNotTerminal(public_state=record.state.public_state.value))
    policy = loaded.definition.policy
    most = policy.max_replay_count if policy.max_replay_count is not None else limits.REPLAY_COUNT_DEFAULT
    if record.replay_count >= most:
        return fencing.refuse(MaxReplaysExhausted(replay_count=record.replay_count))
    absolute = loaded.definition.deadline_at_ms
    if absolute is not None and absolute <= now_ms:
        absolute = None
    lineage = ReplayRecord(
        replayed_at_ms=now_ms,
        outcome=record.state.terminal_outcome.value,
        completed_at_ms=record.completed_at_ms if record.completed_at_ms is not None else now_ms,
        last_attempt_index=record.attempt.attempt_index if record.attempt is not None else None,
        actor=command.actor,
    )
    again = replace(
        record,
        state=ELIGIBLE[AttemptState.PENDING_REPLAY_ATTEMPT],
        eligible_since_ms=now_ms,
        run_started_at_ms=now_ms,
        deadline_at_ms=deadline_ms(policy, absolute, now_ms),
        retry_count=0,
        reclaim_count=0,
        replay_count=record.replay_count + 1,
        completed_at_ms=None,
        retention_due_at_ms=None,
        frames_trim_at_ms=None,
        progress=None,
        failure=None,
        cancel_reason=None,
        cancelled_by=None,
        has_result=False,
        last_mutation_at_ms=now_ms,
        replays=(*record.replays, lineage)[-limits.REPLAY_COUNT_DEFAULT :],
    )
    reply = ExecutionReplayed(
        execution_id=execution_id, public_state=again.state.public_state, replay_count=again.replay_count
    )
    event = transitions.event(
        record,
        LeaseEventName.REPLAY_INITIATED,
        now_ms,
        actor=actor_of(CancelSource.LEASE_HOLDER, command.actor),
    )
    return accept(loaded, again, reply, event, clear_result=record.has_result)


def expire(loaded: Loaded, command: ExecutionExpire, now_ms: int) -> Decision[ExecutionExpireDone]:
    """Apply an attempt timeout (a failure under the retry policy) or the deadline (the end), if it is due."""
    record = loaded.record
    execution_id = loaded.definition.execution_id
    if record.state.lifecycle_phase is LifecyclePhase.TERMINAL:
        return Decision(reply=ExecutionExpireDone(execution_id=execution_id, status="already_terminal"))
    not_due = Decision(reply=ExecutionExpireDone(execution_id=execution_id, status="not_due"))
    leased = record.state.ownership_state is OwnershipState.LEASED
    if command.reason is ExpireReason.ATTEMPT_TIMEOUT:
        attempt = record.attempt
        if not leased or attempt is None or attempt.timeout_at_ms is None or attempt.timeout_at_ms > now_ms:
            return not_due
        failure = Failure(
            failure_class=FailureClass.TIMEOUT,
            category=ExpireReason.ATTEMPT_TIMEOUT.value,
            message="the attempt ran longer than its policy allows",
        )
        done: Decision[Any] = fail_with(
            loaded, failure, now_ms, fence=None, content="", actor="system_timeout"
        )
        status = "retry_scheduled" if isinstance(done.reply, RetryScheduled) else "failed"
        return replace(done, reply=ExecutionExpireDone(execution_id=execution_id, status=status))
    if record.deadline_at_ms is None or record.deadline_at_ms > now_ms:
        return not_due
    return accept(
        loaded,
        *expire_at_deadline(loaded, now_ms, ExecutionExpireDone(execution_id=execution_id, status="expired")),
    )


def expire_at_deadline(loaded: Loaded, now_ms: int, reply: Any) -> tuple[ExecutionRecord, Any, LeaseEvent]:
    """End the execution as expired; return its record, the reply and the event."""
    record = loaded.record
    failure = Failure(
        failure_class=FailureClass.TIMEOUT,
        category=ExpireReason.EXECUTION_DEADLINE.value,
        message="the execution's deadline passed",
    )
    ended = transitions.end(loaded, TerminalOutcome.EXPIRED, now_ms, failure=failure)
    leased = record.state.ownership_state is OwnershipState.LEASED
    event = transitions.event(
        record,
        LeaseEventName.RELEASED if leased else LeaseEventName.ENDED,
        now_ms,
        reason="expired:execution_deadline",
        outcome=TerminalOutcome.EXPIRED,
        actor="system_timeout",
    )
    return ended, reply, event


def promote(loaded: Loaded, command: ExecutionPromote, now_ms: int) -> Decision[ExecutionPromoted]:
    """Make a delayed execution eligible, if it is due."""
    record = loaded.record
    execution_id = command.execution_id
    if record.state.eligibility_state is not EligibilityState.NOT_ELIGIBLE_UNTIL_TIME:
        return Decision(reply=ExecutionPromoted(execution_id=execution_id, status="not_delayed"))
    if record.not_before_ms is not None and record.not_before_ms > now_ms:
        return Decision(reply=ExecutionPromoted(execution_id=execution_id, status="not_due"))
    promoted = replace(
        record,
        state=ELIGIBLE[record.state.attempt_state],
        not_before_ms=None,
        last_mutation_at_ms=now_ms,
    )
    return Decision(reply=ExecutionPromoted(execution_id=execution_id, status="promoted"), record=promoted)


def _changed(loaded: Loaded, record: ExecutionRecord) -> ExecutionChanged:
    return ExecutionChanged(
        execution_id=loaded.definition.execution_id,
        public_state=record.state.public_state,
        blocking_reason=record.state.blocking_reason,
    )


def block(loaded: Loaded, command: ExecutionBlock, now_ms: int) -> Decision[ExecutionChanged]:
    """Hold an eligible execution back; blocking it again for the same reason changes nothing."""
    record = loaded.record
    if record.state.lifecycle_phase is LifecyclePhase.TERMINAL:
        return fencing.refuse(fencing.not_active(loaded))
    eligibility = BLOCKED_BY_REASON.get(command.reason)
    runnable = record.state.lifecycle_phase is LifecyclePhase.RUNNABLE
    if runnable and eligibility is not None and record.state.blocking_reason is command.reason:
        return Decision(reply=_changed(loaded, record))
    if not runnable or record.state.eligibility_state is not EligibilityState.ELIGIBLE_NOW:
        return fencing.refuse(_not_eligible(loaded, "only an eligible execution can be blocked"))
    if eligibility is None:
        return fencing.refuse(InvalidBlockingReason(reason=command.reason.value))
    blocked = replace(
        record,
        state=BLOCKED[command.reason, record.state.attempt_state],
        blocking_detail=command.detail,
        grant=None,
        last_mutation_at_ms=now_ms,
    )
    return Decision(reply=_changed(loaded, blocked), record=blocked)


def _not_eligible(loaded: Loaded, message: str) -> Refused:
    state = loaded.record.state
    return ExecutionNotEligible(
        message, public_state=state.public_state.value, blocking=state.blocking_reason.value
    )


def unblock(loaded: Loaded, command: ExecutionUnblock, now_ms: int) -> Decision[ExecutionChanged]:
    """Let a blocked execution run; it keeps its place in the order."""
    record = loaded.record
    if record.state.eligibility_state not in UNBLOCKABLE:
        return fencing.refuse(_not_eligible(loaded, "the execution is not blocked"))
    if command.expected_reason is not None and record.state.blocking_reason is not command.expected_reason:
        return fencing.refuse(_not_eligible(loaded, "the execution is blocked for another reason"))
    free = replace(
        record,
        state=ELIGIBLE[record.state.attempt_state],
        blocking_detail="",
        last_mutation_at_ms=now_ms,
    )
    return Decision(reply=_changed(loaded, free), record=free)


def set_tags(loaded: Loaded, command: ExecutionSetTags, now_ms: int) -> Decision[ExecutionTagsSet]:
    """Add or overwrite tags, in any state."""
    tags = {**loaded.record.tags, **command.tags}
    if len(tags) > limits.TAGS_MAX:
        return fencing.refuse(InvalidInput(f"an execution has at most {limits.TAGS_MAX} tags", field="tags"))
    record = replace(loaded.record, tags=tags, last_mutation_at_ms=now_ms)
    reply = ExecutionTagsSet(execution_id=loaded.definition.execution_id, tags=tags)
    return Decision(reply=reply, record=record)


def change_priority(
    loaded: Loaded, command: ExecutionChangePriority, now_ms: int
) -> Decision[ExecutionPriorityChanged]:
    """Change the priority of an execution that has not ended; its index entry moves with it."""
    record = loaded.record
    if record.state.lifecycle_phase is LifecyclePhase.TERMINAL:
        return fencing.refuse(_not_eligible(loaded, "the execution has ended"))
    priority = clamp_priority(command.priority)
    reply = ExecutionPriorityChanged(
        execution_id=loaded.definition.execution_id, priority=priority, previous=record.priority
    )
    return Decision(reply=reply, record=replace(record, priority=priority, last_mutation_at_ms=now_ms))


def trim(
    loaded: Loaded, command: ExecutionTrim, now_ms: int, stream_expiries: Sequence[int] = ()
) -> Decision[ExecutionTrimmed]:
    """Delete what retention says: the finished execution, its frames, or the frames of lossy streams that expired.

    `stream_expiries` holds `expires_at_ms` of each of its streams that has one.
    """
    record = loaded.record
    execution_id = command.execution_id
    terminal = record.state.lifecycle_phase is LifecyclePhase.TERMINAL
    if terminal and record.retention_due_at_ms is not None and record.retention_due_at_ms <= now_ms:
        return Decision(
            reply=ExecutionTrimmed(execution_id=execution_id, status="deleted"), delete="execution"
        )
    frames = ExecutionTrimmed(execution_id=execution_id, status="frames_deleted")
    if terminal and record.frames_trim_at_ms is not None and record.frames_trim_at_ms <= now_ms:
        return Decision(
            reply=frames,
            record=replace(record, frames_trim_at_ms=None, stream_due_at_ms=None),
            delete="frames",
        )
    not_due = ExecutionTrimmed(execution_id=execution_id, status="not_due")
    if record.stream_due_at_ms is None or record.stream_due_at_ms > now_ms:
        return Decision(reply=not_due)
    later = [at_ms for at_ms in stream_expiries if at_ms > now_ms]
    following = replace(record, stream_due_at_ms=min(later) if later else None)
    if len(later) == len(stream_expiries):
        return Decision(reply=not_due, record=following)
    return Decision(reply=frames, record=following, delete="expired_frames")
