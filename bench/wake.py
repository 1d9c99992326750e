"""How long an idle worker takes to hold work that was just submitted: in one process, across processes, over HTTP.

The submitter writes its monotonic clock into the input; the worker compares when it holds the lease. The monotonic
clock is one for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from bench.drain import KIND, LANE, claim_command
from bench.measure import percentile
from bench.processes import serving
from bench.stores import place
from flowfabric.backends import connect
from flowfabric.contract.backend import Stores
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate
from flowfabric.contract.payloads import Payload

PAUSE_S = 0.01


async def _submit(stores: Stores, count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(PAUSE_S)
        stamp = str(time.monotonic_ns()).encode()
        await stores.execution.create(ExecutionCreate(kind=KIND, lane=LANE, input=Payload(stamp)))


async def _work(stores: Stores, count: int) -> list[float]:
    waits: list[float] = []
    while len(waits) < count:
        claimed = await stores.lease.claim(claim_command(0, most=1, wait_ms=30_000))
        now = time.monotonic_ns()
        for lease in claimed.leases:
            waits.append((now - int(lease.input.data)) / 1e6)
            await stores.execution.complete(
                ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence)
            )
    return waits


def _figures(waits: list[float]) -> dict[str, Any]:
    return {"p50_ms": percentile(waits, 0.5), "p99_ms": percentile(waits, 0.99), "samples": len(waits)}


async def _open(url: str) -> Any:
    if url.startswith("http"):
        from flowfabric.client.http import HttpStores

        return HttpStores(url)
    return await connect(url)


async def submitter(url: str, count: int) -> None:
    """Entry of the submitting process: starts when told on standard input."""
    stores = await _open(url)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await _submit(stores, count)
    await stores.close()


async def one_process(store: str, count: int) -> dict[str, Any]:
    """Submit and work in one process."""
    async with place(store) as where:
        backend = await connect(where.url)
        waits, _ = await asyncio.gather(_work(backend, count), _submit(backend, count))
        await backend.close()
    return _figures(waits)


async def _across(url: str, count: int) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.child",
        "submitter",
        json.dumps({"url": url, "count": count}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    await process.stdout.readline()
    stores = await _open(url)
    working = asyncio.create_task(_work(stores, count))
    await asyncio.sleep(0.2)
    process.stdin.write(b"go\n")
    waits = await working
    await process.wait()
    await stores.close()
    return _figures(waits)


async def across_processes(store: str, count: int) -> dict[str, Any]:
    """Submit in one process, work in another, both with the store opened directly."""
    async with place(store) as where:
        return await _across(where.url, count)


async def over_http(store: str, count: int) -> dict[str, Any]:
    """Submit and work in two processes through a server."""
    async with place(store, pinned=False) as where, serving(where.url) as server:
        return await _across(server.url, count)
