"""Metrics of what workers do through this server: renewals, attempts by outcome, the time that using a grant takes.

Workers that open the store themselves count the same in their own process, so nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, Final

from flowfabric.contract.errors import FlowFabricError
from flowfabric.contract.execution import RetryScheduled
from flowfabric.contract.lease import LeaseTaken
from flowfabric.contract.states import FailureClass
from flowfabric.telemetry import metrics

Counter = Callable[[Awaitable[Any], Any], Awaitable[Any]]
UNKNOWN_LANE: Final = "unknown"


def _lane(command: Any) -> str:
    fence = command.fence
    return fence.lane if fence is not None and fence.lane is not None else UNKNOWN_LANE


async def _renewal(call: Awaitable[Any], command: Any) -> Any:
    del command
    try:
        reply = await call
    except FlowFabricError:
        metrics.lease_renewed("error")
        raise
    metrics.lease_renewed("ok")
    return reply


async def _complete(call: Awaitable[Any], command: Any) -> Any:
    reply = await call
    metrics.attempt_ended(_lane(command), "ok")
    return reply


async def _cancel(call: Awaitable[Any], command: Any) -> Any:
    reply = await call
    if command.fence is not None and not reply.already:
        metrics.attempt_ended(_lane(command), "cancelled")
    return reply


async def _fail(call: Awaitable[Any], command: Any) -> Any:
    reply = await call
    if isinstance(reply, RetryScheduled):
        outcome = "retry"
    else:
        outcome = "timeout" if command.failure_class is FailureClass.TIMEOUT else "error"
    metrics.attempt_ended(_lane(command), outcome)
    return reply


async def _claim_granted(call: Awaitable[Any], command: Any) -> Any:
    del command
    started = perf_counter()
    reply = await call
    if isinstance(reply, LeaseTaken):
        metrics.grant_used(reply.lease.lane, perf_counter() - started)
    return reply


COUNTERS: Final[Mapping[str, Counter]] = {
    "lease.renew": _renewal,
    "lease.claim_granted": _claim_granted,
    "execution.complete": _complete,
    "execution.fail": _fail,
    "execution.cancel": _cancel,
}
"""What is counted, by operation."""
