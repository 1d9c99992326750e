"""Check the store against what must never break, from its rows alone, while it is in use.

Executions come in pages by their row number, each page one consistent state together with all rows that share these
numbers, so that what belongs to no execution is seen, too; then the entries of the eligible index and the idempotency
keys, in pages by their keys. What can be compared in SQL is: of an execution whose rows are as they should be only the
definition is read, the rest is judged one by one (`fsck_execution`). What index entries must be is recomputed by the
functions that write them; `repair` rebuilds only them. Everything else that disagrees is reported and left as it is,
because only a person can say which side is right.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from flowfabric.backends.definitions import decode_definition
from flowfabric.backends.findings import REPAIRABLE, Findings
from flowfabric.backends.postgres.calling import Calls
from flowfabric.backends.postgres.fsck_execution import check_executions
from flowfabric.backends.postgres.fsck_page import Definitions, entry_problems
from flowfabric.backends.postgres.fsck_reading import TIMEOUT_S, Reading
from flowfabric.backends.postgres.record import execution_id_of
from flowfabric.backends.postgres.store import Store
from flowfabric.contract.backend import FsckReport
from flowfabric.contract.errors import Corrupt

PAGE: Final = 2_000
KEYS_PAGE: Final = 5_000
LISTED_AT_ONCE: Final = 1_000
"""What the statements list of what is wrong."""
JUDGED_AT_ONCE: Final = 200
"""Each may have a thousand events."""
PAGES_AT_ONCE: Final = 2
"""The server works on one while another is looked at here."""
AFTER_ALL: Final = 2**63 - 1
_FIRST_READY: Final = (-(2**31), -(2**31), -(2**63), "00000000-0000-0000-0000-000000000000")
_BY_INDEX: Final = "SET LOCAL enable_seqscan TO off"
"""Whatever the statistics say: a page is a small part of each table, and is found by its keys."""
_INDEX_PARTS: Final = frozenset({"agenda"})
"""Tables of index entries among those that share the numbers of executions."""


class Fsck:
    """One run over the whole store."""

    def __init__(self, store: Store, *, repair: bool, progress: Callable[[int, int], None] | None) -> None:
        self._calls: Calls = store.calls
        self._sql = store.sql("sql/queries/fsck.sql")
        self._at_once: int = min(PAGES_AT_ONCE, store.pool.size)
        self._repair = repair
        self._progress = progress
        self._findings = Findings()
        self._definitions = Definitions()
        self._executions = self._attempts = self._frames = 0

    async def run(self) -> FsckReport:
        """Check everything; at most 1,000 findings are listed."""
        total = await self._check_store()
        upto = 0
        while upto < AFTER_ALL:
            pages: list[tuple[int, int]] = []
            while upto < AFTER_ALL and len(pages) < self._at_once:
                after, upto = upto, await self._end_of_page(upto)
                pages.append((after, upto))
            await _together(self._check_rows(*page) for page in pages)
            if self._progress is not None:
                self._progress(self._executions, max(total, self._executions))
        await self._check_ready()
        await self._check_keys()
        return FsckReport(
            executions=self._executions,
            attempts=self._attempts,
            frames=self._frames,
            findings=self._findings.listed(),
        )

    @contextlib.asynccontextmanager
    async def _snapshot(self) -> AsyncGenerator[Reading]:
        async with self._calls.transaction(snapshot=True) as connection:
            await connection.execute(_BY_INDEX, timeout=TIMEOUT_S)
            yield Reading(connection, self._sql)

    async def _end_of_page(self, after: int) -> int:
        """Return the last row number of the page that begins there; the last page has no end."""
        ((last, count),) = await self._calls.rows(self._sql["page_end"], after, PAGE)
        return last if count == PAGE else AFTER_ALL

    # Executions and what shares their numbers ---------------------------------------------------------------------

    async def _check_rows(self, after: int, upto: int) -> None:
        """Check a page, and repair what is to be repaired."""
        async with self._snapshot() as reading:
            wrong, strays = await self._check_page(reading, after, upto)
        rows = [*wrong, *strays] if self._repair else []
        for start in range(0, len(rows), LISTED_AT_ONCE):
            await self._rebuild(rows[start : start + LISTED_AT_ONCE])

    async def _check_page(self, reading: Reading, after: int, upto: int) -> tuple[list[int], list[int]]:
        """Check a page; return the rows whose index entries are wrong, and those of entries without an execution."""
        doubtful: list[int] = []
        for row in await reading.fetch("page", after, upto):
            seq, uuid, partition, _, attempts, plain = row[:6]
            self._executions += 1
            self._attempts += attempts
            if not plain:
                doubtful.append(seq)
            for invariant, message in self._definitions.problems(row):
                self._findings.add(invariant, execution_id_of(partition, uuid), message)
        for start in range(0, len(doubtful), JUDGED_AT_ONCE):
            rows = doubtful[start : start + JUDGED_AT_ONCE]
            frames = await check_executions(reading, rows, self._findings)
            self._frames += frames
        wrong = await self._check_entries(reading, after, upto)
        for seq, uuid, partition, count in await reading.fetch("frames_elsewhere", after, upto):
            self._findings.add(
                "S20 frames have a stream",
                execution_id_of(partition, uuid),
                f"{count} frames belong to no stream (row {seq})",
            )
        return wrong, await self._check_strays(reading, after, upto)

    async def _check_entries(self, reading: Reading, after: int, upto: int) -> list[int]:
        """Compare index entries with what they should be; return the rows of those that are wrong."""
        wrong: list[int] = []
        while True:
            listed = await reading.fetch("entries", after, upto)
            for row in listed:
                wrong.append(row["seq"])
                subject = execution_id_of(row["partition"], row["id"])
                self._findings.add(REPAIRABLE, subject, entry_problems(row), repaired=self._repair)
            if not self._repair or len(listed) < LISTED_AT_ONCE:
                return wrong
            after = wrong[-1]

    async def _check_strays(self, reading: Reading, after: int, upto: int) -> list[int]:
        """Look for rows that belong to no execution; return those of index entries."""
        strays: list[int] = []
        while True:
            listed = await reading.fetch("strays", after, upto)
            is_rest = self._repair and len(listed) == LISTED_AT_ONCE
            # A number may have several rows, some of which may not be listed yet.
            upto_now = listed[-1]["seq"] - 1 if is_rest else upto
            for what, seq in listed:
                if seq > upto_now:
                    break
                if what in _INDEX_PARTS:
                    strays.append(seq)
                    self._findings.add(
                        REPAIRABLE, f"{what} row {seq}", "there is no such execution", repaired=self._repair
                    )
                else:
                    self._findings.add(
                        "S24 retention removes everything", f"{what} row {seq}", "it belongs to no execution"
                    )
            if not is_rest:
                return strays
            after = upto_now

    # Pages by other keys ------------------------------------------------------------------------------------------

    async def _check_ready(self) -> None:
        """Look for entries of the eligible index that should not be there."""
        after: tuple[Any, ...] = _FIRST_READY
        while True:
            async with self._snapshot() as reading:
                page = await reading.fetch("ready", *after, KEYS_PAGE)
            wrong = [row for row in page if not row["sound"]]
            for row in wrong:
                uuid = row["id"]
                subject = execution_id_of(row["partition"], uuid) if row["exists"] else f"execution {uuid}"
                why = "it should have none there" if row["exists"] else "there is no such execution"
                message = f"it has an entry in the eligible index of route {row['route_id']}, {why}"
                self._findings.add(REPAIRABLE, subject, message, repaired=self._repair)
            if self._repair and wrong:
                await self._drop_ready(wrong)
            if len(page) < KEYS_PAGE:
                return
            last = page[-1]
            after = (last["route_id"], last["rank"], last["eligible_since_ms"], last["id"])

    async def _check_keys(self) -> None:
        """Check that idempotency keys name executions that were created so."""
        after = ("", "")
        while True:
            async with self._snapshot() as reading:
                page = await reading.fetch("keys", *after, KEYS_PAGE)
            for row in page:
                if row["has_partition"] is not None and row["document"] is not None and not _agree(row):
                    self._findings.add(
                        "S5 one create, one record",
                        f"idempotency key of {execution_id_of(row['partition'], row['id'])}",
                        "its execution was created under another key or content",
                    )
            if len(page) < KEYS_PAGE:
                return
            after = (page[-1]["namespace"], page[-1]["key"])

    # The store as a whole -----------------------------------------------------------------------------------------

    async def _check_store(self) -> int:
        """Check what belongs to no execution; return about how many executions there are."""
        async with self._snapshot() as reading:
            ((total,),) = await reading.fetch("total")
            ((last, newest),) = await reading.fetch("numbering")
            unsettled = await reading.fetch("routes_unsettled")
            workers = await reading.fetch("workers")
        if newest is not None and last < newest:
            self._findings.add(
                "S5 one create, one record",
                "execution_seq",
                f"it gives out {last + 1} next, and row {newest} is there: creates will fail",
            )
        for (route_id,) in unsettled:
            self._findings.add(
                "S10 index and record agree (routes)",
                f"route {route_id}",
                "it has no revision, or one to come: claims may not know it",
            )
        for namespace, instance in workers:
            self._findings.add(
                REPAIRABLE, f"worker {namespace}/{instance}", "its record and its timer disagree"
            )
        return total

    # Repair -------------------------------------------------------------------------------------------------------

    async def _rebuild(self, rows: Sequence[int]) -> None:
        """Make the index entries of executions follow from their rows, and tell who waits for them."""
        async with self._calls.transaction() as connection:
            reading = Reading(connection, self._sql)
            for name in (
                "lock",
                "drop_wrong_ready",
                "add_ready",
                "drop_agenda",
                "add_agenda",
                "announce_ready",
                "announce_due",
            ):
                await reading.fetch(name, rows)

    async def _drop_ready(self, wrong: Sequence[Any]) -> None:
        async with self._calls.transaction() as connection:
            reading = Reading(connection, self._sql)
            await reading.fetch("lock", [row["seq"] for row in wrong])
            columns = ("route_id", "rank", "eligible_since_ms", "id")
            await reading.fetch("drop_ready", *([row[column] for row in wrong] for column in columns))


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do several things at once; when one fails the others are given up."""
    tasks = [asyncio.create_task(part) for part in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _agree(row: Any) -> bool:
    """Say whether an idempotency key and its execution are of one create."""
    try:
        definition = decode_definition(row["document"], 0)
    except Corrupt:
        # Reported with the execution.
        return True
    return (row["partition"], row["digest"], row["key"], row["namespace"]) == (
        row["has_partition"],
        row["has_digest"],
        definition.idempotency_key,
        definition.namespace,
    )
