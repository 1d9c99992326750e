"""Reading frames in Valkey: one page within an attempt, or over a run.

The frames of an attempt are in three native streams, one per mode, whose ids never repeat each other. They are read
side by side and merged by id. No command sees more than one key at one instant, so the order of looking makes a page
right: first the execution and how far its streams go, then frames up to there, last what was removed meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.frame_pages import Pages, Place, Range, Slice, ended_at_ms, latest_reason
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.record import (
    Packed,
    attempt_of,
    pack,
    record_of,
    stream_of,
    superseded_of,
    unpack,
)
from flowfabric.backends.valkey.wire import Command
from flowfabric.contract.attempt import AttemptRecord
from flowfabric.contract.errors import Corrupt, ExecutionNotFound
from flowfabric.contract.execution import ExecutionRecord
from flowfabric.contract.ids import ExecutionId, execution_uuid
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import Frame, FrameInput, FramePage, StreamRecord

FIRST_CHUNK: Final = 128
"""Frames asked of one native stream at once while nothing is known of their size."""
CHUNK_MAX: Final = 2_000
ATTEMPTS_AT_ONCE: Final = 64


class Header(msgspec.Struct, array_like=True):
    """What is stored of a frame beside its payload and its id."""

    sequence: int
    frame_type: str
    content_type: str
    correlation_id: str | None
    ttl_ms: int | None
    summary_version: int | None


def header_of(frame: FrameInput, summary_version: int | None) -> bytes:
    """Encode what is stored of a frame beside its payload."""
    return pack(
        Header(
            frame.sequence,
            frame.frame_type,
            frame.payload.content_type,
            frame.correlation_id,
            frame.ttl_ms,
            summary_version,
        )
    )


def keys_of(partition: Partition, uuid: str, attempt_index: int) -> dict[FrameMode, str]:
    """Name the native streams of an attempt."""
    return {
        FrameMode.DURABLE: partition.durable(uuid, attempt_index),
        FrameMode.SUMMARY: partition.summary(uuid, attempt_index),
        FrameMode.BEST_EFFORT: partition.lossy(uuid, attempt_index),
    }


async def read_attempt(
    calls: Calls, partition: Partition, execution_id: ExecutionId, attempt_index: int, span: Range
) -> FramePage:
    """Read one page of an attempt's stream."""
    pages = Pages(span)
    look = _Look(calls, partition, execution_id)
    merged = look.frames_of(attempt_index, pages.wanted(attempt_index), pages.room)
    head = await look.begin(attempt_index, merged)
    if head.stream is not None:
        pages.take(attempt_index, *await look.finish(merged, head.stream))
    return pages.of_attempt(ended_at_ms(head.record), head.attempt)


async def read_run(calls: Calls, partition: Partition, execution_id: ExecutionId, span: Range) -> FramePage:
    """Read one page over all attempts of an execution, oldest attempt first."""
    pages = Pages(span)
    look = _Look(calls, partition, execution_id)
    index = span.after[0]
    merged = look.frames_of(index, pages.wanted(index), pages.room)
    head = await look.begin(index, merged)
    latest = head.record.attempt
    if head.attempt is not None and index <= span.until[0]:
        pages.mark(head.attempt)
        if head.stream is not None and not pages.is_full:
            stream, frames = await look.finish(merged, head.stream)
            pages.take(index, stream, frames[: pages.wanted(index).limit])
    last = min(latest.attempt_index, span.until[0]) if latest is not None else -1
    while latest is not None and index < last and not pages.is_full:
        batch = range(index + 1, min(index + ATTEMPTS_AT_ONCE, last) + 1)
        for attempt, stream in await look.attempts(batch, latest):
            if pages.is_full:
                break
            index = attempt.attempt_index
            pages.mark(attempt)
            if stream is not None and not pages.is_full:
                merged = look.frames_of(index, pages.wanted(index), pages.room)
                pages.take(index, *await look.finish(merged, stream))
    return pages.of_run(ended_at_ms(head.record), latest_reason(head.record))


class _Head(msgspec.Struct, frozen=True):
    """What is seen first."""

    record: ExecutionRecord
    attempt: AttemptRecord | None
    stream: StreamRecord | None


class _Source:
    """One native stream as it is read, oldest frame first."""

    __slots__ = ("after", "done", "found", "key", "mode")

    def __init__(self, mode: FrameMode, key: str, after: Place) -> None:
        self.mode = mode
        self.key = key
        self.after = after
        self.found: deque[tuple[Place, Frame]] = deque()
        self.done = False


