"""What a handler can ask and say while it runs: `Context` in async handlers, `SyncContext` in plain functions.

Both show the same attempt; the synchronous one hands each call to the worker's event loop and waits for it there. A
context is good for one run of one handler: after that its calls are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent import futures
from datetime import datetime, timedelta
from typing import Any, TypeVar

from flowfabric.client.durations import Duration
from flowfabric.contract.errors import Misuse
from flowfabric.contract.states import AttemptType, FrameMode
from flowfabric.worker.attempt_run import AttemptRun, Mode

Value = TypeVar("Value")


class _View:
    """What both contexts show about the attempt."""

    __slots__ = ("_run",)

    def __init__(self, run: AttemptRun) -> None:
        self._run: AttemptRun = run

    @property
    def execution_id(self) -> str:
        """The execution's id."""
        return self._run.lease.execution_id

    @property
    def namespace(self) -> str:
        """The tenant it belongs to."""
        return self._run.lease.namespace

    @property
    def kind(self) -> str:
        """The task's name."""
        return self._run.lease.kind

    @property
    def lane(self) -> str:
        """The lane it was claimed from."""
        return self._run.lease.lane

    @property
    def tags(self) -> dict[str, str]:
        """Its tags when it was claimed."""
        return dict(self._run.lease.tags)

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 0."""
        return self._run.lease.attempt_index

    @property
    def attempt_index(self) -> int:
        """Which attempt this is, from 0."""
        return self._run.lease.attempt_index

    @property
    def attempt_type(self) -> AttemptType:
        """Why the attempt was started: initial, retry, reclaim or replay."""
        return self._run.lease.attempt_type

    @property
    def is_resumed(self) -> bool:
        """Whether this attempt ran before and asked to continue later; the handler runs from its top again."""
        return self._run.lease.resumed

    @property
    def retry_count(self) -> int:
        """How often the execution was retried so far."""
        return self._run.lease.retry_count

    @property
    def max_retries(self) -> int:
        """How often it may be retried."""
        return self._run.lease.max_retries

    @property
    def idempotency_key(self) -> str:
        """A key that stays the same over all attempts: the execution's own, else its id."""
        return self._run.lease.idempotency_key or self._run.lease.execution_id

    @property
    def fencing_token(self) -> int:
        """A number that grows whenever the execution changes hands, for systems that can refuse stale writers."""
        return self._run.lease.lease_epoch

    @property
    def deadline_at_ms(self) -> int | None:
        """When the execution ends as expired, on the store's clock."""
        return self._run.lease.deadline_at_ms

    @property
    def attempt_timeout_at_ms(self) -> int | None:
        """When this attempt fails as timed out, on the store's clock."""
        return self._run.lease.attempt_timeout_at_ms

    @property
    def time_left(self) -> timedelta | None:
        """How long the handler may still run before the attempt's timeout or the deadline; None without either."""
        lease = self._run.lease
        ends = [at for at in (lease.attempt_timeout_at_ms, lease.deadline_at_ms) if at is not None]
        if not ends:
            return None
        return timedelta(milliseconds=max(0, min(ends) - self._run.held.store_now_ms()))

    @property
    def trace_id(self) -> str | None:
        """The trace that the execution was created under, if there was one."""
        return self._run.trace_id

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context that the execution was created under, if there was one."""
        return self._run.lease.traceparent

    @property
    def is_cancelled(self) -> bool:
        """Whether the handler should stop: cancelled by an operator, out of time, lease lost, or worker draining."""
        return self._run.why_cancelled is not None

    @property
    def cancel_reason(self) -> str | None:
        """Why the handler should stop, for example `cancelled`, `attempt_timeout`, `lease_expired`, `draining`."""
        return self._run.why_cancelled

    @property
    def is_lease_healthy(self) -> bool:
        """Whether the lease is held and its renewals get through."""
        return self._run.held.is_healthy

    @property
    def consecutive_renewal_failures(self) -> int:
        """How many renewals in a row did not get through."""
        return self._run.held.failures

    @property
    def log(self) -> Any:
        """A structured logger that names the execution, the attempt and the trace."""
        return self._run.bound_log()

    def raise_if_cancelled(self) -> None:
        """Raise `asyncio.CancelledError` if the handler should stop."""
        reason = self._run.why_cancelled
        if reason is not None:
            raise asyncio.CancelledError(reason)


class Context(_View):
    """What an `async def` handler can ask and say. Losing the lease arrives as `asyncio.CancelledError`."""

    __slots__ = ()

    async def progress(self, percent: float | None = None, message: str | None = None) -> None:
        """Store how far the attempt is, 0 to 100, and what it is doing; what is not given keeps its value."""
        await self._run.progress(percent, message)

    async def stream(
        self,
        value: object,
        *,
        type: str = "event",  # noqa: A002 -- reads as the frame's type
        mode: Mode = FrameMode.DURABLE,
        ttl: Duration | None = None,
        content_type: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Write one frame to the attempt's stream: any JSON value, or bytes.

        With `mode="summary"` the value is a JSON merge patch to the attempt's summary document; with
        `mode="best_effort"` the frame is for live viewers and may be dropped after `ttl`.
        """
        await self._run.stream(value, type, mode, ttl, content_type, correlation_id)

    async def flush(self) -> None:
        """Wait until every frame written so far is stored."""
        await self._run.flush()

    async def delay(self, delay: Duration | None = None, *, until: datetime | None = None) -> None:
        """End this run of the handler; the same attempt starts from its top again later, with `is_resumed` set.

        The worker is free meanwhile. Do not catch what this raises.
        """
        raise await self._run.pause_until(_when(delay, until))

    async def wait_children(self) -> None:
        """End this run of the handler until all it depends on is done; the same attempt then starts from its top.

        Do not catch what this raises.
        """
        await asyncio.sleep(0)
        raise self._run.pause_for_children()


