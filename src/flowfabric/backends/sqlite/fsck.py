"""Check the store against what must never break, from its rows alone.

Executions are read in pages, each page one consistent state, while the store is in use. What index columns must hold
is recomputed from the records by the same function that writes them; `repair` does only that. Everything else that
disagrees is reported and left as it is, because only a person can say which side is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from flowfabric.backends import assets
from flowfabric.backends.invariants import check_record
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.apply import index_columns, reindex
from flowfabric.backends.sqlite.fsck_parts import check_parts
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.rows import Row, Snapshot
from flowfabric.backends.sqlite.writer import Transaction, Writer
from flowfabric.contract.backend import Finding, FsckReport
from flowfabric.contract.errors import Corrupt
from flowfabric.rules import worker as worker_rules
from flowfabric.rules.decision import Loaded

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/fsck.sql")
PAGE: Final = 200
PATIENCE_S: Final = 3_600.0
FINDINGS_MAX: Final = 1_000
_COLUMNS: Final = (
    "public_state",
    "ready_rank",
    "eligible_since_ms",
    "due_at_ms",
    "due_kind",
    "holder",
    "claim_id",
    "lost_at_ms",
)
_REPAIRABLE: Final = "S10 index and record agree"


class Page(msgspec.Struct):
    """What was found on one page of executions."""

    last_seq: int
    executions: int = 0
    attempts: int = 0
    frames: int = 0
    findings: list[Finding] = []
    broken: list[int] = []
    """Row numbers of executions whose index columns disagree with their record."""


class Fsck:
    """One run over the whole store."""

    def __init__(
        self,
        writer: Writer,
        readers: Readers,
        *,
        repair: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._repair = repair
        self._progress = progress

    async def run(self) -> FsckReport:
        """Check everything; at most 1,000 findings are listed."""
        findings = list(await self._readers.read(_check_store, patience_s=PATIENCE_S))
        total: int = await self._readers.read(_count, patience_s=PATIENCE_S)
        executions = attempts = frames = 0
        after = 0
        while True:
            page = await self._readers.read(
                lambda snapshot, after=after: _check_page(snapshot, after), patience_s=PATIENCE_S
            )
            if not page.executions:
                break
            after = page.last_seq
            executions += page.executions
            attempts += page.attempts
            frames += page.frames
            if self._repair and page.broken:
                page.findings = await self._repaired(page)
            findings += page.findings[: FINDINGS_MAX - len(findings)]
            if self._progress is not None:
                self._progress(executions, max(total, executions))
        after_key = ("", "")
        while True:
            found, after_key = await self._readers.read(
                lambda snapshot, after=after_key: _check_keys(snapshot, after), patience_s=PATIENCE_S
            )
            findings += found[: FINDINGS_MAX - len(findings)]
            if after_key is None:
                break
        return FsckReport(executions=executions, attempts=attempts, frames=frames, findings=tuple(findings))

    async def _repaired(self, page: Page) -> list[Finding]:
        """Rebuild the index columns of the page's broken executions, and say so in the findings."""

        def run(transaction: Transaction) -> None:
            for seq in page.broken:
                row = rows.load_seq(transaction, seq)
                if row is not None:
                    reindex(transaction, row)

        await self._writer.write(run, weight=len(page.broken))
        return [
            msgspec.structs.replace(finding, repaired=True) if finding.invariant == _REPAIRABLE else finding
            for finding in page.findings
        ]


def _count(snapshot: Snapshot) -> int:
    return snapshot.first(_SQL["count"])[0]


