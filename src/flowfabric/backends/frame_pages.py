"""Pages of frames, within one attempt and over a run, where a marker shows the start of each attempt.

Here is which frames a read wants and how a page is put together from them; finding frames is each backend's own. What
must stay true: a page never skips a frame, a cursor is the last place seen, and what retention removed is said once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from flowfabric.contract import limits
from flowfabric.contract.execution import ExecutionRecord
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import AttemptType, FrameMode, LifecyclePhase, StreamClosedReason
from flowfabric.contract.stream import (
    ATTEMPT_STARTED,
    Frame,
    FramePage,
    StreamRead,
    StreamRecord,
    StreamTail,
    parse_attempt_cursor,
    parse_run_cursor,
)

PAGE_BYTES_MAX: Final = limits.BODY_BATCH_MAX
"""Payloads in one page; the first frame is given whatever its size."""
FAR: Final = 10**16
"""Past every millisecond and every number within one."""

Place = tuple[int, int]
"""(ms, seq) within an attempt."""
Position = tuple[int, int, int]
"""(attempt, ms, seq). An attempt begins at (attempt, 0, 0); its marker is the next place, its frames come after."""

MARKER_MS, MARKER_SEQ = 0, 1


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Which frames to read: those after `after`, up to and with `until`."""

    after: Position
    until: Position
    limit: int
    lossless: bool


class StreamedAttempt(Protocol):
    """What a page needs to know of an attempt; an `AttemptRecord` is one."""

    @property
    def attempt_id(self) -> str:
        """Its id."""
        ...

    @property
    def attempt_index(self) -> int:
        """Its number."""
        ...

    @property
    def attempt_type(self) -> AttemptType:
        """Why it was begun."""
        ...

    @property
    def worker_instance(self) -> str:
        """Whose it is."""
        ...

    @property
    def started_at_ms(self) -> int:
        """When it began."""
        ...

    @property
    def stream_closed_at_ms(self) -> int | None:
        """When its stream was closed."""
        ...

    @property
    def stream_closed_reason(self) -> StreamClosedReason | None:
        """Why its stream was closed."""
        ...


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """Which frames of one attempt to read: those after `after`, up to and with `until`, oldest first."""

    after: Place
    until: Place
    limit: int
    lossless: bool


def range_of_read(command: StreamRead) -> Range:
    """Return the range of a read, whose ends are both included."""
    attempt = command.attempt_index
    after: Position = (attempt or 0, 0, 0)
    until: Position = (attempt if attempt is not None else FAR, FAR, FAR)
    if command.start != "start":
        after = _before(_position(command.start, attempt))
    if command.end != "end":
        until = _position(command.end, attempt)
    return Range(after=after, until=until, limit=command.limit, lossless=command.visibility != "all")


def range_of_tail(command: StreamTail) -> Range:
    """Return the range of a tail, which begins after its cursor."""
    attempt = command.attempt_index
    after: Position = (attempt or 0, 0, 0) if command.after is None else _position(command.after, attempt)
    until: Position = (attempt if attempt is not None else FAR, FAR, FAR)
    return Range(after=after, until=until, limit=command.limit, lossless=command.visibility != "all")


def _position(cursor: str, attempt_index: int | None) -> Position:
    if attempt_index is None:
        return parse_run_cursor(cursor)
    return (attempt_index, *parse_attempt_cursor(cursor))


def _before(position: Position) -> Position:
    """Return the place just before a frame."""
    attempt, ms, seq = position
    if seq > 0 or ms == 0:
        return attempt, ms, seq - 1
    return attempt, ms - 1, FAR - 1


def ended_at_ms(record: ExecutionRecord) -> int | None:
    """Return when the run ended, None while it lasts."""
    return record.completed_at_ms if record.state.lifecycle_phase is LifecyclePhase.TERMINAL else None


def latest_reason(record: ExecutionRecord) -> StreamClosedReason | None:
    """Return why the latest attempt's stream was closed."""
    return record.attempt.stream_closed_reason if record.attempt is not None else None


def is_enough(page: FramePage) -> bool:
    """Say whether a page is one that a tail answers with at once."""
    return bool(page.frames) or page.trimmed or page.closed_at_ms is not None


