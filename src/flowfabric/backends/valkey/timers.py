"""What the engine's timers see: what is due, when the next thing is, and housekeeping in bounded steps.

Each partition has one index of its earliest timers; the hints say which partitions to look at. A partition with
something due is taken, so that several engines share the work; it is given back with its next instant once nothing in
it is due, or after two seconds by itself, whoever has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

from flowfabric.backends import reply
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.hints import Hints
from flowfabric.backends.valkey.record import Packed, unpack
from flowfabric.backends.valkey.store import Store
from flowfabric.backends.valkey.sweep import Sweep
from flowfabric.backends.waiting import wait_until_due
from flowfabric.contract.backend import Due, DueBatch, DueKind
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.ids import ExecutionId, Namespace, WorkerInstance

PARTITIONS_AT_ONCE: Final = 64
"""Partitions taken by one look."""
AGAIN_MS: Final = 60_000
CLOSE_WITHIN_S: Final = 1.0


class ValkeyTimers:
    """The due-time index."""

    def __init__(self, store: Store, hints: Hints, sweep: Sweep) -> None:
        self._store = store
        self._calls = store.calls
        self._bells = store.bells
        self._hints = hints
        self._sweep = sweep
        self._held: dict[int, int | None] = {}
        """Partitions that were taken, with their next instant once nothing in them is due."""
        self._busy: set[int] = set()
        """Those of them in which something was due at the latest look."""
        self._reading: Final = asyncio.Lock()
        self._ahead_ms = 0.0
        """The store's time minus this process's monotonic one."""

    async def read_due(self, limit: int) -> DueBatch:
        """Read what is due now, earliest first, at most `limit` entries."""
        async with self._reading:
            self._bells.earliest_due_ms = None
            await self._hints.settled()
            # What was due at the latest look may have been served: look there again before anywhere else.
            again = sorted(self._busy)
            self._busy.clear()
            found = await self._read_partitions(again, int(self._now_ms()), limit)
            room = 0 if len(found) >= limit else PARTITIONS_AT_ONCE
            now_ms, next_ms, workers, taken = await self._take(room, limit)
            found += await self._read_partitions(taken, now_ms, limit)
            if self._held:
                # Nothing in these is due: their next instants are hints again.
                _, next_ms, _, _ = await self._take(0, 0)
        found += workers
        found.sort(key=lambda due: due.due_at_ms)
        return DueBatch(now_ms=now_ms, due=tuple(found[:limit]), next_due_at_ms=next_ms)

    async def wait_change(self, until_ms: int | None, timeout_s: float) -> None:
        """Wait until the store's clock reaches `until_ms`, something is due earlier than that, or the timeout."""
        await wait_until_due(
            self._bells, until_ms, timeout_s, now_ms=self._now_ms, is_manual=self._store.clock is not None
        )

    async def sweep(self) -> int:
        """Put back hints that were lost; one process does it for all."""
        return await self._sweep.run()

    async def close(self) -> None:
        """Let others see to what this process has taken."""
        now_ms = int(self._now_ms())
        self._held.update((number, now_ms) for number in self._busy)
        self._busy.clear()
        if self._held:
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN_S):
                    await self._take(0, 0)

    def _now_ms(self) -> float:
        """Return the store's time as far as this process can tell without asking."""
        if self._store.clock is not None:
            return self._store.clock.now_ms()
        return time.monotonic() * 1_000 + self._ahead_ms

    async def _take(self, most: int, limit: int) -> tuple[int, int | None, list[Due], list[int]]:
        """Give partitions back, keep those with something due, and take others."""
        given: list[int | str] = []
        held, self._held = self._held, {}
        for number, at_ms in held.items():
            given += (number, "" if at_ms is None else at_ms)
        for number in self._busy:
            given += (number, "keep")
        now_ms, next_ms, count, *rest = await self._calls.call(
            None,
            "hints_take_due",
            (keys.DUE_HINTS, keys.DUE_HELD, keys.WORKER_DUE),
            most=most,
            workers=limit,
            given=given,
        )
        self._ahead_ms = now_ms - time.monotonic() * 1_000
        workers = [
            _worker_due(member, int(float(instant)))
            for member, instant in zip(rest[:count:2], rest[1:count:2], strict=True)
        ]
        return now_ms, next_ms, workers, [int(number) for number in rest[count:]]

    async def _read_partitions(self, numbers: list[int], now_ms: int, limit: int) -> list[Due]:
        found = await asyncio.gather(*(self._read_partition(number, now_ms, limit) for number in numbers))
        return [due for dues in found for due in dues]

    async def _read_partition(self, number: int, now_ms: int, limit: int) -> list[Due]:
        """Read what is due in a partition, and note when the next thing is."""
        partition = self._store.partitions.all[number]
        (entries,) = await self._calls.read(partition, [("ZRANGE", partition.due, "0", limit, "WITHSCORES")])
        uuids: list[str] = []
        next_ms: int | None = None
        for uuid, score in entries:
            if score > now_ms:
                next_ms = int(score)
                break
            uuids.append(uuid.decode())
        found: list[Due] = []
        if uuids:
            records = await self._calls.read(
                partition, [("HGET", partition.execution(uuid), "v") for uuid in uuids]
            )
            for uuid, record in zip(uuids, records, strict=True):
                due = _due(partition.tag, uuid, record, now_ms)
                if due is not None:
                    found.append(due)
        if found:
            self._busy.add(number)
            return found
        if next_ms is None and len(entries) > limit:
            # A page of wrong entries, which only fsck can put right, must not hide what follows for ever.
            next_ms = now_ms + AGAIN_MS
        self._held[number] = next_ms
        return found


def _due(tag: str, uuid: str, record: Any, now_ms: int) -> Due | None:
    """Return what is due, or None when the execution has just changed or its index entry is wrong: that is fsck's."""
    if record is None:
        return None
    packed = unpack(record, Packed)
    if packed.due_kind is None or packed.due_at_ms is None or packed.due_at_ms > now_ms:
        return None
    return Due(
        kind=DueKind(packed.due_kind),
        due_at_ms=packed.due_at_ms,
        execution_id=ExecutionId(f"{tag}{uuid}"),
    )


def _worker_due(member: bytes, due_at_ms: int) -> Due:
    namespace, _, instance = reply.text(member).partition(" ")
    return Due(
        kind=DueKind.WORKER_LIVENESS,
        due_at_ms=due_at_ms,
        namespace=Namespace(namespace),
        worker_instance=WorkerInstance(instance),
    )
