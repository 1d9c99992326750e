"""Reading frames: pages within one attempt, and over a run, where a marker shows the start of each attempt."""

from __future__ import annotations

from typing import Final

import msgspec

from flowfabric.backends import assets
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.rows import Row, Snapshot
from flowfabric.contract import limits
from flowfabric.contract.attempt import AttemptRecord
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import FrameMode, LifecyclePhase
from flowfabric.contract.stream import (
    ATTEMPT_STARTED,
    Frame,
    FramePage,
    StreamRead,
    StreamTail,
    parse_attempt_cursor,
    parse_run_cursor,
)

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/frames.sql")
PAGE_BYTES_MAX: Final = limits.BODY_BATCH_MAX
"""Payloads in one page; the first frame is given whatever its size."""
_FAR: Final = 10**16
"""Past every millisecond and every number within one."""

Position = tuple[int, int, int]
"""(attempt, ms, seq). An attempt begins at (attempt, 0, 0); its marker is the next place, its frames come after."""

MARKER_MS, MARKER_SEQ = 0, 1


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Which frames to read: those after `after`, up to and with `until`."""

    after: Position
    until: Position
    limit: int
    lossless: bool


def range_of_read(command: StreamRead) -> Range:
    """Return the range of a read, whose ends are both included."""
    attempt = command.attempt_index
    after: Position = (attempt or 0, 0, 0)
    until: Position = (attempt if attempt is not None else _FAR, _FAR, _FAR)
    if command.start != "start":
        after = _before(_position(command.start, attempt))
    if command.end != "end":
        until = _position(command.end, attempt)
    return Range(after=after, until=until, limit=command.limit, lossless=command.visibility != "all")


def range_of_tail(command: StreamTail) -> Range:
    """Return the range of a tail, which begins after its cursor."""
    attempt = command.attempt_index
    after: Position = (attempt or 0, 0, 0) if command.after is None else _position(command.after, attempt)
    until: Position = (attempt if attempt is not None else _FAR, _FAR, _FAR)
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
    return attempt, ms - 1, _FAR - 1


class _Collected:
    """Frames of one page as they are found."""

    def __init__(self, span: Range) -> None:
        self.span = span
        self.frames: list[Frame] = []
        self.last = span.after
        self.trimmed = False
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self.frames) >= self.span.limit or self._bytes >= PAGE_BYTES_MAX

    def read(self, snapshot: Snapshot, row: Row, attempt_index: int) -> None:
        """Take frames of one attempt until the page is full."""
        span = self.span
        _, ms, seq = self.last if self.last[0] == attempt_index else (0, 0, 0)
        _, until_ms, until_seq = span.until if span.until[0] == attempt_index else (0, _FAR, _FAR)
        stream = rows.load_stream(snapshot, row.seq, attempt_index)
        if stream is None:
            return
        self.trimmed |= (ms, seq) < (stream.trimmed_ms, stream.trimmed_seq) and stream.trimmed_ms > 0
        cursor = snapshot.execute(
            _SQL["lossless" if span.lossless else "all"],
            (row.seq, attempt_index, ms, seq, until_ms, until_seq, span.limit - len(self.frames)),
        )
        for found in cursor:
            if self.frames and self._bytes + len(found[9]) > PAGE_BYTES_MAX:
                self._bytes = PAGE_BYTES_MAX
                break
            self.frames.append(_frame(attempt_index, found))
            self.last = (attempt_index, found[0], found[1])
            self._bytes += len(found[9])
        cursor.close()
        trimmed = (attempt_index, stream.trimmed_ms, stream.trimmed_seq)
        if stream.trimmed_ms > 0 and not self.frames and trimmed <= span.until:
            # Nothing is left up to there: the next page starts after it, and is not told again.
            self.last = max(self.last, trimmed)

    def mark(self, attempt: AttemptRecord) -> None:
        """Show the start of an attempt, if the range holds it."""
        place = (attempt.attempt_index, MARKER_MS, MARKER_SEQ)
        if place > self.last and place <= self.span.until:
            self.frames.append(_marker(attempt))
            self.last = place


def read_attempt(snapshot: Snapshot, row: Row, attempt_index: int, span: Range) -> FramePage:
    """Read one page of an attempt's stream."""
    collected = _Collected(span)
    collected.read(snapshot, row, attempt_index)
    attempt = rows.load_attempt(snapshot, row, attempt_index)
    record = row.loaded.record
    closed_at_ms = attempt.stream_closed_at_ms if attempt is not None else None
    if attempt is None and record.state.lifecycle_phase is LifecyclePhase.TERMINAL:
        closed_at_ms = record.completed_at_ms
    _, ms, seq = collected.last
    return FramePage(
        frames=tuple(collected.frames),
        next_cursor=f"{ms}-{max(seq, 0)}",
        trimmed=collected.trimmed,
        closed_at_ms=closed_at_ms,
        closed_reason=attempt.stream_closed_reason if attempt is not None else None,
    )


def read_run(snapshot: Snapshot, row: Row, span: Range) -> FramePage:
    """Read one page over all attempts of an execution, oldest attempt first."""
    collected = _Collected(span)
    record = row.loaded.record
    for attempt in _attempts(snapshot, row, span):
        if collected.is_full or attempt.attempt_index > span.until[0]:
            break
        collected.mark(attempt)
        if not collected.is_full:
            collected.read(snapshot, row, attempt.attempt_index)
    ended = record.state.lifecycle_phase is LifecyclePhase.TERMINAL
    attempt_index, ms, seq = collected.last
    return FramePage(
        frames=tuple(collected.frames),
        next_cursor=f"{attempt_index}:{ms}-{max(seq, 0)}",
        trimmed=collected.trimmed,
        closed_at_ms=record.completed_at_ms if ended else None,
        closed_reason=record.attempt.stream_closed_reason if ended and record.attempt is not None else None,
    )


def _attempts(snapshot: Snapshot, row: Row, span: Range) -> list[AttemptRecord]:
    found = [
        rows.decode_attempt(stored)
        for (stored,) in snapshot.all(_SQL["attempts_from"], (row.seq, span.after[0], span.limit + 1))
    ]
    latest = row.loaded.record.attempt
    if latest is not None and len(found) <= span.limit and latest.attempt_index >= span.after[0]:
        found.append(latest)
    return found


def _frame(
    attempt_index: int,
    found: tuple[int, int, int, str, str, str, str | None, int | None, int | None, bytes],
) -> Frame:
    ms, seq, sequence, mode, frame_type, content_type, correlation_id, ttl_ms, summary_version, data = found
    return Frame(
        frame_id=f"{ms}-{seq}",
        attempt_index=attempt_index,
        sequence=sequence,
        frame_type=frame_type,
        mode=FrameMode(mode),
        at_ms=ms,
        payload=Payload(data, content_type),
        correlation_id=correlation_id,
        ttl_ms=ttl_ms,
        summary_version=summary_version,
    )


class _Started(msgspec.Struct):
    attempt_id: str
    attempt_index: int
    attempt_type: str
    worker_instance: str


def _marker(attempt: AttemptRecord) -> Frame:
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
        payload=Payload(rows.encode(started)),
    )
