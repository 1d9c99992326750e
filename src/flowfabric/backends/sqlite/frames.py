"""Reading frames in SQLite: one page within an attempt, or over a run."""

from __future__ import annotations

from typing import Final

from flowfabric.backends import assets
from flowfabric.backends.frame_pages import Pages, Range, ended_at_ms, latest_reason
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.rows import Row, Snapshot
from flowfabric.contract.attempt import AttemptRecord
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import Frame, FramePage

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/frames.sql")


def read_attempt(snapshot: Snapshot, row: Row, attempt_index: int, span: Range) -> FramePage:
    """Read one page of an attempt's stream."""
    pages = Pages(span)
    _read(snapshot, row, attempt_index, pages)
    return pages.of_attempt(ended_at_ms(row.loaded.record), rows.load_attempt(snapshot, row, attempt_index))


def read_run(snapshot: Snapshot, row: Row, span: Range) -> FramePage:
    """Read one page over all attempts of an execution, oldest attempt first."""
    pages = Pages(span)
    for attempt in _attempts(snapshot, row, span):
        if pages.is_full or attempt.attempt_index > span.until[0]:
            break
        pages.mark(attempt)
        if not pages.is_full:
            _read(snapshot, row, attempt.attempt_index, pages)
    return pages.of_run(ended_at_ms(row.loaded.record), latest_reason(row.loaded.record))


def _read(snapshot: Snapshot, row: Row, attempt_index: int, pages: Pages) -> None:
    """Take frames of one attempt until the page is full."""
    stream = rows.load_stream(snapshot, row.seq, attempt_index)
    if stream is None:
        return
    wanted = pages.wanted(attempt_index)
    cursor = snapshot.execute(
        _SQL["lossless" if wanted.lossless else "all"],
        (row.seq, attempt_index, *wanted.after, *wanted.until, wanted.limit),
    )
    pages.take(attempt_index, stream, (_frame(attempt_index, found) for found in cursor))
    cursor.close()


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
