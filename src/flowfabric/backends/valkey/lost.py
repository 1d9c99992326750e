"""Listing lost leases: oldest loss first over all partitions, by the place of the last one that was looked at.

Each partition has an index of its lost leases by when they were lost. The indexes are read from their oldest end in
pieces and merged; only pieces that run out are read on. What must stay true: the order is that of (instant, uuid), so
that pages lose and repeat nothing of what is there all the time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.keys import Partition, Partitions
from flowfabric.backends.valkey.record import Packed, Static, unpack
from flowfabric.backends.valkey.scatter import scatter
from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidOffset
from flowfabric.contract.ids import ExecutionId, Namespace
from flowfabric.contract.lease import ExpiredLease, ExpiredLeasePage, LeaseListExpired

PIECE_MIN: Final = 4
"""Entries read of each partition at once, or a fair share of the page where that is more."""
RECORDS_AT_ONCE: Final = 1_000

Place = tuple[int, str, int]
"""When it was lost, its uuid, and its partition."""


async def list_expired(calls: Calls, partitions: Partitions, command: LeaseListExpired) -> ExpiredLeasePage:
    """List lost leases. The cursor is `<instant>-<uuid in hexadecimal>` of the last entry looked at.

    Refuses: invalid_offset.
    """
    merged = _Merged(calls, partitions, _after(command.cursor), command.limit)
    found: list[tuple[Place, ExpiredLease]] = []
    looked_at = 0
    last: Place | None = None
    while len(found) <= command.limit and looked_at < limits.LIST_LOOKED_AT_MAX:
        wanted = min(
            max(command.limit + 1 - len(found), PIECE_MIN),
            RECORDS_AT_ONCE,
            limits.LIST_LOOKED_AT_MAX - looked_at,
        )
        places = await merged.next(wanted)
        looked_at += len(places)
        last = places[-1] if len(places) == wanted else None
        found += await _load(calls, partitions, places, command.namespace)
        if last is None:
            break
    page = found[: command.limit]
    if len(found) > command.limit:
        last = page[-1][0]
    return ExpiredLeasePage(
        leases=tuple(lease for _, lease in page),
        next_cursor=f"{last[0]}-{last[1].replace('-', '')}" if last is not None else None,
    )


def _after(cursor: str | None) -> tuple[int, str]:
    """Read a cursor as the place after which to go on."""
    if cursor is None:
        return -1, ""
    instant, _, text = cursor.partition("-")
    try:
        after_ms, digits = int(instant), bytes.fromhex(text).hex()
    except ValueError as error:
        raise InvalidOffset("cursor is not one that lease.list_expired returned") from error
    if not 0 <= after_ms <= limits.TIMESTAMP_MAX_MS or len(digits) != 32:
        raise InvalidOffset("cursor is not one that lease.list_expired returned")
    return after_ms, f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


async def _load(
    calls: Calls, partitions: Partitions, places: Sequence[Place], namespace: str | None
) -> list[tuple[Place, ExpiredLease]]:
    """Read the leases at these places that are of the namespace and still lost."""
    stored = await scatter(
        calls,
        [
            (
                partitions.all[number],
                ("HMGET", partitions.all[number].execution(uuid), "v", "d"),
            )
            for _, uuid, number in places
        ],
    )
    found: list[tuple[Place, ExpiredLease]] = []
    for place, (record, static) in zip(places, stored, strict=True):
        if record is None or static is None:
            continue
        packed, fixed = unpack(record, Packed), unpack(static, Static)
        if namespace is not None and fixed.namespace != namespace:
            continue
        lease = _lease(ExecutionId(f"{partitions.all[place[2]].tag}{place[1]}"), packed, fixed)
        if lease is not None:
            found.append((place, lease))
    return found


def _lease(execution_id: ExecutionId, packed: Packed, fixed: Static) -> ExpiredLease | None:
    if (
        packed.lease_id is None
        or packed.attempt_index is None
        or packed.worker_instance is None
        or packed.lost_at_ms is None
    ):
        return None
    return ExpiredLease(
        execution_id=execution_id,
        namespace=Namespace(fixed.namespace),
        lease_id=packed.lease_id,
        lease_epoch=packed.lease_epoch,
        worker_instance=packed.worker_instance,
        expires_at_ms=packed.lost_at_ms,
        attempt_index=packed.attempt_index,
        reason=packed.lost_reason or "lease_expired",
    )


class _Source:
    """The index of one partition as it is read, oldest entry first."""

    __slots__ = ("done", "found", "partition", "skip")

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.skip = 0
        self.found: deque[Place] = deque()
        self.done = False


class _Merged:
    """The indexes of all partitions, merged, after a place."""

    def __init__(self, calls: Calls, partitions: Partitions, after: tuple[int, str], limit: int) -> None:
        self._calls = calls
        self._after = after
        self._sources = [_Source(partition) for partition in partitions.all]
        self._piece = max(PIECE_MIN, 2 * limit // len(self._sources))

    async def next(self, count: int) -> list[Place]:
        """Return the next entries; fewer than `count` at the end."""
        places: list[Place] = []
        while len(places) < count:
            await self._fill()
            heap = [(source.found[0], at) for at, source in enumerate(self._sources) if source.found]
            if not heap:
                break
            heapq.heapify(heap)
            self._take(heap, places, count)
        return places

    def _take(self, heap: list[tuple[Place, int]], places: list[Place], count: int) -> None:
        """Take entries in order until one source runs out whose next entry is not known."""
        while heap and len(places) < count:
            _, at = heap[0]
            source = self._sources[at]
            places.append(source.found.popleft())
            if source.found:
                heapq.heapreplace(heap, (source.found[0], at))
            elif source.done:
                heapq.heappop(heap)
            else:
                return

    async def _fill(self) -> None:
        """Read on where nothing is left."""
        while hungry := [source for source in self._sources if not source.found and not source.done]:
            replies = await scatter(
                self._calls,
                [
                    (
                        source.partition,
                        (
                            "ZRANGE",
                            source.partition.lost,
                            self._after[0],
                            "+inf",
                            "BYSCORE",
                            "LIMIT",
                            source.skip,
                            self._piece,
                            "WITHSCORES",
                        ),
                    )
                    for source in hungry
                ],
            )
            for source, entries in zip(hungry, replies, strict=True):
                self._feed(source, entries)

    def _feed(self, source: _Source, entries: Sequence[Any]) -> None:
        source.skip += len(entries)
        source.done = len(entries) < self._piece
        for member, score in entries:
            at_ms, uuid = int(score), member.decode()
            if (at_ms, uuid) > self._after:
                source.found.append((at_ms, uuid, source.partition.number))
