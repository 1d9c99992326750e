"""Judging executions one by one: the record, its attempts, its history and its streams, by the checks of all backends.

Everything is read in the snapshot of the page that the executions are on. What index entries must be is worked out
once more from the records, by the rule that all backends share, and compared with what the functions say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from flowfabric.backends.findings import Findings
from flowfabric.backends.invariants import (
    Problem,
    check_attempts,
    check_events,
    check_frames,
    check_record,
)
from flowfabric.backends.postgres.fsck_reading import Reading
from flowfabric.backends.postgres.record import Named, Row, attempt_of, event_of, loaded, row_of
from flowfabric.backends.vectors import VECTORS
from flowfabric.contract import limits
from flowfabric.contract.errors import Corrupt
from flowfabric.contract.execution import Loaded
from flowfabric.contract.indexing import index_entries
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import StreamRecord

FRAMES_AT_ONCE: Final = 1_000
Records = Sequence[Named]
_UNREADABLE: Final = (Corrupt, ValueError, TypeError, IndexError, KeyError, msgspec.MsgspecError)


class _Parts(msgspec.Struct):
    """The rows beside the executions, by row number."""

    attempts: Mapping[int, Records]
    events: Mapping[int, Records]
    streams: Mapping[int, Records]
    results: frozenset[int]


async def check_executions(reading: Reading, rows: Sequence[int], findings: Findings) -> int:
    """Judge executions by their row numbers; return how many frames they have."""
    parts = _Parts(
        attempts=_by_seq(await reading.fetch("attempts", rows)),
        events=_by_seq(await reading.fetch("events", rows)),
        streams=_by_seq(await reading.fetch("streams", rows)),
        results=frozenset(seq for (seq,) in await reading.fetch("results", rows)),
    )
    frames = 0
    for record in await reading.fetch("executions", rows):
        problems: list[Problem] = []
        seq = record["seq"]
        found: Loaded | None = None
        try:
            if record["document"] is not None:
                found = _load(row_of(record), record["document"])
        except _UNREADABLE as error:
            problems.append(("S9 legal state", f"its record cannot be read: {error}"))
        if found is not None:
            problems += _check_entries(found, record)
            problems += check_record(found, has_result=seq in parts.results)
            problems += _guarded(_check_attempts(found, parts.attempts.get(seq, ())))
            problems += _guarded(_check_events(found, parts.events.get(seq, ())))
            for stream in parts.streams.get(seq, ()):
                count, wrong = await _check_stream(reading, found, stream)
                frames += count
                problems += wrong
            problems += _check_expiries(found, parts.streams.get(seq, ()))
        subject = f"{{fp:{record['partition']}}}:{record['id']}"
        for invariant, message in problems:
            findings.add(invariant, subject, message)
    return frames


def _by_seq(records: Records) -> Mapping[int, Records]:
    found: defaultdict[int, list[Named]] = defaultdict(list)
    for record in records:
        found[record["seq"]].append(record)
    return found


def _load(row: Row, document: bytes) -> Loaded:
    if not 0 <= row.vector < len(VECTORS):
        raise Corrupt(f"there is no state vector {row.vector}")
    return loaded(row, document)


def _check_entries(found: Loaded, record: Named) -> Iterator[Problem]:
    """Hold the functions that write index entries to the rule that all backends share."""
    entries = index_entries(found.definition, found.record)
    differing = [
        name for name in entries.__struct_fields__ if getattr(entries, name) != record[f"entry_{name}"]
    ]
    if differing:
        yield (
            "S10 index and record agree (functions)",
            f"{', '.join(differing)}: this version's functions work out something else than this version does",
        )


def _guarded(problems: Iterator[Problem]) -> list[Problem]:
    """Take problems until a row cannot be read, which is one."""
    found: list[Problem] = []
    try:
        found.extend(problems)
    except _UNREADABLE as error:
        found.append(("S9 legal state", f"a part of it cannot be read: {error}"))
    return found


def _check_attempts(found: Loaded, stored: Records) -> Iterator[Problem]:
    return check_attempts(found, [(row["attempt_index"], attempt_of(row)) for row in stored])


def _check_events(found: Loaded, stored: Records) -> Iterator[Problem]:
    count = found.record.history_count
    numbers = [row["n"] for row in stored]
    if len(numbers) < min(count, limits.HISTORY_KEPT) or numbers != list(
        range(count - len(numbers) + 1, count + 1)
    ):
        yield "S20 events are ordered", f"{len(numbers)} events are stored, {count} were written"
    yield from check_events(found, ((row["n"], event_of(row)) for row in stored))


async def _check_stream(reading: Reading, found: Loaded, row: Named) -> tuple[int, list[Problem]]:
    """Return how many frames a stream has, and what is wrong with it."""
    problems: list[Problem] = []
    index = row["attempt_index"]
    if index >= found.record.total_attempt_count:
        problems.append(("S20 frames have an attempt", f"a stream of attempt {index}, which is none"))
    if row["version"] > 0 and row["document"] is None:
        problems.append(("S20 frames are counted", f"attempt {index}: its summary document is missing"))
    frames: list[tuple[int, int, int, FrameMode]] = []
    after = (-1, -1)
    try:
        while True:
            page = await reading.fetch("frames", row["seq"], index, *after, FRAMES_AT_ONCE)
            frames += [(ms, seq, number, FrameMode(mode)) for ms, seq, number, mode in page]
            if len(page) < FRAMES_AT_ONCE:
                break
            after = (page[-1]["ms"], page[-1]["frame_seq"])
        count, wrong = check_frames(index, _stream_of(row), frames)
    except _UNREADABLE as error:
        return len(frames), [*problems, ("S9 legal state", f"a part of it cannot be read: {error}")]
    return count, [*problems, *wrong]


def _stream_of(row: Named) -> StreamRecord:
    fields = {name: row[name] for name in StreamRecord.__struct_fields__ if name != "document"}
    return StreamRecord(**fields, document=msgspec.Raw(row["document"] or b"{}"))


def _check_expiries(found: Loaded, streams: Records) -> Iterator[Problem]:
    expiries = [row["expires_at_ms"] for row in streams if row["expires_at_ms"] is not None]
    due_ms = found.record.stream_due_at_ms
    if expiries and (due_ms is None or due_ms > min(expiries)):
        yield "S10 stream and row agree", "a stream expires, and the record does not say so"
