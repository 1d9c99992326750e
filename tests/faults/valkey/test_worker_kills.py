"""Worker processes are killed -9 on a Valkey store: others take over when the leases ran out, nothing is done twice.

`FLOWFABRIC_FAULT_KILLS` says how many are killed (10), `FLOWFABRIC_FAULT_SEED` repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.faults.valkey.judging import judge
from tests.faults.valkey.load import loading
from tests.faults.valkey.scenes import KILLS, SEED, all_working, end_workers, worker_processes
from tests.valkey.servers import Node


@pytest.mark.timeout(120 + 3 * KILLS)
async def test_kills_of_workers_lose_nothing(server: Node, tmp_path: Path) -> None:
    """What a killed worker held is run by another one once its lease is over, as the next attempt, and ends once."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    async with loading(server.url, holders=1, sdk=True) as load:
        with worker_processes(tmp_path, server.url, sdk=2, holders=1) as workers:
            await all_working(tmp_path, workers)
            for _ in range(KILLS):
                # sleeps: the moment of the kill is the point; most fall into work, some into a start
                await asyncio.sleep(chance.choice([0.3, 0.9, 1.4]) * chance.uniform(0.5, 1.0))
                victim = chance.choice(workers)
                victim.kill()
                victim.start()
            await load.progress()
            seen = await load.finish()
            end_workers(load, tmp_path, workers)
        await judge(load.backend, seen)
