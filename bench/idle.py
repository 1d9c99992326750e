"""What an idle `flowfabric dev` costs."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import process_cpu_s, resident_bytes
from bench.processes import free_port

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


async def idle_dev(seconds: float) -> dict[str, Any]:
    """Start `dev` with one task, let it settle, and measure its CPU while nothing happens."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app.py").write_text(_APP, encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "flowfabric", "dev", "app.py", "--listen", f"127.0.0.1:{free_port()}",
            cwd=folder, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await asyncio.sleep(5)
        if process.returncode is not None:
            raise RuntimeError("dev did not start")
        pids = _tree(process.pid)
        before = sum(process_cpu_s(pid) for pid in pids)
        await asyncio.sleep(seconds)
        used = sum(process_cpu_s(pid) for pid in pids) - before
        resident = sum(resident_bytes(pid) for pid in pids)
        process.terminate()
        await process.wait()
    return {"core_percent": used / seconds * 100, "resident_mb": resident / 2**20}
