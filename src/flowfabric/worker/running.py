"""Running one attempt: decode the input, call the handler, and say what to report, whatever happened in between.

Nothing here talks to the store: `handle` returns the one command that ends this run of the attempt, or None when there
is nothing to report because the lease is gone. A handler that was cancelled is never reported as having failed.
"""

from __future__ import annotations

import asyncio
import traceback
from functools import partial
from typing import Any, Final

from structlog.contextvars import bind_contextvars

from flowfabric.contract.execution import (
    ExecutionComplete,
    ExecutionDelay,
    ExecutionFail,
    ExecutionWaitChildren,
)
from flowfabric.contract.lease import LeaseRelease
from flowfabric.contract.states import FailureClass
from flowfabric.telemetry import log
from flowfabric.worker import errors
from flowfabric.worker.app import AnyTask
from flowfabric.worker.attempt_run import CURRENT, AttemptRun, log_fields
from flowfabric.worker.context import Context, SyncContext
from flowfabric.worker.errors import InputError, PauseRequested, ResultError
from flowfabric.worker.threads import HandlerThreads
from flowfabric.worker.tracing import span_of

_LOG: Final = log.get_logger("flowfabric.worker")

Ending = ExecutionComplete | ExecutionFail | ExecutionDelay | ExecutionWaitChildren | LeaseRelease
"""The command that ends a run of an attempt."""

DRAINING: Final = "draining"
ATTEMPT_TIMEOUT: Final = errors.ATTEMPT_TIMEOUT
EXECUTION_DEADLINE: Final = "execution_deadline"

WAITING, RUNNING, ENDED = "waiting", "running", "ended"


class Attempt:
    """One attempt that this worker runs. Belongs to one event loop."""

    __slots__ = ("abandoned", "phase", "reported", "run", "runner", "task", "timers")

    def __init__(self, task: AnyTask, run: AttemptRun) -> None:
        self.task = task
        self.run = run
        self.runner: asyncio.Task[None] | None = None
        """The asyncio task that runs the handler."""
        self.phase: str = WAITING
        self.timers: list[asyncio.TimerHandle] | None = None
        self.reported: bool = False
        """Its end was reported before its handler came to an end."""
        self.abandoned: bool = False

    def cancel(self, reason: str) -> None:
        """Ask the handler to stop: `CancelledError` in an async one, `ctx.is_cancelled` in a plain one."""
        if self.phase is ENDED:
            return
        former = self.run.cancel_reason
        if reason == DRAINING and self.run.why_cancelled is not None:
            return  # what cancelled it first says more
        self.run.cancel_reason = reason
        if self.phase is RUNNING and self.task.signature.is_async and former in (None, DRAINING):
            assert self.runner is not None
            self.runner.cancel(reason)

    def report_timeout(self) -> ExecutionFail:
        """Build the report of an attempt that ran out of time."""
        policy = self.run.lease.policy.timeout_policy
        allowed_ms = policy.attempt_timeout_ms if policy is not None else None
        return errors.failure(
            self.run.lease,
            FailureClass.TIMEOUT,
            ATTEMPT_TIMEOUT,
            f"the attempt took longer than {allowed_ms} ms" if allowed_ms else "the attempt took too long",
        )


async def handle(attempt: Attempt, threads: HandlerThreads) -> Ending | None:
    """Run the handler and return what to report, or None when the attempt is not ours to report any more."""
    run = attempt.run
    if run.why_cancelled is not None:
        return _after_cancel(attempt, run.why_cancelled)
    signature = attempt.task.signature
    try:
        arguments = signature.decode(run.lease.input)
    except InputError as error:
        return errors.failure(
            run.lease, FailureClass.PERMANENT, errors.PAYLOAD_DECODE_ERROR, f"input: {error}"
        )
    CURRENT.set(run)
    bind_contextvars(**log_fields(run))
    attempt.phase = RUNNING
    try:
        with span_of(run.lease):
            if signature.is_async:
                function = attempt.task.function
                value = await (
                    function(Context(run), **arguments) if signature.wants_context else function(**arguments)
                )
            else:
                value = await _in_thread(attempt, arguments, threads)
        attempt.phase = ENDED
        return _after_return(attempt, value)
    except BaseException as error:
        attempt.phase = ENDED
        return _after_raise(attempt, error)
    finally:
        run.ended = True
        if attempt.timers is not None:
            for timer in attempt.timers:
                timer.cancel()


