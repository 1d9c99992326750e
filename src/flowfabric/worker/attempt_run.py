"""One run of a handler under one lease: what contexts show of it, and what they do for the handler.

The worker, the contexts and the log filter share this record; it belongs to the worker's event loop, except for the
few plain values that the renewal thread and handlers in threads read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, Literal, cast

from flowfabric.client.durations import Duration, instant_ms, milliseconds
from flowfabric.contract import limits
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import Misuse, Refused
from flowfabric.contract.execution import ExecutionProgress
from flowfabric.contract.lease import Lease
from flowfabric.contract.payloads import BINARY_CONTENT_TYPE, JSON_CONTENT_TYPE, Payload
from flowfabric.contract.states import FrameMode
from flowfabric.telemetry import log
from flowfabric.worker.errors import PauseRequested
from flowfabric.worker.frames import FrameWriter
from flowfabric.worker.leases import HeldLease, is_lost, loss_reason
from flowfabric.worker.settling import persist
from flowfabric.worker.values import encode_json

Mode = FrameMode | Literal["durable", "summary", "best_effort"]
Clock = Callable[[], Awaitable[int]]
"""Reads the store's clock."""

BEST_EFFORT_TTL: Final = 10
"""Seconds that live viewers may want a best-effort frame, unless the handler says otherwise."""

_DEPTH_MESSAGE: Final = f"a summary patch nests at most {limits.SUMMARY_DEPTH_MAX} levels"


