"""The worker SDK on a store opened directly: leases are renewed from a thread, which opens the store for itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from flowfabric import App, Context, backends
from flowfabric.contract.attempt import AttemptList
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionDescribe,
    ExecutionReadResult,
    ResultCompleted,
)
from flowfabric.contract.ids import Kind, Lane
from flowfabric.worker.runtime import Worker
from tests.valkey import servers

LEASE_TTL_S = 0.4
LIVES = 3


@pytest.mark.parametrize("blocks", [False, True], ids=["waiting", "blocking"])
async def test_leases_outlive_themselves(tmp_path: Path, *, blocks: bool) -> None:
    """An attempt that takes longer than its lease lives keeps it, also while it blocks its event loop."""
    app = App("renewing")

    @app.task(lane="l")
    async def slow(ctx: Context) -> str:
        if blocks:
            time.sleep(LIVES * LEASE_TTL_S)  # noqa: ASYNC251  # sleeps: blocking for so long is the point
        else:
            await asyncio.sleep(LIVES * LEASE_TTL_S)  # sleeps: taking so long is the point
        return "done"

    with servers.single_node(tmp_path / "server") as node:
        backend = await backends.connect(node.url)
        try:
            async with Worker(backend, app, lease_ttl=LEASE_TTL_S):
                created = await backend.execution.create(ExecutionCreate(kind=Kind("slow"), lane=Lane("l")))
                read = ExecutionReadResult(execution_id=created.execution_id, wait_ms=20_000)
                result = await backend.execution.read_result(read)
            assert isinstance(result, ResultCompleted)
            listed = await backend.attempt.list(AttemptList(execution_id=created.execution_id))
            assert len(listed.attempts) == 1
            described = ExecutionDescribe(execution_id=created.execution_id)
            assert (await backend.execution.describe(described)).reclaim_count == 0
            report = await backend.maintenance.fsck()
            assert not report.findings, report.findings
        finally:
            await backend.close()
