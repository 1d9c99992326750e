"""Lanes in Valkey: one global record each, and a copy of its state in every partition.

Claims and creates read the copy of their own partition. Setting a state decides the global record first, which gives
the change its number, then copies it everywhere and answers when every partition has it; an older number never
overwrites a newer one. What a crash in between leaves undone, `repair` finishes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from flowfabric.backends import reply
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.catalog import Catalog, StoredLane
from flowfabric.backends.valkey.everywhere import on_each
from flowfabric.backends.valkey.keys import Partition, Partitions
from flowfabric.backends.valkey.record import unpack
from flowfabric.backends.valkey.scatter import scatter
from flowfabric.contract import limits
from flowfabric.contract.errors import OutcomeUnknown, Unavailable
from flowfabric.contract.lane import LaneList, LanePage, LaneSetState, LaneStateSet
from flowfabric.contract.states import LANE_ACCEPTS_CLAIMS, LaneState

COMPARE_EVERY_MS: Final = 10 * 60_000
"""How often one process compares every partition's copies with the records."""


class ValkeyLanes:
    """Operations on lanes. `resumed` is called when a lane gives work out again."""

    def __init__(
        self,
        calls: Calls,
        partitions: Partitions,
        catalog: Catalog,
        resumed: Callable[[str], Awaitable[None]],
    ) -> None:
        self._calls = calls
        self._partitions = partitions
        self._catalog = catalog
        self._resumed = resumed

    async def list(self, command: LaneList) -> LanePage:
        """List lanes by name. The cursor is the name of the last lane on the page."""
        command.check()
        await self._catalog.catch_up()
        after = command.cursor or ""
        found = [lane for lane in self._catalog.lanes() if lane.lane > after]
        page = found[: command.limit]
        return LanePage(lanes=tuple(page), next_cursor=page[-1].lane if len(found) > command.limit else None)

    async def set_state(self, command: LaneSetState) -> LaneStateSet:
        """Set a lane's state; it acts on the next claim or create."""
        command.check()
        before, stored = await self._decide(command.lane, command.state)
        try:
            await self._copy(command.lane, stored)
        except Unavailable as error:
            raise OutcomeUnknown(
                f"the lane is {command.state.value}, but not every partition knows yet: {error.message}; it is "
                "finished by itself, and repeating it is safe"
            ) from error
        if command.state in LANE_ACCEPTS_CLAIMS and before not in LANE_ACCEPTS_CLAIMS:
            await self._resumed(command.lane)
        return LaneStateSet(lane=command.lane, state=command.state, previous=before)

    async def repair(self, *, thoroughly: bool = False) -> int:
        """Finish what a crash left undone; return how many lanes were put right.

        `thoroughly` also compares every partition's copies with the records, for what a failover has lost.
        """
        records = await self._read_records()
        unfinished = {name: stored for name, stored in records.items() if stored.copied != stored.version}
        for name, stored in unfinished.items():
            await self._copy(name, stored)
        return len(unfinished) + (await self._compare(records) if thoroughly else 0)

    async def keep_repaired(self) -> None:
        """Repair now and then, and every so often, in one process for all, thoroughly; for ever."""
        while True:
            await asyncio.sleep(limits.SAFETY_SWEEP_MS / 1_000 * random.uniform(0.9, 1.1))  # noqa: S311
            try:
                (won,) = await self._calls.read(
                    None, [("SET", keys.LANES_COMPARED, "1", "NX", "PX", COMPARE_EVERY_MS)]
                )
                await self.repair(thoroughly=won is not None)
            except Unavailable:
                # A partition cannot be reached: the next round goes on.
                continue

    async def _decide(
        self, lane: str, state: LaneState, version: int | None = None
    ) -> tuple[LaneState, StoredLane]:
        before, packed = await self._calls.call(
            None, "lane_set_state", (keys.META, keys.LANES), lane=lane, state=state.value, version=version
        )
        stored = unpack(packed, StoredLane)
        self._catalog.learn_lane(lane, stored)
        return LaneState(reply.text(before)), stored

    async def _copy(self, lane: str, stored: StoredLane) -> None:
        """Bring a lane's state into every partition that does not have this version yet."""
        if stored.copied == stored.version:
            return
        await self._copy_to(self._partitions.all, lane, stored)
        await self._calls.call(None, "lane_copied", (keys.LANES,), lane=lane, version=stored.version)

    async def _copy_to(self, partitions: Sequence[Partition], lane: str, stored: StoredLane) -> None:
        await on_each(
            partitions,
            lambda partition: self._calls.call(
                partition,
                "lane_copy_state",
                (partition.lanes,),
                lane=lane,
                state=stored.state.value,
                version=stored.version,
            ),
        )

    async def _compare(self, records: dict[str, StoredLane]) -> int:
        """Bring partitions that are behind up to the record, and a record that is behind up to the partitions."""
        found = await scatter(
            self._calls, [(partition, ("HGETALL", partition.lanes)) for partition in self._partitions.all]
        )
        copies: list[tuple[Partition, dict[str, int]]] = []
        newest: dict[str, tuple[int, str]] = {}
        for partition, stored in zip(self._partitions.all, found, strict=True):
            states = {reply.text(name): reply.text(value) for name, value in stored.items()}
            versions = {name[1:]: int(value) for name, value in states.items() if name.startswith("@")}
            copies.append((partition, versions))
            for name, version in versions.items():
                if version > newest.get(name, (0, ""))[0]:
                    newest[name] = (version, states.get(name, LaneState.ACTIVE.value))
        repaired: set[str] = set()
        for name, (version, state) in newest.items():
            known = records.get(name)
            if known is None or known.version < version:
                _, records[name] = await self._decide(name, LaneState(state), version)
                repaired.add(name)
        for name, stored in records.items():
            behind = [partition for partition, versions in copies if versions.get(name, 0) < stored.version]
            if behind:
                await self._copy_to(behind, name, stored)
                repaired.add(name)
        return len(repaired)

    async def _read_records(self) -> dict[str, StoredLane]:
        (found,) = await self._calls.read(None, [("HGETALL", keys.LANES)])
        return {name.decode(): unpack(stored, StoredLane) for name, stored in found.items()}
