"""Timers: one loop over the store's due-time index, and a table that says which operation serves each kind.

The loop sleeps until the nearest due instant and is woken when something becomes due earlier; a slow sweep is the
safety net. Every action is an operation that checks again under the store's own clock, so several engines on one
store, a late one, or one that runs twice do no harm. Nothing here decides: that is the rules' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, Final

from flowfabric.contract import limits
from flowfabric.contract.backend import Backend, Due, DueKind
from flowfabric.contract.errors import FlowFabricError, Refused, ResourceExhausted
from flowfabric.contract.execution import ExecutionExpire, ExecutionPromote, ExecutionTrim
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.lease import LeaseExpire
from flowfabric.contract.states import ExpireReason
from flowfabric.contract.worker import WorkerExpire
from flowfabric.telemetry import log, metrics

_LOG: Final = log.get_logger("flowfabric.engine")

FAILURES_BEFORE_SKIP: Final = 3
SKIP_ROUNDS: Final = 10
FAILURES_TRACKED_MAX: Final = 500


def _execution_of(due: Due) -> ExecutionId:
    assert due.execution_id is not None, "an execution timer names its execution"
    return due.execution_id


def _worker_expire(backend: Backend, due: Due) -> Awaitable[Any]:
    assert due.worker_instance is not None and due.namespace is not None, "a liveness timer names its worker"
    return backend.worker.expire(WorkerExpire(worker_instance=due.worker_instance, namespace=due.namespace))


def _expire(reason: ExpireReason) -> Callable[[Backend, Due], Awaitable[Any]]:
    def act(backend: Backend, due: Due) -> Awaitable[Any]:
        return backend.execution.expire(ExecutionExpire(execution_id=_execution_of(due), reason=reason))

    return act


def _lease_expire(backend: Backend, due: Due) -> Awaitable[Any]:
    return backend.lease.expire(LeaseExpire(execution_id=_execution_of(due)))


DISPATCH: Final[Mapping[DueKind, Callable[[Backend, Due], Awaitable[Any]]]] = {
    DueKind.LEASE_EXPIRY: _lease_expire,
    DueKind.GRANT_EXPIRY: _lease_expire,
    DueKind.DELAYED: lambda backend, due: backend.execution.promote(
        ExecutionPromote(execution_id=_execution_of(due))
    ),
    DueKind.ATTEMPT_TIMEOUT: _expire(ExpireReason.ATTEMPT_TIMEOUT),
    DueKind.EXECUTION_DEADLINE: _expire(ExpireReason.EXECUTION_DEADLINE),
    DueKind.RETENTION: lambda backend, due: backend.execution.trim(
        ExecutionTrim(execution_id=_execution_of(due))
    ),
    DueKind.WORKER_LIVENESS: _worker_expire,
}
"""The operation that serves each kind of timer."""


class FailureTracker:
    """Skips an entry that failed several times in a row for some rounds, so that it cannot hold up the others."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], int] = {}
        self._skip_until: dict[tuple[str, str], int] = {}
        self._round = 0

    @staticmethod
    def _key(due: Due) -> tuple[str, str]:
        return due.kind.value, due.execution_id or f"{due.namespace} {due.worker_instance}"

    def start_round(self) -> None:
        """Count a round; forget entries when too many are tracked."""
        self._round += 1
        if len(self._failures) > FAILURES_TRACKED_MAX:
            self._failures = {key: count for key, count in self._failures.items() if key in self._skip_until}
        if len(self._skip_until) > FAILURES_TRACKED_MAX:
            self._skip_until.clear()
            self._failures.clear()

    @property
    def skipped(self) -> int:
        """How many entries are left alone for now."""
        return len(self._skip_until)

    def is_skipped(self, due: Due) -> bool:
        """Say whether this entry is to be left alone for now."""
        until = self._skip_until.get(self._key(due))
        if until is None:
            return False
        if until > self._round:
            return True
        key = self._key(due)
        del self._skip_until[key]
        self._failures.pop(key, None)
        return False

    def failed(self, due: Due) -> None:
        """Count a failure."""
        key = self._key(due)
        count = self._failures.get(key, 0) + 1
        self._failures[key] = count
        if count >= FAILURES_BEFORE_SKIP:
            self._skip_until[key] = self._round + SKIP_ROUNDS

    def succeeded(self, due: Due) -> None:
        """Forget earlier failures."""
        if self._failures:
            self._failures.pop(self._key(due), None)


async def _serve(backend: Backend, due: Due, tracker: FailureTracker) -> bool:
    try:
        await DISPATCH[due.kind](backend, due)
    except FlowFabricError as error:
        if isinstance(error, Refused) and not isinstance(error, ResourceExhausted):
            # The entry was served or removed by somebody else in between.
            tracker.succeeded(due)
            return True
        tracker.failed(due)
        _LOG.warning(
            "timer_failed",
            kind=due.kind.value,
            execution_id=due.execution_id,
            code=error.code,
            error=error.message,
        )
        return False
    tracker.succeeded(due)
    return True


async def serve_due(backend: Backend, tracker: FailureTracker, *, limit: int) -> tuple[int, int, int | None]:
    """Serve what is due now, at most `limit` entries at once; return (served, failed or skipped, next due instant).

    The entries go out concurrently, so that a backend can put them into one transaction.
    """
    started = perf_counter()
    batch = await backend.timers.read_due(limit + tracker.skipped)
    tracker.start_round()
    todo = [due for due in batch.due if not tracker.is_skipped(due)]
    if not todo:
        return 0, len(batch.due), batch.next_due_at_ms
    outcomes = await asyncio.gather(*(_serve(backend, due, tracker) for due in todo))
    served = sum(outcomes)
    by_kind: dict[str, int] = {}
    for due in todo:
        by_kind[due.kind.value] = by_kind.get(due.kind.value, 0) + 1
    elapsed = perf_counter() - started
    for kind in by_kind:
        metrics.timer_round(kind, elapsed)
    return served, len(batch.due) - served, batch.next_due_at_ms


async def run_due(backend: Backend) -> int:
    """Serve everything that is due right now and return how many entries were served; for tests and tools."""
    tracker = FailureTracker()
    total = 0
    while True:
        served, _, _ = await serve_due(backend, tracker, limit=limits.TIMER_BATCH_MAX)
        if served == 0:
            return total
        total += served


async def timer_loop(backend: Backend) -> None:
    """Serve timers for ever: at their instant, woken when an earlier one appears."""
    tracker = FailureTracker()
    while True:
        served, left, next_due_at_ms = await serve_due(backend, tracker, limit=limits.TIMER_BATCH_MAX)
        if served:
            continue
        if left:
            # What is due keeps failing: look again in a while instead of at once.
            await asyncio.sleep(1.0)
            continue
        await backend.timers.wait_change(next_due_at_ms, limits.TIMER_SLEEP_MAX_MS / 1_000)


async def sweep_loop(backend: Backend) -> None:
    """Do the store's bounded housekeeping now and then."""
    while True:
        cleaned = await backend.timers.sweep()
        await asyncio.sleep(0.05 if cleaned else limits.SAFETY_SWEEP_MS / 1_000)
