"""What the rows beside one execution must satisfy: attempts, history, streams and frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flowfabric.backends import assets
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.fsck_execution import Problem
from flowfabric.backends.sqlite.rows import Row, Snapshot
from flowfabric.contract.states import ATTEMPT_ENDED, FrameMode, LeaseEventName
from flowfabric.contract.stream import StreamRecord

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/fsck.sql")
_TAKEN: Final = (LeaseEventName.ACQUIRED, LeaseEventName.RECLAIMED)


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
        count, found = _check_frames(snapshot, row, attempt_index, stream)
        frames += count
        problems += found
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
    latest = row.loaded.record.attempt
    stored = snapshot.all(_SQL["attempts"], (row.seq,))
    before = row.loaded.record.total_attempt_count - 1
    if [index for index, _, _ in stored] != list(range(max(before, 0))):
        yield (
            "S8 attempts are numbered",
            f"{len(stored)} earlier attempts are stored, should be 0 to {before - 1}",
        )
    seen: set[str] = {latest.attempt_id} if latest is not None else set()
    epoch = -1
    for attempt_index, attempt_id, body in stored:
        attempt = rows.decode_attempt(body)
        if (attempt.attempt_index, attempt.attempt_id) != (attempt_index, attempt_id):
            yield "S8 attempts are numbered", f"the record of attempt {attempt_index} is another's"
        if attempt_id in seen:
            yield "S8 attempts are numbered", f"attempt {attempt_index} has the id of another"
        seen.add(attempt_id)
        if attempt.state not in ATTEMPT_ENDED:
            yield (
                "S8 attempts are numbered",
                f"attempt {attempt_index} was followed by another without having ended",
            )
        if attempt.lease_epoch <= epoch:
            yield (
                "S2 epochs increase",
                f"attempt {attempt_index} has epoch {attempt.lease_epoch}, not above {epoch}",
            )
        epoch = max(epoch, attempt.lease_epoch)
    if stored and latest is not None and latest.lease_epoch <= epoch:
        yield "S2 epochs increase", f"the latest attempt has epoch {latest.lease_epoch}, not above {epoch}"


def _check_events(snapshot: Snapshot, row: Row) -> Iterator[Problem]:
    epoch, at_ms, ends = -1, 0, 0
    held: str | None = None
    used: set[str] = set()
    record = row.loaded.record
    for event_id, body in snapshot.all(_SQL["events"], (row.seq,)):
        event = rows.decode_event(body)
        if event.event_id != event_id:
            yield "S20 events are ordered", f"event {event_id} carries id {event.event_id}"
        if event.at_ms < at_ms:
            yield "S20 events are ordered", f"event {event_id} is older than the one before it"
        at_ms = event.at_ms
        if event.name in _TAKEN:
            if event.lease_epoch <= epoch:
                yield "S2 epochs increase", f"event {event_id}: epoch {event.lease_epoch} follows {epoch}"
            if held is not None:
                yield "S1 one live lease", f"event {event_id}: a lease was given while {held} was held"
            if event.lease_id is not None and event.lease_id in used:
                yield "S2 epochs increase", f"event {event_id}: lease id {event.lease_id} was used before"
            held = event.lease_id
            used.add(held or "")
        elif event.name is not LeaseEventName.RENEWED:
            held = None
        epoch = max(epoch, event.lease_epoch)
        if event.outcome is not None:
            ends += 1
        if event.name is LeaseEventName.REPLAY_INITIATED:
            ends = 0
        if ends > 1:
            yield "S6 one end", f"event {event_id} ends it once more"
    if epoch > record.lease_epoch:
        yield "S2 epochs increase", f"its history knows epoch {epoch}, its record {record.lease_epoch}"


def _check_frames(
    snapshot: Snapshot, row: Row, attempt_index: int, stream: StreamRecord
) -> tuple[int, list[Problem]]:
    kept = dict.fromkeys(FrameMode, 0)
    problems: list[Problem] = []
    name = f"attempt {attempt_index}"
    sequence = 0
    last = (0, 0)
    for ms, seq, number, mode in snapshot.execute(_SQL["frames"], (row.seq, attempt_index)):
        kept[FrameMode(mode)] += 1
        if number <= sequence:
            problems.append(("S20 frames are ordered", f"{name}: frame {number} follows {sequence}"))
        sequence, last = number, (ms, seq)
    counted = {
        FrameMode.DURABLE: stream.durable_kept,
        FrameMode.SUMMARY: stream.summary_kept,
        FrameMode.BEST_EFFORT: stream.best_effort_kept,
    }
    if kept != counted:
        problems.append(
            (
                "S20 frames are counted",
                f"{name}: {sum(kept.values())} frames, {sum(counted.values())} counted",
            )
        )
    if sequence > stream.last_sequence or last > (stream.last_ms, stream.last_seq):
        problems.append(("S20 frames are ordered", f"{name}: a frame is newer than the stream's last"))
    if stream.frame_count < sum(kept.values()) or stream.frame_count != stream.last_sequence:
        problems.append(
            ("S20 frames are counted", f"{name}: {stream.frame_count} frames ever, does not add up")
        )
    if (stream.trimmed_ms, stream.trimmed_seq) > (stream.last_ms, stream.last_seq):
        problems.append(("S20 trimming is reported", f"{name}: more was removed than appended"))
    return sum(kept.values()), problems