def _check_store(snapshot: Snapshot) -> Iterable[Finding]:
    """Check the file itself, and the rows that belong to no execution."""
    findings: list[Finding] = []
    for (message,) in snapshot.all(_SQL["integrity"]):
        if message != "ok":
            findings.append(Finding(invariant="S11 whole writes", subject="file", message=message))
    for table in ("definitions", "results", "attempts", "events", "streams", "frames"):
        for (seq,) in snapshot.all(_SQL[f"orphan_{table}"]):
            findings.append(
                Finding(
                    invariant="S24 retention removes everything",
                    subject=f"{table} of row {seq}",
                    message="they belong to no execution",
                )
            )
    _, event_id, newest = snapshot.first(_SQL["store"])
    if newest > event_id:
        findings.append(
            Finding(
                invariant="S20 events are ordered",
                subject="events",
                message=f"event {newest} is newer than the latest id given out ({event_id})",
            )
        )
    for (lane,) in snapshot.all(_SQL["lanes_missing"]):
        findings.append(
            Finding(
                invariant="S10 index and record agree",
                subject=f"lane {lane}",
                message="it has routes, no row",
            )
        )
    for namespace, instance, due_at_ms, stored in snapshot.all(_SQL["workers"]):
        worker = rows.decode_worker(stored)
        if worker_rules.due_ms(worker) != due_at_ms or (namespace, instance) != (
            worker.namespace,
            worker.worker_instance,
        ):
            findings.append(
                Finding(
                    invariant="S10 index and record agree",
                    subject=f"worker {namespace}/{instance}",
                    message="its row and its record disagree",
                )
            )
    return findings


def _check_page(snapshot: Snapshot, after: int) -> Page:
    page = Page(last_seq=after)
    for found in snapshot.all(_SQL["page"], (after, PAGE)):
        page.executions += 1
        page.last_seq = found[0]
        _check_execution(snapshot, page, found)
    return page


def _check_execution(snapshot: Snapshot, page: Page, found: tuple[Any, ...]) -> None:
    seq, uuid, partition = found[0], found[1], found[2]
    subject = str(rows.unpack_id(partition, uuid))

    def report(invariant: str, message: str) -> None:
        page.findings.append(Finding(invariant=invariant, subject=subject, message=message))

    if found[17] is None:
        report("S5 one create, one record", "its definition is missing")
        return
    try:
        loaded = rows.loaded_from(found[17], found[16])
    except Corrupt as error:
        report("S9 legal state", error.message)
        return
    _check_columns(page, found, loaded, subject, report)
    for invariant, message in check_record(loaded, has_result=bool(found[18])):
        report(invariant, message)
    attempts, frames, problems = check_parts(snapshot, Row(seq, found[7], loaded))
    page.attempts += attempts
    page.frames += frames
    for invariant, message in problems:
        report(invariant, message)


def _check_columns(
    page: Page,
    found: tuple[Any, ...],
    loaded: Loaded,
    subject: str,
    report: Callable[[str, str], None],
) -> None:
    """Compare the columns with the records they are copied or derived from."""
    definition = loaded.definition
    if definition.execution_id != subject:
        report("S5 one create, one record", f"its definition is that of {definition.execution_id}")
    fixed = (definition.namespace, definition.lane, definition.kind, definition.created_at_ms)
    if fixed != tuple(found[3:7]):
        report(
            "S10 index and record agree (definition)",
            "namespace, lane, kind or creation differ from the definition",
        )
    if (definition.namespace, definition.lane, definition.route) != tuple(found[19:22]):
        report("S10 index and record agree (definition)", "its row points to another route than its own")
    expected = index_columns(definition, loaded.record)
    wrong = [
        f"{name} is {has!r}, should be {should!r}"
        for name, has, should in zip(_COLUMNS, found[8:16], expected, strict=True)
        if has != should
    ]
    if wrong:
        page.broken.append(found[0])
        report(_REPAIRABLE, "; ".join(wrong))


def _check_keys(snapshot: Snapshot, after: tuple[str, str]) -> tuple[list[Finding], tuple[str, str] | None]:
    """Check that idempotency keys point to their executions; return the findings and where to go on."""
    findings: list[Finding] = []
    found = snapshot.all(_SQL["keys"], (*after, PAGE))
    for namespace, key, execution_id, digest in found:
        row = rows.find(snapshot, execution_id)
        if row is None:
            # A key outlives its execution.
            continue
        definition = row.loaded.definition
        if (definition.digest, definition.idempotency_key, definition.namespace) != (digest, key, namespace):
            findings.append(
                Finding(
                    invariant="S5 one create, one record",
                    subject=f"idempotency key of {execution_id} in {namespace}",
                    message="its execution was created under another key or content",
                )
            )
    return findings, (found[-1][0], found[-1][1]) if len(found) == PAGE else None
