"""Streams: an append-only log of frames per attempt, readable live and afterwards.

A cursor inside one attempt is `<ms>-<seq>`; over a whole run (all attempts of an execution) it is
`<attempt>:<ms>-<seq>`. Cursors name the last frame seen: reading continues after it.
"""

from __future__ import annotations

import re
from typing import Final, Literal, Protocol

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import (
    DocumentTooLarge,
    ExecutionNotFound,
    FenceRequired,
    FrameSequenceGap,
    InvalidFrameType,
    InvalidInput,
    InvalidOffset,
    PartialFence,
    ResourceExhausted,
    RetentionLimitExceeded,
    StaleOwnerCannotAppend,
    StreamClosed,
)
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.manifest import Kind, Repeatable, Scope, operation, reading
from flowfabric.contract.payloads import JSON_CONTENT_TYPE, Fence, Payload
from flowfabric.contract.states import FrameMode, StreamClosedReason

_ATTEMPT_CURSOR: Final = re.compile(r"(0|[1-9][0-9]{0,15})(?:-(0|[1-9][0-9]{0,15}))?")
_RUN_CURSOR: Final = re.compile(r"(0|[1-9][0-9]{0,6}):(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")
_FRAME_TYPE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,62}[\x21-\x7e])?")

ATTEMPT_STARTED: Final = "attempt_started"
"""Type of the marker that a run's stream shows at the start of each attempt."""


class StreamRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is stored about one attempt's stream beside its frames. Kept counts are per mode."""

    frame_count: int = 0
    """Frames ever appended."""
    last_sequence: int = 0
    last_ms: int = 0
    last_seq: int = 0
    """The last frame's id is `<last_ms>-<last_seq>`."""
    durable_kept: int = 0
    summary_kept: int = 0
    best_effort_kept: int = 0
    append_rate: float = 0.0
    """Best-effort appends per second, smoothed."""
    rate_at_ms: int | None = None
    best_effort_cap: int = limits.BEST_EFFORT_FRAMES_MIN
    expires_at_ms: int | None = None
    """Set while the stream holds lossy frames only: all of it goes then."""
    trimmed_ms: int = 0
    trimmed_seq: int = 0
    """The newest durable or summary frame that retention removed."""
    document: msgspec.Raw = msgspec.Raw(b"{}")
    """The summary document; meaningful once `version` is above zero."""
    version: int = 0
    first_applied_at_ms: int = 0
    last_updated_at_ms: int = 0


class FrameInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One frame to append. `sequence` counts from 1 within the attempt."""

    sequence: int
    payload: Payload = Payload(b"null", JSON_CONTENT_TYPE)
    frame_type: str = "event"
    mode: FrameMode = FrameMode.DURABLE
    ttl_ms: int | None = None
    """Only, and required, with `best_effort`: how long live viewers may want it."""
    correlation_id: str | None = None

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_range(self.sequence, "sequence", 1, limits.INTEGER_MAX)
        if self.payload.content_type != JSON_CONTENT_TYPE:
            ids.check_content_type(self.payload.content_type)
        if self.mode is FrameMode.BEST_EFFORT:
            if self.ttl_ms is None:
                raise InvalidInput("best_effort frames need ttl_ms", field="ttl_ms")
            ids.check_range(
                self.ttl_ms, "ttl_ms", limits.BEST_EFFORT_TTL_MIN_MS, limits.BEST_EFFORT_TTL_MAX_MS
            )
        elif self.ttl_ms is not None:
            raise InvalidInput("ttl_ms goes with best_effort frames only", field="ttl_ms")
        if self.mode is FrameMode.SUMMARY and self.payload.content_type != JSON_CONTENT_TYPE:
            raise InvalidInput("a summary frame is a JSON merge patch", field="content_type")
        if self.correlation_id is not None:
            ids.check_text(self.correlation_id, "correlation_id", limits.NAME_LENGTH_MAX)
        if len(self.payload.data) > limits.FRAME_BYTES_MAX:
            raise RetentionLimitExceeded(limit_bytes=limits.FRAME_BYTES_MAX)
        if _FRAME_TYPE.fullmatch(self.frame_type) is None or self.frame_type == ATTEMPT_STARTED:
            raise InvalidFrameType


class StreamAppend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Append frames to the stream of the attempt under this fence; their sequences follow each other."""

    execution_id: ExecutionId
    attempt_index: int
    fence: Fence | None = None
    frames: tuple[FrameInput, ...]

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_range(self.attempt_index, "attempt_index", 0, limits.COUNT_MAX)
        if self.fence is None:
            raise FenceRequired
        self.fence.check()
        if not 1 <= len(self.frames) <= limits.FRAMES_PER_APPEND_MAX:
            raise InvalidInput(f"frames holds 1 to {limits.FRAMES_PER_APPEND_MAX} frames", field="frames")
        expected = self.frames[0].sequence
        for frame in self.frames:
            frame.check()
            if frame.sequence != expected:
                raise InvalidInput("the frames' sequences must follow each other", field="frames")
            expected += 1


