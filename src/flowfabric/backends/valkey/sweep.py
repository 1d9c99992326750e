"""The safety net: hints that a crash lost, a failover forgot or somebody deleted are put back from the indexes.

One process at a time does it for all, chosen by a lock that runs out by itself. Timers of every partition are compared
each time; eligible work of so many routes as fit into one round, the next ones in the next round, and all of them at
once when the hints have never been swept or are gone, or a server was replaced. What must stay true: in the steady
state a sweep only reads.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.hints import Hints
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.store import Store
from flowfabric.backends.valkey.wire import Command
from flowfabric.contract import limits
from flowfabric.contract.errors import Unavailable

READS_PER_ROUND: Final = 2_560
"""Index heads that one round compares: so many routes as fit, over all partitions."""
AT_ONCE: Final = 64
"""Partitions asked at the same time."""
RIDS_AT_ONCE: Final = 500
LOCK_MS: Final = limits.SAFETY_SWEEP_MS - 1_000
"""How long a sweep keeps others from sweeping."""

SOON_S: Final = 0.5
SOON_TRIES: Final = 20


class Sweep:
    """Compares hints with indexes and puts back what is missing."""

    def __init__(self, store: Store, hints: Hints) -> None:
        self._store = store
        self._calls: Calls = store.calls
        self._hints = hints
        self._token = secrets.token_hex(8)
        self.repaired = 0
        """How many hints this process has put back."""

    async def run(self) -> int:
        """Sweep, unless another process has done so recently; return 0: nothing is left for a next step."""
        won, swept = await self._calls.read(
            None, [("SET", keys.SWEEPER, self._token, "NX", "PX", LOCK_MS), ("GET", keys.SWEPT)]
        )
        if won is not None:
            await self.sweep(first=int(swept) if swept is not None else None)
        return 0

    async def after_change(self) -> None:
        """Sweep soon after a server was replaced or restarted: hints it had not kept are gone. One process does it."""
        for _ in range(SOON_TRIES):
            await asyncio.sleep(SOON_S * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, no secret)
            try:
                (left_ms,) = await self._calls.read(None, [("PTTL", keys.SWEEPER)])
                if left_ms <= LOCK_MS - 1_000 * SOON_S:
                    await self._calls.read(None, [("SET", keys.SWEEPER, self._token, "PX", LOCK_MS)])
                    await self.sweep()
            except Unavailable:
                continue
            return

    async def sweep(self, *, first: int | None = None) -> None:
        """Compare timers, and the routes from the `first` on that fit into a round; None: all routes."""
        rids = sorted(route.rid for route in self._store.catalog.all_routes())
        partitions = self._store.partitions.all
        count = len(rids) if first is None else max(1, READS_PER_ROUND // len(partitions))
        start = first if first is not None and first < len(rids) else 0
        chosen = rids[start : start + count]
        await self._sweep_timers(partitions)
        for at in range(0, len(chosen), RIDS_AT_ONCE):
            # Gives back what claimers that are gone have held.
            await self._hints.ring(chosen[at : at + RIDS_AT_ONCE])
        for rid in chosen:
            await self._sweep_route(rid, partitions)
        await self._calls.read(None, [("SET", keys.SWEPT, str(start + len(chosen)))])

    async def _sweep_timers(self, partitions: Sequence[Partition]) -> None:
        known, held = await self._calls.read(
            None,
            [
                ("ZRANGE", keys.DUE_HINTS, "0", "-1", "WITHSCORES"),
                ("ZRANGE", keys.DUE_HELD, "0", "-1"),
            ],
        )
        heads = await self._heads(partitions, lambda partition: partition.due)
        taken = {int(name) for name in held}
        hinted = {int(name): score for name, score in known}
        lost = [
            (number, int(score))
            for number, score in heads
            if number not in taken and hinted.get(number, float("inf")) > score
        ]
        for start in range(0, len(lost), AT_ONCE):
            await self._hints.offer_dues(lost[start : start + AT_ONCE])
        self.repaired += len(lost)

    async def _sweep_route(self, rid: str, partitions: Sequence[Partition]) -> None:
        heads = await self._heads(partitions, lambda partition: partition.eligible(rid))
        if not heads:
            return
        known, held = await self._calls.read(
            None,
            [("ZRANGE", keys.hints(rid), "0", "-1", "WITHSCORES"), ("ZRANGE", keys.HELD, "0", "-1")],
        )
        prefix = f"{rid} ".encode()
        taken = {int(name.split()[1]) for name in held if name.startswith(prefix)}
        hinted = {int(name): score for name, score in known}
        lost = [
            (rid, number, int(score), 1)
            for number, score in heads
            if number not in taken and hinted.get(number, float("inf")) > score
        ]
        for start in range(0, len(lost), AT_ONCE):
            await self._hints.offer(lost[start : start + AT_ONCE])
        self.repaired += len(lost)

    async def _heads(
        self, partitions: Sequence[Partition], name: Callable[[Partition], str]
    ) -> list[tuple[int, float]]:
        """Read the best score of an index in each partition that has any."""
        found: list[tuple[int, float]] = []
        for start in range(0, len(partitions), AT_ONCE):
            batch = partitions[start : start + AT_ONCE]
            replies = await asyncio.gather(*(self._head(partition, name(partition)) for partition in batch))
            found += [
                (partition.number, entries[0][1])
                for partition, entries in zip(batch, replies, strict=True)
                if entries
            ]
        return found

    async def _head(self, partition: Partition, index: str) -> Any:
        command: Command = ("ZRANGE", index, "0", "0", "WITHSCORES")
        (entries,) = await self._calls.read(partition, [command])
        return entries
