"""Streams in Postgres: appending frames, and reading them within an attempt or over a whole run.

The lease holder is the only writer of its attempt's stream. Appends that come at the same time share a statement, each
with its own outcome. Summary patches are merged here and stored by the append under the condition that the stream is
where the merge began; what comes in between is merged again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from flowfabric.backends.frame_pages import Range, is_enough, range_of_read, range_of_tail
from flowfabric.backends.postgres.batching import Batch
from flowfabric.backends.postgres.calling import Again
from flowfabric.backends.postgres.frames import arguments_of, page_of_attempt, page_of_run, stream_of
from flowfabric.backends.postgres.record import place_of
from flowfabric.backends.postgres.store import Store
from flowfabric.backends.postgres.wakes import Wakes
from flowfabric.backends.summaries import MERGES_MAX, Merge, has_summary, merge_frames, summary_versions
from flowfabric.contract import limits
from flowfabric.contract.errors import ExecutionNotFound, ResourceExhausted, Unavailable
from flowfabric.contract.ids import ExecutionId
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

APPEND: Final = Batch(
    function="stream_append",
    types=(
        "integer",  # partition
        "uuid",  # id
        "integer",  # attempt index
        "uuid",  # lease id
        "bigint",  # lease epoch
        "uuid",  # attempt id
        "text",  # lane
        "text",  # route
        "bigint",  # first sequence
        "integer",  # how many frames
        "bigint",  # seen
        "bytea",  # document
        "text",  # fault
        "text",  # its message
        # Of each frame:
        "text",  # mode
        "bigint",  # ttl
        "text",  # frame type
        "text",  # content type
        "text",  # correlation id
        "bigint",  # summary version
        "bytea",  # payload
    ),
    columns=("last_ms", "last_seq", "last_sequence", "frame_count", "duplicates", "version"),
    is_heavy=True,
    spread=7,
)


class PostgresStreams:
    """Operations on streams."""

    def __init__(self, store: Store, wakes: Wakes) -> None:
        self._calls = store.calls
        self._wakes = wakes
        sql = store.sql("sql/queries/stream.sql")
        self._look_at: Final = sql["look"]
        self._summary: Final = sql["summary"]
        self._reading = 0

    async def append(self, command: StreamAppend) -> FramesAppended:
        """Append frames to the live attempt's stream."""
        command.check()
        if not has_summary(command.frames):
            return await self._append(command, None)
        for _ in range(MERGES_MAX):
            stream = await self._stream(command.execution_id, command.attempt_index)
            try:
                return await self._append(command, merge_frames(stream or StreamRecord(), command.frames))
            except Again:
                # Somebody else with this fence has appended meanwhile.
                continue
        raise Unavailable("this attempt's summary is being written from elsewhere too: try again")

    async def read(self, command: StreamRead) -> FramePage:
        """Read frames between two cursors."""
        command.check()
        span = range_of_read(command)
        return await self._limited(lambda: self._look(command.execution_id, command.attempt_index, span))

    async def tail(self, command: StreamTail) -> FramePage:
        """Read the frames after a cursor, waiting for one."""
        command.check()
        span = range_of_tail(command)

        def look() -> Awaitable[FramePage]:
            return self._look(command.execution_id, command.attempt_index, span)

        first = await self._limited(look)
        if command.wait_ms == 0 or is_enough(first):
            return first
        return await self._wakes.wait_for(
            look, is_enough, execution_id=command.execution_id, wait_ms=command.wait_ms
        )

    async def read_summary(self, command: StreamReadSummary) -> Summary | NoSummary:
        """Read an attempt's summary document."""
        command.check()
        stream = await self._stream(command.execution_id, command.attempt_index)
        if stream is None or stream.version == 0:
            return NoSummary()
        return Summary(
            document=stream.document,
            version=stream.version,
            patch_kind="json_merge_patch",
            first_applied_at_ms=stream.first_applied_at_ms,
            last_updated_at_ms=stream.last_updated_at_ms,
        )

    # Reading ------------------------------------------------------------------------------------------------------

    async def _look(self, execution_id: ExecutionId, attempt_index: int | None, span: Range) -> FramePage:
        found = await self._calls.row(self._look_at, *place_of(execution_id), *arguments_of(span))
        if found is None:
            raise ExecutionNotFound(execution_id=execution_id)
        return page_of_run(found, span) if attempt_index is None else page_of_attempt(found, span)

    async def _limited(self, read: Callable[[], Awaitable[FramePage]]) -> FramePage:
        """Refuse more reads at once than the store can serve soon; tails that wait do not count."""
        if self._reading >= limits.STREAM_READS_QUEUED_MAX:
            raise ResourceExhausted("too many stream reads at once: try again shortly", retry_after_ms=25)
        self._reading += 1
        try:
            return await read()
        finally:
            self._reading -= 1

    async def _stream(self, execution_id: ExecutionId, attempt_index: int) -> StreamRecord | None:
        """Read how far a stream goes and its summary document; None when nothing was ever appended."""
        found = await self._calls.row(self._summary, *place_of(execution_id), attempt_index)
        if found is None:
            raise ExecutionNotFound(execution_id=execution_id)
        return stream_of(found)

    # Appending ----------------------------------------------------------------------------------------------------

    async def _append(self, command: StreamAppend, merge: Merge | None) -> FramesAppended:
        partition, uuid = place_of(command.execution_id)
        fence, frames = command.fence, command.frames
        assert fence is not None, "an append without a fence is refused before"
        values: tuple[Any, ...] = (
            partition,
            uuid,
            command.attempt_index,
            fence.lease_id,
            fence.lease_epoch,
            fence.attempt_id,
            fence.lane,
            fence.route,
            frames[0].sequence,
            len(frames),
            merge.seen if merge is not None else None,
            merge.document if merge is not None else None,
            merge.fault if merge is not None else None,
            merge.message if merge is not None else None,
            [frame.mode.value for frame in frames],
            [frame.ttl_ms for frame in frames],
            [frame.frame_type for frame in frames],
            [frame.payload.content_type for frame in frames],
            [frame.correlation_id for frame in frames],
            summary_versions(merge, frames),
            [frame.payload.data for frame in frames],
        )
        found = await self._calls.hot(APPEND, values, uuid)
        return FramesAppended(
            last_frame_id=f"{found['last_ms']}-{found['last_seq']}",
            last_sequence=found["last_sequence"],
            frame_count=found["frame_count"],
            duplicates=found["duplicates"],
            summary_version=found["version"] or None,
        )