class _Merged:
    """The native streams of one attempt, merged by id."""

    def __init__(self, attempt_index: int, keys: dict[FrameMode, str], wanted: Slice, room: int) -> None:
        self.attempt_index = attempt_index
        self.wanted = wanted
        self.frames: list[Frame] = []
        self.stream: StreamRecord | None = None
        """As it was after the latest frames were read; None before."""
        self._room = room
        self._seen = self._seen_bytes = 0
        self._sources = [
            _Source(mode, key, wanted.after)
            for mode, key in keys.items()
            if not (wanted.lossless and mode is FrameMode.BEST_EFFORT)
        ]
        self._asked: list[tuple[_Source, int]] = []

    @property
    def is_complete(self) -> bool:
        """Nothing more is wanted, or there."""
        return (
            len(self.frames) >= self.wanted.limit
            or self._room <= 0
            or all(source.done and not source.found for source in self._sources)
        )

    def commands(self) -> list[Command]:
        """Return what to ask next: more of each native stream of which nothing is left."""
        count = min(self.wanted.limit - len(self.frames), FIRST_CHUNK if not self._seen else CHUNK_MAX)
        if self._seen:
            count = min(count, max(self._room // max(self._seen_bytes // self._seen, 1), 8))
        self._asked = [(source, count) for source in self._sources if not source.found and not source.done]
        until = f"{self.wanted.until[0]}-{self.wanted.until[1]}"
        return [
            ("XRANGE", source.key, _after(source.after), until, "COUNT", count)
            for source, count in self._asked
        ]

    def feed(self, replies: Sequence[Any], until: Place) -> None:
        """Take the replies to `commands`; nothing after `until` counts."""
        for (source, count), entries in zip(self._asked, replies, strict=True):
            for entry in entries:
                place, frame = _frame(self.attempt_index, source.mode, entry)
                self._seen += 1
                self._seen_bytes += len(frame.payload.data)
                if place > until:
                    source.done = True
                    break
                source.after = place
                source.found.append((place, frame))
            if len(entries) < count:
                source.done = True
        self._merge()

    def _merge(self) -> None:
        while not self.is_complete:
            waiting = [source for source in self._sources if source.found]
            if len(waiting) < sum(1 for source in self._sources if source.found or not source.done):
                return
            _, frame = min(waiting, key=lambda source: source.found[0][0]).found.popleft()
            self.frames.append(frame)
            self._room -= len(frame.payload.data)


class _Look:
    """Looking at one execution's streams."""

    def __init__(self, calls: Calls, partition: Partition, execution_id: ExecutionId) -> None:
        self._calls = calls
        self._partition = partition
        self._execution_id = execution_id
        self._uuid = execution_uuid(execution_id)
        self._key = partition.execution(self._uuid)

    def frames_of(self, attempt_index: int, wanted: Slice, room: int) -> _Merged:
        """Prepare to read frames of an attempt."""
        return _Merged(attempt_index, keys_of(self._partition, self._uuid, attempt_index), wanted, room)

    async def begin(self, attempt_index: int, merged: _Merged) -> _Head:
        """Look at the execution, one attempt and the first of its frames."""
        commands = merged.commands()
        fields, *entries, latest = await self._calls.read(
            self._partition,
            [
                ("HMGET", self._key, "v", f"a{attempt_index}", f"s{attempt_index}"),
                *commands,
                ("HGET", self._key, f"s{attempt_index}"),
            ],
        )
        if fields[0] is None:
            raise ExecutionNotFound(execution_id=self._execution_id)
        packed = unpack(fields[0], Packed)
        stream = stream_of(fields[2])
        if stream is not None:
            merged.feed(entries, _end(stream))
            merged.stream = self._stream(latest)
        attempt: AttemptRecord | None = None
        if packed.attempt_index == attempt_index:
            attempt = attempt_of(packed, None)
        elif fields[1] is not None:
            attempt = superseded_of(fields[1], None)
        return _Head(record_of(packed, (None,) * 8), attempt, stream)

    async def finish(self, merged: _Merged, stream: StreamRecord) -> tuple[StreamRecord, list[Frame]]:
        """Read what is still wanted of an attempt whose stream went as far as `stream` says."""
        while merged.stream is None or not merged.is_complete:
            *entries, found = await self._calls.read(
                self._partition,
                [*merged.commands(), ("HGET", self._key, f"s{merged.attempt_index}")],
            )
            merged.feed(entries, _end(stream))
            merged.stream = self._stream(found)
        return merged.stream, merged.frames

    async def attempts(
        self, indexes: range, latest: AttemptRecord
    ) -> list[tuple[AttemptRecord, StreamRecord | None]]:
        """Load attempts and their streams."""
        names = [f"{kind}{index}" for kind in "as" for index in indexes]
        (fields,) = await self._calls.read(self._partition, [("HMGET", self._key, *names)])
        found: list[tuple[AttemptRecord, StreamRecord | None]] = []
        for at, index in enumerate(indexes):
            if index == latest.attempt_index:
                attempt = latest
            elif fields[at] is not None:
                attempt = superseded_of(fields[at], None)
            elif not any(fields):
                raise ExecutionNotFound(execution_id=self._execution_id)
            else:
                raise Corrupt(f"{self._execution_id} has lost its attempt {index}")
            found.append((attempt, stream_of(fields[len(indexes) + at])))
        return found

    def _stream(self, data: bytes | None) -> StreamRecord:
        stream = stream_of(data)
        if stream is None:
            raise ExecutionNotFound(execution_id=self._execution_id)
        return stream


def _end(stream: StreamRecord) -> Place:
    return stream.last_ms, stream.last_seq


def _after(place: Place) -> str:
    ms, seq = place
    return f"({ms}-{seq}" if seq >= 0 else "-"


def _frame(attempt_index: int, mode: FrameMode, entry: Any) -> tuple[Place, Frame]:
    frame_id, (_, header, _, data) = entry
    ms, seq = (int(part) for part in frame_id.split(b"-"))
    found = unpack(header, Header)
    frame = Frame(
        frame_id=f"{ms}-{seq}",
        attempt_index=attempt_index,
        sequence=found.sequence,
        frame_type=found.frame_type,
        mode=mode,
        at_ms=ms,
        payload=Payload(data, found.content_type),
        correlation_id=found.correlation_id,
        ttl_ms=found.ttl_ms,
        summary_version=found.summary_version,
    )
    return (ms, seq), frame