class SyncContext(_View):
    """What a plain `def` handler can ask and say; every call blocks until it is done."""

    __slots__ = ()

    def _wait(self, call: Coroutine[Any, Any, Value]) -> Value:
        if self._run.ended or self._run.loop.is_closed():
            call.close()
            raise Misuse("this attempt has ended: its context cannot be used any more")
        try:
            return asyncio.run_coroutine_threadsafe(call, self._run.loop).result()
        except futures.CancelledError:
            raise asyncio.CancelledError(self._run.why_cancelled) from None

    def progress(self, percent: float | None = None, message: str | None = None) -> None:
        """Store how far the attempt is, 0 to 100, and what it is doing; what is not given keeps its value."""
        self._checked()
        self._wait(self._run.progress(percent, message))

    def stream(
        self,
        value: object,
        *,
        type: str = "event",  # noqa: A002 -- reads as the frame's type
        mode: Mode = FrameMode.DURABLE,
        ttl: Duration | None = None,
        content_type: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Write one frame to the attempt's stream; see `Context.stream`."""
        self._checked()
        self._wait(self._run.stream(value, type, mode, ttl, content_type, correlation_id))

    def flush(self) -> None:
        """Wait until every frame written so far is stored."""
        self._checked()
        self._wait(self._run.flush())

    def delay(self, delay: Duration | None = None, *, until: datetime | None = None) -> None:
        """End this run of the handler; see `Context.delay`."""
        self._checked()
        raise self._wait(self._run.pause_until(_when(delay, until)))

    def wait_children(self) -> None:
        """End this run of the handler; see `Context.wait_children`."""
        raise self._run.pause_for_children()

    def _checked(self) -> None:
        """Raise here what would else be raised on the event loop, where a pause has no place."""
        self._run.check_open()


def _when(delay: Duration | None, until: datetime | None) -> Duration | datetime:
    if (delay is None) == (until is None):
        raise Misuse("give delay one of a duration or until=")
    return until if until is not None else delay if delay is not None else 0
