"""Reading frames in Postgres: one page within an attempt, or over a run, with one statement.

What must stay true: a page is of one snapshot. The frames of a stream become visible in the order of their ids: an
append gives out its ids while it holds the execution's row, and reads the last one given out after it got the row, so
ids that are visible later are larger, also when transactions overlap. Therefore a reader that goes on after the last
id it has seen misses nothing; and because the end of the stream and what was removed from it are seen at the same
instant as its frames, nothing is left behind a page that says it was the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import msgspec

from flowfabric.backends.frame_pages import FAR, PAGE_BYTES_MAX, Pages, Position, Range
from flowfabric.backends.postgres.record import Named
from flowfabric.backends.vectors import VECTORS
from flowfabric.contract import limits
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import AttemptType, FrameMode, LifecyclePhase, StreamClosedReason
from flowfabric.contract.stream import Frame, FramePage, StreamRecord

_INDEX_MAX: Final = limits.COUNT_MAX + 1


class Streamed(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt as pages show it, and what is gone of its stream."""

    attempt_id: str
    attempt_index: int
    attempt_type: AttemptType
    worker_instance: str
    started_at_ms: int
    stream_closed_at_ms: int | None
    stream_closed_reason: StreamClosedReason | None
    stream: StreamRecord | None
    """None: nothing was ever appended."""


def arguments_of(span: Range) -> tuple[Any, ...]:
    """Return what the statement that looks takes beside the execution: after, until, limit, lossless, bytes."""
    return *_bounded(span.after), *_bounded(span.until), span.limit, span.lossless, PAGE_BYTES_MAX


def page_of_attempt(found: Named, span: Range) -> FramePage:
    """Make a page of an attempt's stream out of what was found."""
    pages = Pages(span)
    attempt = next(iter(_attempts(found)), None)
    if attempt is not None and attempt.stream is not None:
        pages.take(attempt.attempt_index, attempt.stream, _frames(found))
    return pages.of_attempt(_ended_at_ms(found), attempt)


def page_of_run(found: Named, span: Range) -> FramePage:
    """Make a page over all attempts of an execution, oldest attempt first."""
    pages = Pages(span)
    frames = {index: list(some) for index, some in groupby(_frames(found), lambda frame: frame.attempt_index)}
    for attempt in _attempts(found):
        if pages.is_full:
            break
        pages.mark(attempt)
        if attempt.stream is not None and not pages.is_full:
            index = attempt.attempt_index
            pages.take(index, attempt.stream, frames.get(index, ())[: pages.wanted(index).limit])
    return pages.of_run(_ended_at_ms(found), _reason(found["stream_closed_reason"]))


def stream_of(found: Named) -> StreamRecord | None:
    """Build what is known of a stream whose summary was asked for; None: nothing was ever appended."""
    if found["version"] is None:
        return None
    document = found["document"]
    return StreamRecord(
        last_sequence=found["last_sequence"],
        version=found["version"],
        first_applied_at_ms=found["first_applied_at_ms"],
        last_updated_at_ms=found["last_updated_at_ms"],
        document=msgspec.Raw(document if document is not None else b"{}"),
    )


def _bounded(position: Position) -> Position:
    """Keep a position within what columns hold."""
    attempt, ms, seq = position
    return min(attempt, _INDEX_MAX), min(ms, FAR), min(seq, FAR)


def _ended_at_ms(found: Named) -> int | None:
    vector: int = found["vector"]
    ended = VECTORS[vector].lifecycle_phase is LifecyclePhase.TERMINAL
    return found["completed_at_ms"] if ended else None


def _reason(word: str | None) -> StreamClosedReason | None:
    return StreamClosedReason(word) if word is not None else None


def _attempts(found: Named) -> list[Streamed]:
    columns: list[Sequence[Any]] = [
        found[name] or ()
        for name in (
            "attempt_indexes",
            "attempt_ids",
            "attempt_types",
            "worker_instances",
            "started_at_ms",
            "streams_closed_at_ms",
            "streams_closed_reasons",
            "trimmed_ms",
            "trimmed_seq",
        )
    ]
    return [
        Streamed(
            attempt_id=attempt_id,
            attempt_index=index,
            attempt_type=AttemptType(kind),
            worker_instance=instance,
            started_at_ms=started_at_ms,
            stream_closed_at_ms=closed_at_ms,
            stream_closed_reason=_reason(reason),
            stream=StreamRecord(trimmed_ms=ms, trimmed_seq=seq) if ms is not None else None,
        )
        for index, attempt_id, kind, instance, started_at_ms, closed_at_ms, reason, ms, seq in zip(
            *columns, strict=True
        )
    ]


def _frames(found: Named) -> list[Frame]:
    columns: list[Sequence[Any]] = [
        found[name] or ()
        for name in (
            "frame_attempts",
            "frame_ms",
            "frame_seq",
            "sequences",
            "modes",
            "frame_types",
            "content_types",
            "correlation_ids",
            "ttl_ms",
            "summary_versions",
            "payloads",
        )
    ]
    return [
        Frame(
            frame_id=f"{ms}-{seq}",
            attempt_index=index,
            sequence=sequence,
            frame_type=frame_type,
            mode=FrameMode(mode),
            at_ms=ms,
            payload=Payload(data, content_type),
            correlation_id=correlation_id,
            ttl_ms=ttl_ms,
            summary_version=version,
        )
        for index, ms, seq, sequence, mode, frame_type, content_type, correlation_id, ttl_ms, version, data in zip(
            *columns, strict=True
        )
    ]
