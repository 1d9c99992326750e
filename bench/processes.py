"""Starting real servers for benchmarks."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench.servers import on_core


@dataclass
class Serving:
    """A running server."""

    url: str
    pid: int


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@asynccontextmanager
async def serving(store: str, *, core: int | None = None) -> AsyncIterator[Serving]:
    """Run `flowfabric serve` on a free port until the block ends."""
    port = free_port()
    with on_core(core):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flowfabric", "serve"),
            *("--store", store, "--listen", f"127.0.0.1:{port}"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    try:
        for _ in range(600):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.05)
        else:
            raise RuntimeError("the server did not start")
        yield Serving(f"http://127.0.0.1:{port}", process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
