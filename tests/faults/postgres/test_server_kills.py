"""The server is killed -9 at any moment, crashes or is restarted: clients and workers go on by themselves.

`FLOWFABRIC_FAULT_KILLS` says how many kills there are (10), `FLOWFABRIC_FAULT_SEED` repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.faults.judging import judge
from tests.faults.load import loading
from tests.faults.postgres.scenes import crash_one, kill_and_start, restart
from tests.faults.scenes import KILLS, SEED, all_working, end_workers, worker_processes
from tests.postgres.servers import Node

Strike = Callable[[Node], Awaitable[None]]


@pytest.mark.timeout(180 + 5 * KILLS)
async def test_kills_of_the_server_lose_nothing(server: Node, tmp_path: Path) -> None:
    """A server that is killed and restarted again and again keeps everything it acknowledged, and workers go on."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    async with loading(server.url, sdk=True) as load:
        with worker_processes(tmp_path, server.url) as workers:
            await all_working(tmp_path, workers)
            for _ in range(KILLS):
                # sleeps: the moment of the kill is the point; most fall into work, some into the recovery
                await asyncio.sleep(chance.choice([0.02, 0.1, 0.4, 0.8]) * chance.uniform(0.5, 1.0))
                await kill_and_start(server)
                if chance.random() < 0.5:
                    await load.progress(8)
            await load.progress()
            seen = await load.finish()
            end_workers(load, tmp_path, workers)
        assert load.unavailable, "nobody noticed anything"
        await judge(load.backend, seen)


@pytest.mark.timeout(180 + 5 * KILLS)
@pytest.mark.parametrize("strike", [crash_one, restart])
async def test_a_server_that_comes_back(server: Node, strike: Strike) -> None:
    """A server that throws everybody out, because it crashed or is restarted, is used again as soon as it is back."""
    async with loading(server.url) as load:
        for _ in range(max(3, KILLS // 5)):
            await load.progress(8)
            await strike(server)
        await load.progress()
        await judge(load.backend, await load.finish())