class FramesAppended(msgspec.Struct, frozen=True, kw_only=True):
    """Where the stream stands after the append."""

    last_frame_id: str
    """Id of the frame with the last sequence of the stream; a repeat of the last append gives it again."""
    last_sequence: int
    frame_count: int
    """Frames ever appended to this attempt's stream, trimmed ones included."""
    duplicates: int
    """How many of the frames sent had been appended before."""
    summary_version: int | None


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame as read."""

    frame_id: str
    """`<ms>-<seq>`, strictly increasing within the attempt."""
    attempt_index: int
    sequence: int
    frame_type: str
    mode: FrameMode
    at_ms: int
    payload: Payload
    correlation_id: str | None = None
    ttl_ms: int | None = None
    summary_version: int | None = None


def parse_attempt_cursor(text: str) -> tuple[int, int]:
    """Return (ms, seq) of a concrete cursor inside one attempt, or refuse with `invalid_offset`."""
    match = _ATTEMPT_CURSOR.fullmatch(text)
    if match is None:
        raise InvalidOffset(cursor=ids.clip(text))
    return int(match[1]), int(match[2] or 0)


def parse_run_cursor(text: str) -> tuple[int, int, int]:
    """Return (attempt, ms, seq) of a cursor over a whole run, or refuse with `invalid_offset`."""
    match = _RUN_CURSOR.fullmatch(text)
    if match is None:
        raise InvalidOffset(cursor=ids.clip(text))
    return int(match[1]), int(match[2]), int(match[3])


class StreamRead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read frames between two cursors, both included. Without `attempt_index`: over the whole run."""

    execution_id: ExecutionId
    attempt_index: int | None = None
    start: str = "start"
    end: str = "end"
    limit: int = limits.FRAME_READ_DEFAULT
    visibility: Literal["all", "exclude_best_effort"] = "all"

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        if self.attempt_index is not None:
            ids.check_range(self.attempt_index, "attempt_index", 0, limits.COUNT_MAX)
        ids.check_range(self.limit, "limit", 1, limits.FRAME_READ_MAX)
        for cursor, open_end in ((self.start, "start"), (self.end, "end")):
            if cursor != open_end:
                _check_cursor(cursor, self.attempt_index)


class StreamTail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read the frames after a cursor, waiting up to `wait_ms` for one. Without `attempt_index`: over the whole run."""

    execution_id: ExecutionId
    attempt_index: int | None = None
    after: str | None = None
    """Exclusive; absent: from the beginning."""
    wait_ms: int = 0
    limit: int = limits.FRAME_TAIL_DEFAULT
    visibility: Literal["all", "exclude_best_effort"] = "all"

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        if self.attempt_index is not None:
            ids.check_range(self.attempt_index, "attempt_index", 0, limits.COUNT_MAX)
        ids.check_range(self.limit, "limit", 1, limits.PAGE_MAX)
        ids.check_range(self.wait_ms, "wait_ms", 0, limits.WAIT_MAX_MS)
        if self.after is not None:
            _check_cursor(self.after, self.attempt_index)


def _check_cursor(cursor: str, attempt_index: int | None) -> None:
    if attempt_index is None:
        parse_run_cursor(cursor)
    else:
        parse_attempt_cursor(cursor)


class FramePage(msgspec.Struct, frozen=True, kw_only=True):
    """Frames, oldest first."""

    frames: tuple[Frame, ...]
    next_cursor: str
    """Continue after this one; also set when the page is empty."""
    trimmed: bool
    """Frames after the cursor asked for were removed by retention before they could be read."""
    closed_at_ms: int | None
    """Set once nothing more will come: the attempt's stream closed, or the run ended. Frames may still follow on
    further pages: read on until a page is empty."""
    closed_reason: StreamClosedReason | None


class StreamReadSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read an attempt's summary document."""

    execution_id: ExecutionId
    attempt_index: int

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_range(self.attempt_index, "attempt_index", 0, limits.COUNT_MAX)


class Summary(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="summary"):
    """The document that an attempt's merge patches add up to."""

    document: msgspec.Raw
    version: int
    patch_kind: Literal["json_merge_patch"]
    first_applied_at_ms: int
    last_updated_at_ms: int


class NoSummary(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="none"):
    """The attempt has written no summary frame."""


class StreamStore(Protocol):
    """Operations on streams."""

    @operation(
        "POST /v1/executions/{execution_id}/attempts/{attempt_index}/stream",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.SEQUENCE,
        refuses=(
            InvalidInput,
            FenceRequired,
            PartialFence,
            RetentionLimitExceeded,
            InvalidFrameType,
            ExecutionNotFound,
            StreamClosed,
            StaleOwnerCannotAppend,
            FrameSequenceGap,
            DocumentTooLarge,
        ),
        body_max=limits.BODY_APPEND_MAX,
        hot=True,
    )
    async def append(self, command: StreamAppend) -> FramesAppended:
        """Append frames to the live attempt's stream.

        Frames whose sequence was appended before are not appended again; a sequence that skips is refused.
        """
        ...

    @reading(
        "GET /v1/executions/{execution_id}/attempts/{attempt_index}/stream",
        "GET /v1/executions/{execution_id}/stream",
        refuses=(InvalidInput, InvalidOffset, ExecutionNotFound, ResourceExhausted),
        paging=True,
    )
    async def read(self, command: StreamRead) -> FramePage:
        """Read frames between two cursors. A stream never written to is empty, not an error."""
        ...

    @reading(
        "GET /v1/executions/{execution_id}/attempts/{attempt_index}/stream/tail",
        "GET /v1/executions/{execution_id}/stream/tail",
        refuses=(InvalidInput, InvalidOffset, ExecutionNotFound, ResourceExhausted),
        long_wait=True,
        paging=True,
        server_sent_events=True,
    )
    async def tail(self, command: StreamTail) -> FramePage:
        """Read the frames after a cursor, waiting for one if there is none; closing wakes the wait too."""
        ...

    @reading(
        "GET /v1/executions/{execution_id}/attempts/{attempt_index}/summary",
        refuses=(InvalidInput, ExecutionNotFound),
    )
    async def read_summary(self, command: StreamReadSummary) -> Summary | NoSummary:
        """Read an attempt's summary document."""
        ...