class AttemptRun:
    """One run of a handler under one lease: the state that contexts show and the worker acts on."""

    __slots__ = (
        "_clock",
        "_log",
        "_progress_lock",
        "cancel_reason",
        "ended",
        "frames",
        "held",
        "loop",
        "pause",
        "stores",
    )

    def __init__(
        self,
        stores: Stores,
        held: HeldLease,
        loop: asyncio.AbstractEventLoop,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock
        self.stores = stores
        self.held = held
        self.loop = loop
        self.frames: FrameWriter | None = None
        self.cancel_reason: str | None = None
        self.pause: PauseRequested | None = None
        self.ended: bool = False
        self._log: Any = None
        self._progress_lock: asyncio.Lock | None = None

    @property
    def lease(self) -> Lease:
        """The lease it runs under."""
        return self.held.lease

    @property
    def why_cancelled(self) -> str | None:
        """Why the handler should stop, or None."""
        return self.cancel_reason or self.held.lost_reason

    @property
    def trace_id(self) -> str | None:
        """The W3C trace id that the execution was created under."""
        traceparent = self.held.lease.traceparent
        return traceparent[3:35] if traceparent else None

    def bound_log(self) -> Any:
        """Return the logger that names this attempt."""
        if self._log is None:
            self._log = log.get_logger("flowfabric.task").bind(**log_fields(self))
        return self._log

    def check_open(self) -> None:
        """Raise unless the handler may act: it is neither cancelled, paused nor over."""
        reason = self.why_cancelled
        if reason is not None and reason != "draining":
            raise asyncio.CancelledError(reason)
        if self.ended:
            raise Misuse("this attempt has ended: its context cannot be used any more")
        if self.pause is not None:
            raise self.pause

    async def progress(self, percent: float | None, message: str | None) -> None:
        """Store how far the attempt is."""
        self.check_open()
        lease = self.held.lease
        command = ExecutionProgress(
            execution_id=lease.execution_id, fence=lease.fence, percent=percent, message=message
        )
        command.check()
        if self._progress_lock is None:
            self._progress_lock = asyncio.Lock()
        async with self._progress_lock:
            try:
                await persist(self.held, "execution.progress", self.stores.execution.progress, command)
            except Refused as error:
                self.translate(error)
                raise

    async def stream(
        self,
        value: object,
        frame_type: str,
        mode: Mode,
        ttl: Duration | None,
        content_type: str | None,
        correlation_id: str | None,
    ) -> None:
        """Write one frame."""
        self.check_open()
        kept = FrameMode(mode)
        ttl_ms: int | None = None
        if kept is FrameMode.BEST_EFFORT:
            ttl_ms = milliseconds(BEST_EFFORT_TTL if ttl is None else ttl, "ttl")
        elif ttl is not None:
            raise Misuse('ttl goes with mode="best_effort" only')
        if kept is FrameMode.SUMMARY:
            check_patch(value)
        if self.frames is None:
            self.frames = FrameWriter(self.stores, self.held)
        try:
            await self.frames.write(
                frame_payload(value, content_type), frame_type, kept, ttl_ms, correlation_id
            )
        except Refused as error:
            self.translate(error)
            raise

    async def flush(self) -> None:
        """Wait until every frame written so far is stored."""
        self.check_open()
        if self.frames is not None:
            try:
                await self.frames.flush()
            except Refused as error:
                self.translate(error)
                raise

    def translate(self, error: Refused) -> None:
        """Turn a refusal that means a lost lease into a cancellation."""
        if is_lost(error):
            reason = loss_reason(error)
            self.held.lose(reason)
            raise asyncio.CancelledError(reason) from error

    async def pause_until(self, until: Duration | datetime) -> PauseRequested:
        """Ask to continue at an instant on the store's clock; the caller raises what is returned."""
        self.check_open()
        if isinstance(until, datetime):
            until_ms = instant_ms(until, "until")
        else:
            now_ms = self.held.store_now_ms() if self._clock is None else await self._clock()
            until_ms = now_ms + milliseconds(until, "delay")
        self.pause = PauseRequested(min(until_ms, limits.TIMESTAMP_MAX_MS))
        return self.pause

    def pause_for_children(self) -> PauseRequested:
        """Ask to continue when all this execution depends on is done; the caller raises what is returned."""
        self.check_open()
        self.pause = PauseRequested(None)
        return self.pause


CURRENT: Final[ContextVar[AttemptRun | None]] = ContextVar("flowfabric_attempt", default=None)
"""The attempt whose handler is running here."""


def log_fields(run: AttemptRun) -> dict[str, Any]:
    """Return what log lines of a handler carry."""
    lease = run.held.lease
    fields: dict[str, Any] = {
        "execution_id": lease.execution_id,
        "attempt": lease.attempt_index,
        "kind": lease.kind,
    }
    if lease.traceparent:
        fields["trace_id"] = lease.traceparent[3:35]
        fields["span_id"] = lease.traceparent[36:52]
    return fields


def frame_payload(value: object, content_type: str | None) -> Payload:
    """Encode a value as a frame's payload: bytes stay bytes, everything else becomes JSON."""
    if isinstance(value, bytes | bytearray):
        return Payload(bytes(value), content_type or BINARY_CONTENT_TYPE)
    if content_type is not None and content_type != JSON_CONTENT_TYPE:
        if isinstance(value, str):
            return Payload(value.encode(), content_type)
        raise Misuse(f"a frame of {content_type} is given as bytes or str, not {type(value).__name__}")
    try:
        return Payload(encode_json(value), JSON_CONTENT_TYPE)
    except ValueError as error:
        raise Misuse(f"this value cannot be streamed: {error}") from error


def check_patch(value: object) -> None:
    """Refuse a summary patch that is no object or nests too deeply, where the handler can see it."""
    if isinstance(value, bytes | str | int | float | list | tuple | None):
        raise Misuse("a summary frame is a JSON merge patch: give a dict or a dataclass")
    level: list[Any] = [value]
    for _ in range(limits.SUMMARY_DEPTH_MAX):
        level = [child for node in level for child in _nested(node)]
        if not level:
            return
    raise Misuse(_DEPTH_MESSAGE)


def _nested(node: Any) -> list[Any]:
    children: list[Any] = []
    if isinstance(node, dict):
        children = [*cast("dict[Any, Any]", node).values()]
    elif isinstance(node, list):
        children = cast("list[Any]", node)
    return [child for child in children if isinstance(child, dict | list)]
