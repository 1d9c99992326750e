"""Reporting how an attempt ended: first the rest of its stream, then the one call that ends it.

Whatever happens here costs one lease and never the worker: a report that is refused because the lease is gone is
dropped with a log line, and the execution is somebody else's by then.
"""

from __future__ import annotations

from typing import Final

from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import FlowFabricError, PayloadTooLarge, Refused
from flowfabric.contract.execution import (
    ExecutionComplete,
    ExecutionDelay,
    ExecutionFail,
    ExecutionFailed,
    ExecutionWaitChildren,
)
from flowfabric.contract.states import FailureClass
from flowfabric.telemetry import log, metrics
from flowfabric.worker import errors
from flowfabric.worker.attempt_run import AttemptRun
from flowfabric.worker.leases import HeldLease, is_lost, loss_reason
from flowfabric.worker.running import Attempt, Ending
from flowfabric.worker.settling import persist

_LOG: Final = log.get_logger("flowfabric.worker")


async def report(stores: Stores, attempt: Attempt, ending: Ending) -> None:
    """Store what is left of the attempt's stream, then how it ended."""
    run = attempt.run
    try:
        if run.frames is not None:
            ending = await _close_frames(run, ending)
        try:
            await _send(stores, run.held, ending)
        except PayloadTooLarge as error:
            await _send(stores, run.held, _too_large(run, error))
    except FlowFabricError as error:
        metrics.attempt_ended(run.lease.lane, "cancelled")
        _LOG.warning(
            "attempt_dropped",
            execution_id=run.lease.execution_id,
            attempt=run.lease.attempt_index,
            kind=run.lease.kind,
            reason=loss_reason(error) if isinstance(error, Refused) and is_lost(error) else error.code,
            report=type(ending).__name__,
            error=error.message,
        )
    except Exception:  # a bug here must cost one lease, not the worker
        _LOG.exception("report_crashed", execution_id=run.lease.execution_id)


async def _close_frames(run: AttemptRun, ending: Ending) -> Ending:
    """Store what is left of the stream; an attempt whose stream cannot be stored has failed."""
    assert run.frames is not None
    try:
        await run.frames.close()
    except FlowFabricError as error:
        if isinstance(ending, ExecutionComplete | ExecutionDelay | ExecutionWaitChildren):
            return errors.failure_of(run.lease, error)
    return ending


async def _send(stores: Stores, held: HeldLease, ending: Ending) -> None:
    lane = held.lease.lane
    if isinstance(ending, ExecutionComplete):
        await persist(held, "execution.complete", stores.execution.complete, ending)
        metrics.attempt_ended(lane, "ok")
    elif isinstance(ending, ExecutionFail):
        answer = await persist(held, "execution.fail", stores.execution.fail, ending)
        if ending.failure_class is FailureClass.TIMEOUT:
            metrics.attempt_ended(lane, "timeout")
        else:
            metrics.attempt_ended(lane, "error" if isinstance(answer, ExecutionFailed) else "retry")
    elif isinstance(ending, ExecutionDelay):
        await persist(held, "execution.delay", stores.execution.delay, ending)
    elif isinstance(ending, ExecutionWaitChildren):
        await persist(held, "execution.wait_children", stores.execution.wait_children, ending)
    else:
        await persist(held, "lease.release", stores.lease.release, ending)


def _too_large(run: AttemptRun, error: PayloadTooLarge) -> ExecutionFail:
    return errors.failure(
        run.lease,
        FailureClass.PERMANENT,
        errors.RESULT_ENCODE_ERROR,
        f"the result cannot be stored: {error.message}",
    )
