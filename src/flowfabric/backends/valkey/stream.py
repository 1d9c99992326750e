"""Streams in Valkey: appending frames in one call, and reading them within an attempt or over a whole run.

The lease holder is the only writer of its attempt's stream. Summary patches are merged here and stored by the same
call under the condition that the stream is where the merge began; what comes in between is merged again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from flowfabric.backends.bells import Bells
from flowfabric.backends.frame_pages import Range, is_enough, range_of_read, range_of_tail
from flowfabric.backends.summaries import MERGES_MAX, Merge, has_summary, merge_frames, summary_versions
from flowfabric.backends.valkey.calling import Again, Calls
from flowfabric.backends.valkey.frames import header_of, keys_of, read_attempt, read_run
from flowfabric.backends.valkey.keys import Partition, Partitions
from flowfabric.backends.valkey.record import stream_of
from flowfabric.backends.waiting import wait_for
from flowfabric.contract import limits
from flowfabric.contract.errors import ExecutionNotFound, ResourceExhausted, Unavailable
from flowfabric.contract.ids import ExecutionId, execution_uuid
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import (
    FrameInput,
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

_MODES: Final = {FrameMode.DURABLE: "d", FrameMode.SUMMARY: "s"}


class Watching(Protocol):
    """Whoever hears from other processes that an execution changed."""

    def watching(self, partition: Partition, uuid: str) -> AbstractAsyncContextManager[None]:
        """Have this process's watchers of an execution woken whenever it changes, as long as the context lasts."""
        ...


class ValkeyStreams:
    """Operations on streams."""

    def __init__(self, calls: Calls, partitions: Partitions, bells: Bells, wakes: Watching) -> None:
        self._calls = calls
        self._partitions = partitions
        self._bells = bells
        self._wakes = wakes
        self._reading = 0

    async def append(self, command: StreamAppend) -> FramesAppended:
        """Append frames to the live attempt's stream."""
        command.check()
        partition = self._partitions.of(command.execution_id)
        if not has_summary(command.frames):
            return await self._append(partition, command, None)
        for _ in range(MERGES_MAX):
            merge = await self._merge(partition, command)
            try:
                return await self._append(partition, command, merge)
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
        uuid = execution_uuid(command.execution_id)
        async with self._wakes.watching(self._partitions.of(command.execution_id), uuid):
            return await wait_for(look, is_enough, bells=self._bells, uuid=uuid, wait_ms=command.wait_ms)

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
        partition = self._partitions.of(execution_id)
        if attempt_index is None:
            return await read_run(self._calls, partition, execution_id, span)
        return await read_attempt(self._calls, partition, execution_id, attempt_index, span)

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
        partition = self._partitions.of(execution_id)
        ((exists, stream, document),) = await self._calls.read(
            partition,
            [
                (
                    "HMGET",
                    partition.execution(execution_uuid(execution_id)),
                    "v",
                    f"s{attempt_index}",
                    f"y{attempt_index}",
                )
            ],
        )
        if exists is None:
            raise ExecutionNotFound(execution_id=execution_id)
        return stream_of(stream, document)

    # Appending ----------------------------------------------------------------------------------------------------

    async def _merge(self, partition: Partition, command: StreamAppend) -> Merge:
        stream = await self._stream(command.execution_id, command.attempt_index) or StreamRecord()
        return merge_frames(stream, command.frames)

    async def _append(
        self, partition: Partition, command: StreamAppend, merge: Merge | None
    ) -> FramesAppended:
        uuid = execution_uuid(command.execution_id)
        fence, frames = command.fence, command.frames
        assert fence is not None, "an append without a fence is refused before"
        keys = keys_of(partition, uuid, command.attempt_index)
        modes = {frame.mode for frame in frames}
        found = await self._calls.call(
            partition,
            "stream_append",
            [
                partition.execution(uuid),
                partition.due,
                *(key for mode, key in keys.items() if mode in modes),
            ],
            attempt_index=command.attempt_index,
            lease_id=fence.lease_id,
            lease_epoch=fence.lease_epoch,
            attempt_id=fence.attempt_id,
            lane=fence.lane,
            route=fence.route,
            first=frames[0].sequence,
            seen=merge.seen if merge is not None else None,
            document=merge.document if merge is not None else None,
            fault=merge.fault if merge is not None else None,
            fault_message=merge.message if merge is not None else "",
            frames=_written(frames, merge),
        )
        last_ms, last_seq, last_sequence, frame_count, duplicates, version = found
        return FramesAppended(
            last_frame_id=f"{last_ms}-{last_seq}",
            last_sequence=last_sequence,
            frame_count=frame_count,
            duplicates=duplicates,
            summary_version=version or None,
        )


def _written(frames: Sequence[FrameInput], merge: Merge | None) -> list[bytes | str]:
    """Return mode, header and payload of each frame in turn. Versions count on from the stream that was merged upon."""
    written: list[bytes | str] = []
    for frame, summary_version in zip(frames, summary_versions(merge, frames), strict=True):
        mode = _MODES.get(frame.mode) or f"b{frame.ttl_ms}"
        written += (mode, header_of(frame, summary_version), frame.payload.data)
    return written
