"""Streams in SQLite: appending frames, and reading them within an attempt or over a whole run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from msgspec.structs import replace

from flowfabric.backends import assets
from flowfabric.backends.bells import Bells
from flowfabric.backends.frame_pages import is_enough, range_of_read, range_of_tail
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.apply import apply, store_stream
from flowfabric.backends.sqlite.frames import read_attempt, read_run
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.rows import Row, Snapshot
from flowfabric.backends.sqlite.writer import Transaction, Writer
from flowfabric.backends.waiting import wait_for
from flowfabric.contract import limits
from flowfabric.contract.errors import ResourceExhausted
from flowfabric.contract.ids import execution_uuid
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import (
    FramePage,
    FramesAppended,
    NoSummary,
    StreamAppend,
    StreamRead,
    StreamReadSummary,
    StreamRecord,
    StreamTail,
    Summary,
)
from flowfabric.rules import stream as rules
from flowfabric.rules.decision import Decision

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/stream.sql")


class SqliteStreams:
    """Operations on streams."""

    def __init__(self, writer: Writer, readers: Readers, bells: Bells) -> None:
        self._writer = writer
        self._readers = readers
        self._bells = bells
        self._reading = 0

    async def append(self, command: StreamAppend) -> FramesAppended:
        """Append frames to the live attempt's stream."""
        command.check()
        return await self._writer.write(lambda transaction: _append(transaction, command))

    async def read(self, command: StreamRead) -> FramePage:
        """Read frames between two cursors."""
        command.check()
        span = range_of_read(command)

        def look(snapshot: Snapshot) -> FramePage:
            row = rows.load(snapshot, command.execution_id)
            if command.attempt_index is None:
                return read_run(snapshot, row, span)
            return read_attempt(snapshot, row, command.attempt_index, span)

        return await self._limited(lambda: self._readers.read(look))

    async def tail(self, command: StreamTail) -> FramePage:
        """Read the frames after a cursor, waiting for one."""
        command.check()
        span = range_of_tail(command)

        def look(snapshot: Snapshot) -> FramePage:
            row = rows.load(snapshot, command.execution_id)
            if command.attempt_index is None:
                return read_run(snapshot, row, span)
            return read_attempt(snapshot, row, command.attempt_index, span)

        first = await self._limited(lambda: self._readers.read(look))
        if command.wait_ms == 0 or is_enough(first):
            return first
        return await wait_for(
            lambda: self._readers.read(look),
            is_enough,
            bells=self._bells,
            uuid=execution_uuid(command.execution_id),
            wait_ms=command.wait_ms,
        )

    async def read_summary(self, command: StreamReadSummary) -> Summary | NoSummary:
        """Read an attempt's summary document."""
        command.check()
        return await self._readers.read(lambda snapshot: _read_summary(snapshot, command))

    async def _limited(self, read: Callable[[], Awaitable[FramePage]]) -> FramePage:
        """Refuse more reads at once than the readers can serve soon; tails that wait do not count."""
        if self._reading >= limits.STREAM_READS_QUEUED_MAX:
            raise ResourceExhausted("too many stream reads at once: try again shortly", retry_after_ms=25)
        self._reading += 1
        try:
            return await read()
        finally:
            self._reading -= 1


def _append(transaction: Transaction, command: StreamAppend) -> FramesAppended:
    row = rows.load(transaction, command.execution_id)
    stream = rows.load_stream(transaction, row.seq, command.attempt_index)
    decision = rules.append(row.loaded, stream, command, transaction.now_ms)
    if decision.refusal is not None:
        raise decision.refusal
    if decision.stream is not None:
        for new in decision.frames:
            frame = new.frame
            transaction.execute(
                _SQL["insert_frame"],
                (
                    row.seq,
                    command.attempt_index,
                    new.ms,
                    new.seq,
                    frame.sequence,
                    frame.mode.value,
                    frame.frame_type,
                    frame.payload.content_type,
                    frame.correlation_id,
                    frame.ttl_ms,
                    new.summary_version,
                    frame.payload.data,
                ),
            )
        kept = _trim(transaction, row, command.attempt_index, decision.stream, decision.trim)
        store_stream(transaction, row.seq, command.attempt_index, kept)
        transaction.news.changed.add(execution_uuid(command.execution_id))
    if decision.record is not None:
        apply(transaction, row, Decision(record=decision.record))
    assert decision.reply is not None, "an accepted append is answered"
    return decision.reply


def _trim(
    transaction: Transaction,
    row: Row,
    attempt_index: int,
    stream: StreamRecord,
    trim: tuple[tuple[FrameMode, int], ...],
) -> StreamRecord:
    """Remove the oldest frames of a mode, and note the newest lasting one that went."""
    trimmed = (stream.trimmed_ms, stream.trimmed_seq)
    for mode, count in trim:
        oldest = transaction.all(_SQL["oldest"], (row.seq, attempt_index, mode.value, count))
        for ms, seq in oldest:
            transaction.execute(_SQL["delete_frame"], (row.seq, attempt_index, ms, seq))
        if oldest and mode is not FrameMode.BEST_EFFORT:
            trimmed = max(trimmed, oldest[-1])
    return replace(stream, trimmed_ms=trimmed[0], trimmed_seq=trimmed[1])


def _read_summary(snapshot: Snapshot, command: StreamReadSummary) -> Summary | NoSummary:
    row = rows.load(snapshot, command.execution_id)
    stream = rows.load_stream(snapshot, row.seq, command.attempt_index)
    if stream is None or stream.version == 0:
        return NoSummary()
    return Summary(
        document=stream.document,
        version=stream.version,
        patch_kind="json_merge_patch",
        first_applied_at_ms=stream.first_applied_at_ms,
        last_updated_at_ms=stream.last_updated_at_ms,
    )
