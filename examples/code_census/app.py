"""The census as tasks: one that counts a file, one that adds the counts up.

Workers run it with `flowfabric worker examples.code_census.app:app --store URL`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import flowfabric
from examples.code_census.census import Census, Counts, add_up, fails_first
from flowfabric import App, RetryableError
from flowfabric.worker import SyncContext

app = App("code_census")

ON_PURPOSE: Final = "on_purpose"
"""The category of the failures that are part of the demo."""


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What the census of one file says, and which attempt said it."""

    path: str
    attempt: int
    counts: Counts


@app.task(retries=3, backoff="50ms", timeout="60s")
def census_file(ctx: SyncContext, root: str, path: str) -> FileReport:
    """Count one file, streaming what is worth telling as it is come upon.

    It is a plain function: the worker runs it in a thread, so that parsing never holds up a lease's renewal.
    """
    census = Census(Path(root, path).read_bytes())
    for finding in census.findings():
        ctx.stream(asdict(finding), type="finding")
    if ctx.attempt == 0 and fails_first(path):
        raise RetryableError(f"{path} fails the first time, on purpose", category=ON_PURPOSE)
    return FileReport(path=path, attempt=ctx.attempt, counts=census.counts)


@app.task(retries=3, backoff="50ms", timeout="5m")
async def summarise(url: str, runs: list[str]) -> Counts:
    """Read the results of other executions and add them up."""
    reports: list[FileReport] = []
    async with flowfabric.connect(url) as ff:
        for execution_id in runs:
            reports.append(await ff.run(execution_id).result(timeout="1m", type=FileReport))
    return add_up(report.counts for report in reports)
