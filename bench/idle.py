"""What an idle `flowfabric dev` costs, and an idle system of a store, a server and ten waiting workers."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import process_cpu_s, resident_bytes
from bench.processes import free_port, serving
from bench.stores import SQLITE, place

_APP = """
from flowfabric import App

app = App("idle")


@app.task
async def nothing() -> None:
    return None
"""


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants (Linux)."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found.extend(int(child) for child in task.read_text(encoding="ascii").split())
    return found


async def idle_dev(store: str, seconds: float) -> dict[str, Any]:
    """Start `dev` with one task, let it settle, and measure its CPU while nothing happens."""
    assert store == SQLITE
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app.py").write_text(_APP, encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "flowfabric", "dev", "app.py", "--listen", f"127.0.0.1:{free_port()}",
            cwd=folder, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await asyncio.sleep(5)  # sleeps: it starts and settles
        if process.returncode is not None:
            raise RuntimeError("dev did not start")
        pids = _tree(process.pid)
        before = sum(process_cpu_s(pid) for pid in pids)
        await asyncio.sleep(seconds)  # sleeps: time passes
        used = sum(process_cpu_s(pid) for pid in pids) - before
        resident = sum(resident_bytes(pid) for pid in pids)
        process.terminate()
        await process.wait()
    return {"core_percent": used / seconds * 100, "resident_mb": resident / 2**20}


async def idle_system(store: str, seconds: float, workers: int, *, through_server: bool) -> dict[str, Any]:
    """Start a server and workers that wait, by its URL or the store's, and measure while nothing happens.

    Everything has its default settings. Says the store's commands per second and CPU, and the CPU of all processes.
    """
    async with place(store, pinned=False) as where, serving(where.url) as server:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "app.py").write_text(_APP, encoding="utf-8")
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "flowfabric", "worker", "app.py", "--processes", str(workers)),
                *(("--server", server.url) if through_server else ("--store", where.url)),
                cwd=folder,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            await asyncio.sleep(10)  # sleeps: ten processes start, register and settle
            pids = [*_tree(process.pid), server.pid]
            if process.returncode is not None or len(pids) < workers + 2:
                raise RuntimeError("the workers did not start")
            before = sum(process_cpu_s(pid) for pid in pids), where.cpu_s(), where.commands()
            counter = where.counter()
            await asyncio.sleep(seconds)  # sleeps: time passes
            used = sum(process_cpu_s(pid) for pid in pids) - before[0]
            store_s = where.cpu_s() - before[1]
            commands = where.commands()
            calls = await asyncio.to_thread(counter.stop)
            process.terminate()
            await process.wait()
    executed = {} if commands is None else {"commands_per_s": (commands - (before[2] or 0)) / seconds}
    return executed | {
        "calls_per_s": calls / seconds,
        "store_core_percent": store_s / seconds * 100,
        "processes_core_percent": used / seconds * 100,
    }
