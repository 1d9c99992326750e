"""Check the store against what must never break, from its keys alone, while it is in use.

Three passes: every execution that a partition's index of all names, with its index entries; then the entries of every
index that holds more than those; then every key there is, for what belongs to nothing. Memory is bounded by a page and
eight bytes per payload. What index entries must be is recomputed from the records; `repair` rebuilds only them.
Everything else that disagrees is reported and left as it is, because only a person can say which side is right.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from flowfabric.backends.findings import REPAIRABLE, Findings
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.fsck_execution import Checked, ExecutionChecks
from flowfabric.backends.valkey.fsck_keys import KeyChecks
from flowfabric.backends.valkey.fsck_markers import marker_of
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.routing import UNKNOWN
from flowfabric.backends.valkey.scatter import scatter
from flowfabric.backends.valkey.store import Store
from flowfabric.contract.backend import FsckReport

PAGE: Final = 200
PARTITIONS_AT_ONCE: Final = 16
_UUID_LENGTH: Final = 36


class Fsck:
    """One run over the whole store."""

    def __init__(self, store: Store, *, repair: bool, progress: Callable[[int, int], None] | None) -> None:
        self._store = store
        self._calls: Calls = store.calls
        self._repair = repair
        self._progress = progress
        self._findings = Findings()
        self._executions = self._attempts = self._frames = self._total = 0
        self._payloads: array[int] = array("Q")
        """Marks of the payloads that executions name."""
        self._indexes: set[str] = set()
        """Eligible indexes that were checked."""

    async def run(self) -> FsckReport:
        """Check everything; at most 1,000 findings are listed."""
        partitions = self._store.partitions.all
        sizes = await scatter(
            self._calls,
            [
                (partition, ("ZCARD", key))
                for partition in partitions
                for key in (partition.all, partition.due, partition.own, partition.lost)
            ],
        )
        self._total = sum(sizes[::4])
        used = [partition for at, partition in enumerate(partitions) if any(sizes[at * 4 : at * 4 + 4])]
        for start in range(0, len(used), PARTITIONS_AT_ONCE):
            await asyncio.gather(
                *(self._check_partition(partition) for partition in used[start : start + PARTITIONS_AT_ONCE])
            )
        await KeyChecks(self._store, self._findings, self).run(self._payloads)
        return FsckReport(
            executions=self._executions,
            attempts=self._attempts,
            frames=self._frames,
            findings=self._findings.listed(),
        )

    # Executions ---------------------------------------------------------------------------------------------------

    async def _check_partition(self, partition: Partition) -> None:
        checks = ExecutionChecks(self._calls, partition)
        right: Counter[str] = Counter({partition.due: 0, partition.own: 0, partition.lost: 0})
        cursor = 0
        while True:
            (reply,) = await self._calls.read(partition, [("ZSCAN", partition.all, cursor, "COUNT", PAGE)])
            cursor, members = int(reply[0]), [member.decode("utf-8", "replace") for member in reply[1][::2]]
            for start in range(0, len(members), PAGE):
                page = members[start : start + PAGE]
                await self._check_page(partition, checks, page, right)
            if cursor == 0:
                break
        for key, count in right.items():
            await self._check_index(partition, checks, key, count)

    async def _check_page(
        self, partition: Partition, checks: ExecutionChecks, members: Sequence[str], right: Counter[str]
    ) -> None:
        uuids = [member for member in members if len(member) == _UUID_LENGTH]
        for member in members:
            if len(member) != _UUID_LENGTH:
                self._findings.add(REPAIRABLE, partition.all, f"an entry is no execution: {member[:80]!r}")
        for checked in await checks.check(uuids):
            if not checked.exists:
                await self._report_stray(partition, checks, partition.all, checked.uuid, checked.uuid)
                continue
            await self.report(partition, checked)
            for entry in checked.entries:
                right[entry.key] += int(
                    entry.is_right and entry.found is not None and entry.key != partition.all
                )
        del right[partition.all]
        if self._progress is not None:
            self._progress(self._executions, max(self._total, self._executions))

    async def report(self, partition: Partition, checked: Checked) -> None:
        """Count an execution and report, or repair, what is wrong with it."""
        self._executions += 1
        self._attempts += checked.attempts
        self._frames += checked.frames
        self._payloads.extend(marker_of(partition, nonce) for nonce in checked.nonces)
        subject = partition.tag + checked.uuid
        for invariant, message in checked.problems:
            self._findings.add(invariant, subject, message)
        if checked.wrong:
            if self._repair:
                await self._reindex(partition, checked.uuid, checked.rid)
            self._findings.add(REPAIRABLE, subject, "; ".join(checked.wrong), repaired=self._repair)

    # Indexes ------------------------------------------------------------------------------------------------------

    async def check_eligible(self, partition: Partition, key: str) -> None:
        """Check an eligible index that no execution seen so far names."""
        if key not in self._indexes:
            await self._check_index(partition, ExecutionChecks(self._calls, partition), key, 0)

    async def _check_index(
        self, partition: Partition, checks: ExecutionChecks, key: str, expected: int
    ) -> None:
        """Look for entries that should not be there, if there are more than those that should."""
        self._indexes.add(key)
        (size,) = await self._calls.read(partition, [("ZCARD", key)])
        if size == expected:
            return
        cursor = 0
        while True:
            (reply,) = await self._calls.read(partition, [("ZSCAN", key, cursor, "COUNT", PAGE)])
            cursor = int(reply[0])
            for member in reply[1][::2]:
                await self._check_member(partition, checks, key, member.decode("utf-8", "replace"))
            if cursor == 0:
                return

    async def _check_member(
        self, partition: Partition, checks: ExecutionChecks, key: str, member: str
    ) -> None:
        uuid = member[-_UUID_LENGTH:]
        (checked,) = await checks.check([uuid])
        known = {(entry.key, entry.member) for entry in checked.entries}
        if (key, member) not in known:
            await self._report_stray(partition, checks, key, member, uuid)

    async def _report_stray(
        self, partition: Partition, checks: ExecutionChecks, key: str, member: str, uuid: str
    ) -> None:
        """Report an index entry that belongs to no execution, or to one that has no entry there."""
        (score,) = await self._calls.read(partition, [("ZSCORE", key, member)])
        (checked,) = await checks.check([uuid])
        (again,) = await self._calls.read(partition, [("ZSCORE", key, member)])
        named = any((entry.key, entry.member) == (key, member) for entry in checked.entries)
        if score is None or again != score or named or (checked.exists and checked.rid is None):
            return
        index = key.partition("}:")[2]
        repaired = self._repair and len(uuid) == _UUID_LENGTH
        if repaired:
            rid = index[2:] if index.startswith("q:") else checked.rid
            holders = (member,) if key == partition.own else ()
            await self._reindex(partition, uuid, rid, holders)
        why = "it should have none there" if checked.exists else "there is no such execution"
        self._findings.add(
            REPAIRABLE, partition.tag + uuid, f"it has an entry in {index}, {why}", repaired=repaired
        )

    async def _reindex(
        self, partition: Partition, uuid: str, rid: str | None, holders: Sequence[str] = ()
    ) -> None:
        route = rid or UNKNOWN
        keys: list[Any] = [
            partition.execution(uuid),
            partition.eligible(route),
            partition.due,
            partition.own,
            partition.lost,
            partition.all,
        ]
        await self._calls.call(partition, "execution_reindex", keys, rid=route, holders=holders)
