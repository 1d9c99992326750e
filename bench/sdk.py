"""The same drain through the worker SDK: one worker with 16 slots, a handler that returns its input."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

from bench.drain import LANE, payload
from bench.measure import Stopwatch, rate_row
from flowfabric.backends import connect
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import Kind
from flowfabric.contract.payloads import Payload
from flowfabric.worker import App, Worker


async def worker_drain(tasks: int, slots: int, size: int) -> dict[str, Any]:
    """Pre-submit, then let one SDK worker run everything."""
    app = App("bench")
    finished = 0
    all_done = asyncio.Event()

    @app.task(name="echo", lane="bench")
    async def echo(text: str) -> str:
        nonlocal finished
        finished += 1
        if finished == tasks:
            all_done.set()
        return text

    body = Payload(b'{"text":' + payload(size - 9).data + b"}")
    with tempfile.TemporaryDirectory() as folder:
        backend = await connect(f"sqlite:///{folder}/bench.db")
        for start in range(0, tasks, 1_000):
            await backend.execution.create_many(
                ExecutionCreateMany(
                    executions=tuple(
                        ExecutionCreate(kind=Kind("echo"), lane=LANE, input=body)
                        for _ in range(min(1_000, tasks - start))
                    )
                )
            )
        worker = Worker(backend, app, concurrency=slots, lanes=["bench"])
        watch = Stopwatch().start()
        running = asyncio.create_task(worker.run())
        await all_done.wait()
        await worker.stop()
        await running
        watch.stop()
        await backend.close()
    return rate_row(tasks, watch)
