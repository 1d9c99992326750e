"""What the rows beside one execution must satisfy: attempts, history, streams and frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flowfabric.backends import assets
from flowfabric.backends.invariants import Problem, check_attempts, check_events, check_frames
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.rows import Row, Snapshot
from flowfabric.contract.states import FrameMode

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/fsck.sql")


def check_parts(snapshot: Snapshot, row: Row) -> tuple[int, int, list[Problem]]:
    """Return how many attempts and frames an execution has, and what is wrong with the rows beside it."""
    problems: list[Problem] = list(_check_events(snapshot, row))
    problems += _check_attempts(snapshot, row)
    frames = 0
    streams = [
        (attempt_index, expires_at_ms, rows.decode_stream(stored))
        for attempt_index, expires_at_ms, stored in snapshot.all(_SQL["streams"], (row.seq,))
    ]
    for attempt_index, expires_at_ms, stream in streams:
        found = snapshot.execute(_SQL["frames"], (row.seq, attempt_index))
        count, wrong = check_frames(
            attempt_index,
            stream,
            ((ms, seq, number, FrameMode(mode)) for ms, seq, number, mode in found),
        )
        frames += count
        problems += wrong
        if expires_at_ms != stream.expires_at_ms:
            problems.append(
                ("S10 stream and row agree", f"the stream of attempt {attempt_index} expires otherwise")
            )
        if attempt_index >= row.loaded.record.total_attempt_count:
            problems.append(
                ("S20 frames have an attempt", f"a stream of attempt {attempt_index}, which is none")
            )
    lost = snapshot.first(_SQL["frames_elsewhere"], (row.seq,))[0]
    if lost:
        problems.append(("S20 frames have a stream", f"{lost} frames belong to no stream"))
    return row.loaded.record.total_attempt_count, frames, problems


def _check_attempts(snapshot: Snapshot, row: Row) -> Iterator[Problem]:
    stored = [
        (attempt_index, attempt_id, rows.decode_attempt(body))
        for attempt_index, attempt_id, body in snapshot.all(_SQL["attempts"], (row.seq,))
    ]
    for attempt_index, attempt_id, attempt in stored:
        if attempt.attempt_id != attempt_id:
            yield "S8 attempts are numbered", f"the record of attempt {attempt_index} is another's"
    yield from check_attempts(row.loaded, [(index, attempt) for index, _, attempt in stored])


def _check_events(snapshot: Snapshot, row: Row) -> Iterator[Problem]:
    stored = (
        (event_id, rows.decode_event(body)) for event_id, body in snapshot.all(_SQL["events"], (row.seq,))
    )
    return check_events(row.loaded, stored)
