"""What the holder of a lease does to an execution: complete, fail, delay, wait, report progress.

Guards and repetitions are in `fencing`; `former` is the superseded attempt that the fence names when it is not the
current one.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from flowfabric.contract.attempt import AttemptRecord, Failure
from flowfabric.contract.execution import (
    ExecutionComplete,
    ExecutionCompleted,
    ExecutionDelay,
    ExecutionFail,
    ExecutionFailed,
    ExecutionPaused,
    ExecutionProgress,
    ExecutionProgressed,
    ExecutionRecord,
    ExecutionWaitChildren,
    Progress,
    RetryScheduled,
)
from flowfabric.contract.holding import actor_of, complete_digest, delay_digest, fail_digest
from flowfabric.contract.lease import LeaseEvent
from flowfabric.contract.payloads import Fence
from flowfabric.contract.states import (
    DELAYED,
    ELIGIBLE,
    AttemptRecordState,
    AttemptState,
    BlockingReason,
    LeaseEventName,
    PublicState,
    StateVector,
    TerminalOutcome,
)
from flowfabric.rules import fencing, transitions
from flowfabric.rules.decision import Decision, Loaded


def accept(
    loaded: Loaded, record: ExecutionRecord, reply: Any, event: LeaseEvent | None, **more: Any
) -> Decision[Any]:
    """Accept: write the record, append the event, answer."""
    if event is None:
        return Decision(reply=reply, record=record, **more)
    return Decision(
        reply=reply,
        record=replace(record, history_count=loaded.record.history_count + 1),
        events=(event,),
        **more,
    )


def complete(
    loaded: Loaded, command: ExecutionComplete, now_ms: int, former: AttemptRecord | None = None
) -> Decision[ExecutionCompleted]:
    """End with success."""
    payload = command.result
    content = complete_digest(command)
    done = fencing.repeated(loaded, command.fence, "execution.complete", content, ExecutionCompleted, former)
    if done is not None:
        return done
    refused = fencing.guard(loaded, command.fence, now_ms)
    if refused is not None:
        return refused
    reply = ExecutionCompleted(
        execution_id=loaded.definition.execution_id,
        public_state=PublicState.COMPLETED,
        completed_at_ms=now_ms,
    )
    answer = fencing.answer_of(command.fence, "execution.complete", content, reply)
    record = transitions.end(loaded, TerminalOutcome.SUCCESS, now_ms, answer=answer)
    record = replace(record, has_result=payload is not None, failure=None)
    event = transitions.event(
        loaded.record,
        LeaseEventName.RELEASED,
        now_ms,
        reason="completed",
        outcome=TerminalOutcome.SUCCESS,
        actor=actor_of(command.source, command.actor),
    )
    return accept(loaded, record, reply, event, result=payload)


def fail(
    loaded: Loaded, command: ExecutionFail, now_ms: int, former: AttemptRecord | None = None
) -> Decision[RetryScheduled | ExecutionFailed]:
    """Fail the attempt; the retry policy decides whether another follows."""
    content = fail_digest(command)
    done = fencing.repeated(
        loaded, command.fence, "execution.fail", content, RetryScheduled | ExecutionFailed, former
    )
    if done is not None:
        return done
    refused = fencing.guard(loaded, command.fence, now_ms)
    if refused is not None:
        return refused
    failure = Failure(failure_class=command.failure_class, category=command.category, message=command.message)
    return fail_with(
        loaded,
        failure,
        now_ms,
        fence=command.fence,
        content=content,
        actor=actor_of(command.source, command.actor),
    )


def fail_with(
    loaded: Loaded, failure: Failure, now_ms: int, *, fence: Fence | None, content: str, actor: str | None
) -> Decision[Any]:
    """Fail the running attempt with this failure and build the answer."""
    execution_id = loaded.definition.execution_id
    record, retrying = transitions.fail_attempt(loaded, failure, now_ms)
    reply: RetryScheduled | ExecutionFailed
    if retrying:
        reply = RetryScheduled(
            execution_id=execution_id,
            delay_until_ms=record.not_before_ms if record.not_before_ms is not None else now_ms,
            retry_count=record.retry_count,
        )
        reason, outcome = "failed_retry_scheduled", None
    else:
        reply = ExecutionFailed(execution_id=execution_id, public_state=PublicState.FAILED)
        reason, outcome = "failed_terminal", TerminalOutcome.FAILED
    answer = fencing.answer_of(fence, "execution.fail", content, reply)
    if record.attempt is not None:
        record = replace(record, attempt=transitions.with_answer(record.attempt, answer))
    event = transitions.event(
        loaded.record, LeaseEventName.RELEASED, now_ms, reason=reason, outcome=outcome, actor=actor
    )
    return accept(loaded, record, reply, event)


def delay(
    loaded: Loaded, command: ExecutionDelay, now_ms: int, former: AttemptRecord | None = None
) -> Decision[ExecutionPaused]:
    """Give the lease back and continue the same attempt at a later instant; an instant in the past means now."""
    later = command.delay_until_ms > now_ms
    if later:
        state = DELAYED[BlockingReason.WAITING_FOR_DELAY, AttemptState.ATTEMPT_INTERRUPTED]
    else:
        state = ELIGIBLE[AttemptState.ATTEMPT_INTERRUPTED]
    return _pause(
        loaded,
        command,
        now_ms,
        former,
        operation="execution.delay",
        content=delay_digest(command),
        reason="worker_delay",
        state=state,
        not_before_ms=command.delay_until_ms if later else None,
    )


def wait_children(
    loaded: Loaded, command: ExecutionWaitChildren, now_ms: int, former: AttemptRecord | None = None
) -> Decision[ExecutionPaused]:
    """Give the lease back until all it depends on is done; an execution outside a flow depends on nothing."""
    return _pause(
        loaded,
        command,
        now_ms,
        former,
        operation="execution.wait_children",
        content="",
        reason="waiting_children",
        state=ELIGIBLE[AttemptState.ATTEMPT_INTERRUPTED],
        not_before_ms=None,
    )


def _pause(
    loaded: Loaded,
    command: ExecutionDelay | ExecutionWaitChildren,
    now_ms: int,
    former: AttemptRecord | None,
    *,
    operation: str,
    content: str,
    reason: str,
    state: StateVector,
    not_before_ms: int | None,
) -> Decision[ExecutionPaused]:
    done = fencing.repeated(loaded, command.fence, operation, content, ExecutionPaused, former)
    if done is not None:
        return done
    refused = fencing.guard(loaded, command.fence, now_ms)
    if refused is not None:
        return refused
    reply = ExecutionPaused(
        execution_id=loaded.definition.execution_id,
        public_state=state.public_state,
        not_before_ms=not_before_ms,
    )
    attempt = loaded.record.attempt
    if attempt is not None:
        answer = fencing.answer_of(command.fence, operation, content, reply)
        attempt = replace(attempt, state=AttemptRecordState.SUSPENDED, timeout_at_ms=None)
        attempt = transitions.with_answer(attempt, answer)
    record = transitions.leave(loaded.record, state, now_ms, attempt=attempt)
    record = replace(record, not_before_ms=not_before_ms)
    event = transitions.event(
        loaded.record,
        LeaseEventName.RELEASED,
        now_ms,
        reason=reason,
        actor=actor_of(command.source, command.actor),
    )
    return accept(loaded, record, reply, event)


def progress(
    loaded: Loaded, command: ExecutionProgress, now_ms: int, former: AttemptRecord | None = None
) -> Decision[ExecutionProgressed]:
    """Store the progress; what is not given keeps its value, and giving nothing changes nothing."""
    del former
    refused = fencing.guard(loaded, command.fence, now_ms)
    if refused is not None:
        return refused
    before = loaded.record.progress
    percent = (
        command.percent if command.percent is not None else (before.percent if before is not None else None)
    )
    message = (
        command.message if command.message is not None else (before.message if before is not None else None)
    )
    reply = ExecutionProgressed(execution_id=loaded.definition.execution_id, percent=percent, message=message)
    if command.percent is None and command.message is None:
        return Decision(reply=reply)
    record = replace(
        loaded.record,
        progress=Progress(percent=percent, message=message, at_ms=now_ms),
        last_mutation_at_ms=now_ms,
    )
    return Decision(reply=reply, record=record)
