"""The same drain through the worker SDK: workers with 16 slots in all, a handler that returns its input.

Once with the store opened directly, once through a server: the server and the workers are processes of their own then,
and the store has to share the machine with them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from bench.drain import FILL_BATCH, LANE, payload
from bench.measure import process_cpu_s
from bench.processes import serving
from bench.stores import place
from flowfabric.backends import connect
from flowfabric.client.http import HttpStores
from flowfabric.contract.backend import Backend, Stores
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import Kind
from flowfabric.contract.payloads import Payload
from flowfabric.worker import App, Worker

REPORT_S = 0.003


async def _fill(backend: Backend, tasks: int, size: int) -> None:
    body = Payload(b'{"text":' + payload(size - 9).data + b"}")
    one = ExecutionCreate(kind=Kind("echo"), lane=LANE, input=body)
    for start in range(0, tasks, FILL_BATCH):
        batch = (one,) * min(FILL_BATCH, tasks - start)
        await backend.execution.create_many(ExecutionCreateMany(executions=batch))


class _Echo:
    """An app that counts what it has done."""

    def __init__(self) -> None:
        self.app = App("bench")
        self.done = 0
        self.news = asyncio.Event()

        @self.app.task(name="echo", lane="bench")
        async def echo(text: str) -> str:
            self.done += 1
            self.news.set()
            return text

    async def until(self, tasks: int) -> None:
        """Wait until so many handlers have run."""
        while self.done < tasks:
            self.news.clear()
            await self.news.wait()


async def worker_drain(store: str, tasks: int, slots: int, size: int) -> dict[str, Any]:
    """Pre-submit, then let one SDK worker run everything."""
    echo = _Echo()
    async with place(store) as where:
        backend = await connect(where.url)
        await _fill(backend, tasks, size)
        worker = Worker(backend, echo.app, concurrency=slots, lanes=["bench"])
        meter = where.meter().start()
        running = asyncio.create_task(worker.run())
        await echo.until(tasks)
        await worker.stop()
        await running
        meter.stop()
        await backend.close()
    return meter.figures(tasks)


async def http_worker_drain(store: str, tasks: int, slots: int, size: int, workers: int) -> dict[str, Any]:
    """Pre-submit, then let workers run everything through one server process."""
    async with place(store, pinned=False) as where, serving(where.url) as server:
        backend = await connect(where.url)
        processes = [await _start_worker(server.url, slots // workers) for _ in range(workers)]
        await _fill(backend, tasks, size)
        before = process_cpu_s(server.pid), _cpu_s(processes), where.cpu_s()
        began = time.perf_counter()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        await _all_done(processes, tasks)
        wall_s = time.perf_counter() - began
        http_s = process_cpu_s(server.pid) - before[0]
        used_s, store_s = _cpu_s(processes) - before[1], where.cpu_s() - before[2]
        for process in processes:
            process.terminate()
            await process.wait()
        await backend.close()
    figures = {"per_s": tasks / wall_s, "cpu_us": used_s / tasks * 1e6, "http_us": http_s / tasks * 1e6}
    return figures | ({"server_us": store_s / tasks * 1e6} if where.nodes else {})


async def _start_worker(url: str, slots: int) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.child", "http_worker"),
        json.dumps({"url": url, "slots": slots}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def _all_done(processes: list[asyncio.subprocess.Process], tasks: int) -> None:
    """Wait until the workers, which say how many handlers have run, have run all."""
    done = [0] * len(processes)
    finished = asyncio.Event()

    async def listen(number: int) -> None:
        output = processes[number].stdout
        assert output is not None
        while line := await output.readline():
            done[number] = int(line)
            if sum(done) >= tasks:
                finished.set()

    listening = [asyncio.create_task(listen(number)) for number in range(len(processes))]
    await finished.wait()
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)


async def http_worker(url: str, slots: int) -> None:
    """Entry of a worker process: starts when told on standard input, says what it has done, ends by SIGTERM."""

    async def another() -> Stores:
        return HttpStores(url)

    echo = _Echo()

    async def report() -> None:
        while True:
            await echo.until(echo.done + 1)
            await asyncio.sleep(REPORT_S)  # sleeps: many handlers make one line
            print(echo.done, flush=True)

    stores = HttpStores(url)
    await stores.ping()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    worker = Worker(stores, echo.app, concurrency=slots, lanes=["bench"], stores_factory=another)
    reporting = asyncio.create_task(report())
    await worker.run(handle_signals=True)
    reporting.cancel()
    await stores.close()


def _cpu_s(processes: list[asyncio.subprocess.Process]) -> float:
    return sum(process_cpu_s(process.pid) for process in processes)
