"""What is done to processes in the fault tests of every store, and how often.

What blocks runs in a thread, so that the load goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.faults.load import PATIENCE_S, Load
from tests.faults.processes import Target
from tests.faults.witness import facts

KILLS: Final = int(os.environ.get("FLOWFABRIC_FAULT_KILLS", "10"))
"""How many processes a test kills; those that wait for a failover each time kill a fifth."""
FAILOVERS: Final = max(2, KILLS // 5)
SEED: Final = os.environ.get("FLOWFABRIC_FAULT_SEED") or os.urandom(4).hex()


async def blocking(action: Callable[[], object]) -> None:
    """Do something that blocks while everything else goes on."""
    await asyncio.to_thread(action)


@contextlib.contextmanager
def worker_processes(folder: Path, url: str, *, sdk: int = 1, holders: int = 0) -> Iterator[list[Target]]:
    """Run worker processes on a store itself: apps on the worker SDK, and workers made of plain operations."""
    witness = folder / "witness"
    witness.mkdir(exist_ok=True)
    app = ["flowfabric.worker", "tests.faults.app:app", "--url", url, "--lease-ttl", "0.5"]
    app += ["--concurrency", "4", "--log-level", "warning"]
    holder = ["tests.faults.holder", url, str(witness)]
    found = [Target(f"sdk{at}", app, folder) for at in range(sdk)]
    found += [Target(f"holder{at}", holder, folder) for at in range(holders)]
    try:
        for target in found:
            target.start()
        yield found
    finally:
        for target in found:
            target.stop()


async def all_working(folder: Path, workers: list[Target]) -> None:
    """Wait until each worker process has run something."""
    async with asyncio.timeout(PATIENCE_S):
        while sum(path.stat().st_size > 0 for path in (folder / "witness").glob("*.jsonl")) < len(workers):  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # sleeps: other processes write to files


def end_workers(load: Load, folder: Path, workers: list[Target]) -> None:
    """End workers that must have survived until now, and take what they wrote down."""
    for worker in workers:
        worker.kill()
        assert '"level": "error"' not in worker.log(), worker.log()
    load.seen.add(facts(folder / "witness"))
