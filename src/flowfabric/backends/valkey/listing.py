"""Listing executions: newest first over all partitions, filtered, with a bound on what one call looks at.

Each partition has an index of its executions by creation. The indexes are read from their newest end in small pieces
and merged; only pieces that run out are read on. Executions created in one millisecond are in the order of their ids.
What must stay true: the order is total and does not depend on when it is looked at, so that pages lose and repeat
nothing of what is there all the time.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.keys import Partition, Partitions
from flowfabric.backends.valkey.record import FIELDS, Packed, Static, decode, decode_tags, unpack
from flowfabric.backends.valkey.scatter import Item, scatter
from flowfabric.backends.vectors import VECTORS
from flowfabric.contract import limits, projections
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.execution import ExecutionInfo, ExecutionList, ExecutionPage

FIRST_PIECE: Final = 4
"""Entries read of each partition at first, or a fair share of the page where that is more."""
PIECE_MAX: Final = 512
RECORDS_AT_ONCE: Final = 500

_UUID_LENGTH: Final = 36
_CURSOR: Final = re.compile(r"([0-9a-f]{1,12})z([0-9a-f]{32})z([0-9]{1,5})")
_FILTER_FIELDS: Final = ("v", "d", "t")
_INFO_FIELDS: Final = frozenset("vdjtb")

Place = tuple[int, str, int]
"""(created_at_ms, uuid, partition), the order of the list from its end to its beginning."""


class Listing:
    """Lists executions of one store."""

    def __init__(self, calls: Calls, partitions: Partitions) -> None:
        self._calls = calls
        self._partitions = partitions

    async def list(self, command: ExecutionList) -> ExecutionPage:
        """List executions, newest first. The cursor is the place of the last one that was looked at."""
        command.check()
        after = _place(command.cursor) if command.cursor is not None else None
        merged = _Merged(self._calls, self._partitions, command, after)
        exact = command.id_prefix is not None and len(command.id_prefix) == _UUID_LENGTH
        found: list[Place] = []
        looked_at = 0
        last: Place | None = None
        while len(found) <= command.limit and looked_at < limits.LIST_LOOKED_AT_MAX:
            wanted = min(_batch(command, looked_at), limits.LIST_LOOKED_AT_MAX - looked_at)
            places = await self._exact(command, after) if exact else await merged.next(wanted)
            looked_at += len(places)
            if places:
                last = places[-1]
            found += await self._matching(command, places)
            if len(places) < wanted or exact:
                last = None
                break
        executions = await self._load(found[: command.limit])
        if len(found) > command.limit:
            last = found[command.limit - 1]
        return ExecutionPage(executions=executions, next_cursor=_cursor(last) if last is not None else None)

    async def _exact(self, command: ExecutionList, after: Place | None) -> list[Place]:
        """Return the executions with the uuid asked for; there is one, unless callers chose ids alike."""
        uuid = command.id_prefix or ""
        every = self._partitions.all
        scores = await scatter(
            self._calls, [(partition, ("ZSCORE", partition.all, uuid)) for partition in every]
        )
        oldest, before = command.created_from_ms or 0, command.created_before_ms
        places = [
            (int(score), uuid, partition.number)
            for partition, score in zip(every, scores, strict=True)
            if score is not None and oldest <= score and (before is None or score < before)
        ]
        return sorted((place for place in places if after is None or place < after), reverse=True)

    async def _matching(self, command: ExecutionList, places: Sequence[Place]) -> list[Place]:
        """Return those that pass the filters."""
        prefix = command.id_prefix
        if prefix is not None:
            places = [place for place in places if place[1].startswith(prefix)]
        if not places or not _looks_inside(command):
            return list(places)
        matching: list[Place] = []
        for start in range(0, len(places), RECORDS_AT_ONCE):
            chunk = places[start : start + RECORDS_AT_ONCE]
            stored = await scatter(self._calls, [self._fields(place, _FILTER_FIELDS) for place in chunk])
            matching += [
                place for place, fields in zip(chunk, stored, strict=True) if _passes(command, fields)
            ]
        return matching

    async def _load(self, places: Sequence[Place]) -> tuple[ExecutionInfo, ...]:
        """Load what a page shows; an execution that has been removed meanwhile is left out."""
        names = tuple(name for name in FIELDS if name in _INFO_FIELDS)
        stored = await scatter(self._calls, [self._fields(place, names) for place in places])
        infos: list[ExecutionInfo] = []
        for fields in stored:
            given = dict(zip(names, fields, strict=True))
            loaded = decode([given.get(name) for name in FIELDS])
            if loaded is not None:
                infos.append(projections.info(loaded))
        return tuple(infos)

    def _fields(self, place: Place, names: Sequence[str]) -> Item:
        partition = self._partitions.all[place[2]]
        return partition, ("HMGET", partition.execution(place[1]), *names)


class _Source:
    """The index of one partition as it is read, newest entry first."""

    __slots__ = ("done", "found", "partition", "piece", "skip", "upto")

    def __init__(self, partition: Partition, upto: int | None) -> None:
        self.partition = partition
        self.upto = upto
        """Read on at entries created at this instant or before, `skip` of which are known; None: from the newest."""
        self.skip = 0
        self.piece = FIRST_PIECE
        """How many entries to read next."""
        self.found: deque[Place] = deque()
        self.done = False


class _Merged:
    """The indexes of all partitions, merged, after a place and within the instants asked for."""

    def __init__(
        self, calls: Calls, partitions: Partitions, command: ExecutionList, after: Place | None
    ) -> None:
        self._calls = calls
        self._after = after
        newest = None if command.created_before_ms is None else command.created_before_ms - 1
        if after is not None:
            newest = after[0] if newest is None else min(newest, after[0])
        self._oldest = command.created_from_ms
        self._sources = [_Source(partition, newest) for partition in partitions.all]

    async def next(self, count: int) -> list[Place]:
        """Return the next entries; fewer than `count` at the end."""
        places: list[Place] = []
        share = min(2 * count // len(self._sources), PIECE_MAX)
        for source in self._sources:
            source.piece = max(source.piece, share)
        while len(places) < count:
            await self._fill()
            heads = [(source.found[0], at) for at, source in enumerate(self._sources) if source.found]
            if not heads:
                break
            heads.sort(reverse=True)
            self._take(heads, places, count)
        return places

    def _take(self, heads: list[tuple[Place, int]], places: list[Place], count: int) -> None:
        """Take entries in order until one source runs out whose next entry is not known."""
        heap = [_Newest(place, at) for place, at in heads]
        while heap and len(places) < count:
            newest = heap[0]
            source = self._sources[newest.at]
            places.append(source.found.popleft())
            if source.found:
                heapq.heapreplace(heap, _Newest(source.found[0], newest.at))
            elif source.done:
                heapq.heappop(heap)
            else:
                return

    async def _fill(self) -> None:
        """Read on where nothing is left; then also where little is."""
        while any(not source.found and not source.done for source in self._sources):
            hungry = [
                source
                for source in self._sources
                if not source.done and len(source.found) <= source.piece // 4
            ]
            replies = await scatter(self._calls, [self._command(source) for source in hungry])
            for source, entries in zip(hungry, replies, strict=True):
                self._feed(source, entries)

    def _command(self, source: _Source) -> Item:
        upto = "+inf" if source.upto is None else source.upto
        oldest = "-inf" if self._oldest is None else self._oldest
        command = ("ZRANGE", source.partition.all, upto, oldest, "BYSCORE", "REV")
        return source.partition, (*command, "LIMIT", source.skip, source.piece, "WITHSCORES")

    def _feed(self, source: _Source, entries: Sequence[Any]) -> None:
        for member, score in entries:
            at_ms = int(score)
            if at_ms == source.upto:
                source.skip += 1
            else:
                source.upto, source.skip = at_ms, 1
            place = (at_ms, member.decode(), source.partition.number)
            if self._after is None or place < self._after:
                source.found.append(place)
        source.done = len(entries) < source.piece
        source.piece = min(source.piece * 4, PIECE_MAX)


class _Newest:
    """An entry in a heap whose top is the newest."""

    __slots__ = ("at", "place")

    def __init__(self, place: Place, at: int) -> None:
        self.place = place
        self.at = at

    def __lt__(self, other: _Newest) -> bool:
        return self.place > other.place


def _place(cursor: str) -> Place:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidInput("cursor is not one that execution.list returned", field="cursor")
    digits = match[2]
    uuid = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    return int(match[1], 16), uuid, int(match[3])


def _cursor(place: Place) -> str:
    at_ms, uuid, partition = place
    return f"{at_ms:x}z{uuid.replace('-', '')}z{partition}"


def _looks_inside(command: ExecutionList) -> bool:
    """Say whether a filter needs more than the index tells."""
    return any(
        value is not None
        for value in (command.namespace, command.lane, command.kind, command.state, command.tag)
    )


def _batch(command: ExecutionList, looked_at: int) -> int:
    """Return how many entries to look at next."""
    if command.id_prefix is not None:
        return limits.LIST_LOOKED_AT_MAX
    if not _looks_inside(command):
        return command.limit + 1
    return max(command.limit + 1, 2 * looked_at)


def _passes(command: ExecutionList, fields: Sequence[Any]) -> bool:
    """Say whether a stored execution passes the filters; one that has been removed does not."""
    if fields[0] is None:
        return False
    if (
        command.state is not None
        and VECTORS[unpack(fields[0], Packed).vector].public_state is not command.state
    ):
        return False
    static = unpack(fields[1], Static)
    for wanted, has in (
        (command.namespace, static.namespace),
        (command.lane, static.lane),
        (command.kind, static.route.partition("|")[0]),
    ):
        if wanted is not None and wanted != has:
            return False
    if command.tag is None:
        return True
    key, mark, value = command.tag.partition("=")
    tags = decode_tags(fields[2])
    return tags.get(key) == value if mark else key in tags