async def _in_thread(attempt: Attempt, arguments: dict[str, Any], threads: HandlerThreads) -> Any:
    function = partial(attempt.task.function, **arguments)
    if attempt.task.signature.wants_context:
        function = partial(attempt.task.function, SyncContext(attempt.run), **arguments)
    outcome = await threads.run(function)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def _after_return(attempt: Attempt, value: object) -> Ending | None:
    run = attempt.run
    reason = run.why_cancelled
    if reason is not None and reason != DRAINING:
        return _after_cancel(attempt, reason)
    if run.pause is not None:
        return errors.failure(
            run.lease,
            FailureClass.PERMANENT,
            errors.PAUSE_SWALLOWED,
            "the handler caught what ctx.delay() or ctx.wait_children() raised, and went on: let it pass, for "
            "example by catching Exception instead of BaseException",
        )
    try:
        result = attempt.task.signature.encode_result(value)
    except ResultError as error:
        return errors.failure(run.lease, FailureClass.PERMANENT, errors.RESULT_ENCODE_ERROR, str(error))
    return ExecutionComplete(execution_id=run.lease.execution_id, fence=run.lease.fence, result=result)


def _after_raise(attempt: Attempt, error: BaseException) -> Ending | None:
    run = attempt.run
    reason = run.why_cancelled
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        raise error
    if isinstance(error, asyncio.CancelledError):
        runner = asyncio.current_task()
        if runner is not None and runner.cancelling() > 0:
            if reason is None:
                raise error  # the whole event loop is being torn down
            while runner.cancelling() > 0:
                runner.uncancel()
    if reason is not None and reason != DRAINING:
        return _after_cancel(attempt, reason)
    if run.pause is not None and _is_pause(error):
        return _pause(run, run.pause)
    if reason is not None:
        return _after_cancel(attempt, reason)
    report = errors.failure_of(run.lease, error)
    _LOG.warning(
        "attempt_failed",
        execution_id=run.lease.execution_id,
        attempt=run.lease.attempt_index,
        kind=run.lease.kind,
        failure_class=report.failure_class.value,
        category=report.category,
        message=report.message[:500],
        traceback="".join(traceback.format_exception(error))[-8_000:],
    )
    return report


def _after_cancel(attempt: Attempt, reason: str) -> Ending | None:
    lease = attempt.run.lease
    if reason == DRAINING:
        return LeaseRelease(execution_id=lease.execution_id, fence=lease.fence, reason=DRAINING)
    if reason == ATTEMPT_TIMEOUT:
        return None if attempt.reported else attempt.report_timeout()
    _LOG.warning(
        "attempt_dropped",
        execution_id=lease.execution_id,
        attempt=lease.attempt_index,
        kind=lease.kind,
        reason=reason,
    )
    return None


def _pause(run: AttemptRun, pause: PauseRequested) -> Ending:
    lease = run.lease
    if pause.until_ms is None:
        return ExecutionWaitChildren(execution_id=lease.execution_id, fence=lease.fence)
    return ExecutionDelay(execution_id=lease.execution_id, fence=lease.fence, delay_until_ms=pause.until_ms)


def _is_pause(error: Any) -> bool:
    """Say whether an exception is a pause, or a group of nothing else."""
    if isinstance(error, PauseRequested):
        return True
    parts: tuple[Any, ...] = getattr(error, "exceptions", ())
    return bool(parts) and all(_is_pause(part) for part in parts)
