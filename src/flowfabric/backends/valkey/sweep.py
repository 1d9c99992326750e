"""The safety net: hints that a crash lost, a failover forgot or somebody deleted are put back from the indexes.

One process at a time does it for all, chosen by a lock that runs out by itself. Each time it looks at the timers of
every partition, and whether there is eligible work; where there is, the hints of so many routes as fit into one round
are compared with it, the next ones in the next round, and all of them at once when the hints have never been swept or
are gone, or a server was replaced. What must stay true: in the steady state a sweep only reads, and an idle store is
asked for little.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Sequence
from typing import Final

from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.hints import Hints
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.scatter import scatter
from flowfabric.backends.valkey.store import Store
from flowfabric.contract import limits
from flowfabric.contract.errors import Unavailable

READS_PER_ROUND: Final = 10_240
"""Heads of eligible indexes that one round compares."""
KEYS_AT_ONCE: Final = 500
"""Keys of one command, and offers of one call."""
LOCK_MS: Final = limits.SAFETY_SWEEP_MS - 1_000
"""How long a sweep keeps others from sweeping."""
SOON_S: Final = 0.5
SOON_TRIES: Final = 20
_NEVER: Final = float("inf")


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
        await self._sweep_timers()
        for start in range(0, len(rids), KEYS_AT_ONCE):
            # Gives back what claimers that are gone have held, and rings where there is work.
            await self._hints.ring(rids[start : start + KEYS_AT_ONCE])
        busy = await self._busy(rids)
        start = first if first is not None and first < len(rids) else 0
        count = len(rids) if first is None else max(1, READS_PER_ROUND // max(len(busy), 1))
        for rid in rids[start : start + count] if busy else ():
            await self._sweep_route(rid, busy)
        after = start + count if busy else 0
        await self._calls.read(None, [("SET", keys.SWEPT, str(after if after < len(rids) else 0))])

    async def _busy(self, rids: Sequence[str]) -> list[Partition]:
        """Return the partitions that have eligible work."""
        partitions = self._store.partitions.all
        found = [0] * len(partitions)
        for start in range(0, len(rids), KEYS_AT_ONCE):
            chunk = rids[start : start + KEYS_AT_ONCE]
            counts = await scatter(
                self._calls,
                [
                    (partition, ("EXISTS", *(partition.eligible(rid) for rid in chunk)))
                    for partition in partitions
                ],
            )
            found = [before + count for before, count in zip(found, counts, strict=True)]
        return [partition for partition, count in zip(partitions, found, strict=True) if count]

    async def _sweep_timers(self) -> None:
        """Put back hints of timers that are missing or too late."""
        partitions = self._store.partitions.all
        known, held = await self._calls.read(
            None, [("ZRANGE", keys.DUE_HINTS, "0", "-1", "WITHSCORES"), ("ZRANGE", keys.DUE_HELD, "0", "-1")]
        )
        heads = await self._heads(partitions, [partition.due for partition in partitions])
        taken = {int(name) for name in held}
        hinted = {int(name): score for name, score in known}
        lost = [
            (number, score)
            for number, score in heads
            if number not in taken and hinted.get(number, _NEVER) > score
        ]
        for start in range(0, len(lost), KEYS_AT_ONCE):
            await self._hints.offer_dues(lost[start : start + KEYS_AT_ONCE])
        self.repaired += len(lost)

    async def _sweep_route(self, rid: str, partitions: Sequence[Partition]) -> None:
        """Put back hints of a route that are missing or too bad."""
        heads = await self._heads(partitions, [partition.eligible(rid) for partition in partitions])
        if not heads:
            return
        known, held = await self._calls.read(
            None, [("ZRANGE", keys.hints(rid), "0", "-1", "WITHSCORES"), ("ZRANGE", keys.HELD, "0", "-1")]
        )
        prefix = f"{rid} ".encode()
        taken = {int(name.split()[1]) for name in held if name.startswith(prefix)}
        hinted = {int(name): score for name, score in known}
        lost = [
            (rid, number, score, 1)
            for number, score in heads
            if number not in taken and hinted.get(number, _NEVER) > score
        ]
        for start in range(0, len(lost), KEYS_AT_ONCE):
            await self._hints.offer(lost[start : start + KEYS_AT_ONCE])
        self.repaired += len(lost)

    async def _heads(self, partitions: Sequence[Partition], names: Sequence[str]) -> list[tuple[int, int]]:
        """Read the best score of an index in each partition that has any."""
        replies = await scatter(
            self._calls,
            [
                (partition, ("ZRANGE", name, "0", "0", "WITHSCORES"))
                for partition, name in zip(partitions, names, strict=True)
            ],
        )
        return [
            (partition.number, int(entries[0][1]))
            for partition, entries in zip(partitions, replies, strict=True)
            if entries
        ]