class Pages:
    """Frames of one page as they are found, attempt by attempt."""

    def __init__(self, span: Range) -> None:
        self.span = span
        self.frames: list[Frame] = []
        self.last = span.after
        self.trimmed = False
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Nothing more fits."""
        return len(self.frames) >= self.span.limit or self._bytes >= PAGE_BYTES_MAX

    @property
    def room(self) -> int:
        """Bytes of payloads that still fit."""
        return PAGE_BYTES_MAX - self._bytes

    def wanted(self, attempt_index: int) -> Slice:
        """Return which frames of an attempt go on the page."""
        last, until = self.last, self.span.until
        return Slice(
            after=last[1:] if last[0] == attempt_index else (0, 0),
            until=until[1:] if until[0] == attempt_index else (FAR, FAR),
            limit=self.span.limit - len(self.frames),
            lossless=self.span.lossless,
        )

    def take(self, attempt_index: int, stream: StreamRecord, frames: Iterable[Frame]) -> None:
        """Take frames of one attempt, at most as many as are wanted, until the page is full.

        `stream` must not be older than the frames, or what was removed meanwhile would go unsaid.
        """
        after = self.wanted(attempt_index).after
        self.trimmed |= after < (stream.trimmed_ms, stream.trimmed_seq) and stream.trimmed_ms > 0
        for frame in frames:
            size = len(frame.payload.data)
            if self.frames and self._bytes + size > PAGE_BYTES_MAX:
                self._bytes = PAGE_BYTES_MAX
                break
            self.frames.append(frame)
            self.last = (attempt_index, *place_of(frame))
            self._bytes += size
        trimmed = (attempt_index, stream.trimmed_ms, stream.trimmed_seq)
        if stream.trimmed_ms > 0 and not self.frames and trimmed <= self.span.until:
            # Nothing is left up to there: the next page starts after it, and is not told again.
            self.last = max(self.last, trimmed)

    def mark(self, attempt: StreamedAttempt) -> None:
        """Show the start of an attempt, if the range holds it."""
        place = (attempt.attempt_index, MARKER_MS, MARKER_SEQ)
        if place > self.last and place <= self.span.until:
            self.frames.append(_marker(attempt))
            self.last = place

    def of_attempt(self, ended_at_ms: int | None, attempt: StreamedAttempt | None) -> FramePage:
        """Finish a page of one attempt's stream; `ended_at_ms`: when the run ended, if it has."""
        closed_at_ms = attempt.stream_closed_at_ms if attempt is not None else ended_at_ms
        _, ms, seq = self.last
        return FramePage(
            frames=tuple(self.frames),
            next_cursor=f"{ms}-{max(seq, 0)}",
            trimmed=self.trimmed,
            closed_at_ms=closed_at_ms,
            closed_reason=attempt.stream_closed_reason if attempt is not None else None,
        )

    def of_run(self, ended_at_ms: int | None, reason: StreamClosedReason | None) -> FramePage:
        """Finish a page over all attempts; `reason`: why the latest attempt's stream was closed."""
        attempt_index, ms, seq = self.last
        return FramePage(
            frames=tuple(self.frames),
            next_cursor=f"{attempt_index}:{ms}-{max(seq, 0)}",
            trimmed=self.trimmed,
            closed_at_ms=ended_at_ms,
            closed_reason=reason if ended_at_ms is not None else None,
        )


def place_of(frame: Frame) -> Place:
    """Return where a frame stands within its attempt."""
    ms, _, seq = frame.frame_id.partition("-")
    return int(ms), int(seq)


class _Started(msgspec.Struct):
    attempt_id: str
    attempt_index: int
    attempt_type: str
    worker_instance: str


def _marker(attempt: StreamedAttempt) -> Frame:
    started = _Started(
        attempt.attempt_id, attempt.attempt_index, attempt.attempt_type.value, attempt.worker_instance
    )
    return Frame(
        frame_id=f"{MARKER_MS}-{MARKER_SEQ}",
        attempt_index=attempt.attempt_index,
        sequence=0,
        frame_type=ATTEMPT_STARTED,
        mode=FrameMode.DURABLE,
        at_ms=attempt.started_at_ms,
        payload=Payload(msgspec.json.encode(started)),
    )
