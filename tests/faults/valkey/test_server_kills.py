"""The server is killed -9 at any moment, alone or as a primary of a cluster: clients and workers go on by themselves.

`FLOWFABRIC_FAULT_KILLS` says how many servers are killed (10), `FLOWFABRIC_FAULT_SEED` repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flowfabric.backends.valkey.keys import GLOBAL_SLOT
from tests.faults.judging import judge
from tests.faults.load import loading
from tests.faults.scenes import FAILOVERS, KILLS, SEED, all_working, end_workers, worker_processes
from tests.faults.valkey.scenes import hang_primary, kill_and_start, kill_primary
from tests.valkey.servers import SLOTS, Cluster, Node

Strike = Callable[[Cluster, int], Awaitable[None]]


@pytest.mark.timeout(120 + 3 * KILLS)
async def test_kills_of_a_durable_server_lose_nothing(durable: Node, tmp_path: Path) -> None:
    """A server that is killed and restarted again and again keeps everything it acknowledged, and workers go on."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    async with loading(f"{durable.url}?durability=fsync", sdk=True) as load:
        with worker_processes(tmp_path, durable.url) as workers:
            await all_working(tmp_path, workers)
            for _ in range(KILLS):
                # sleeps: the moment of the kill is the point; most fall into work, some into the recovery
                await asyncio.sleep(chance.choice([0.02, 0.1, 0.4, 0.8]) * chance.uniform(0.5, 1.0))
                await kill_and_start(durable)
                if chance.random() < 0.5:
                    await load.progress(8)
            await load.progress()
            seen = await load.finish()
            end_workers(load, tmp_path, workers)
        assert load.unavailable, "nobody noticed anything"
        await judge(load.backend, seen)


@pytest.mark.timeout(120 + 12 * FAILOVERS)
@pytest.mark.parametrize("strike", [kill_primary, hang_primary])
async def test_a_primary_is_replaced(cluster: Cluster, tmp_path: Path, strike: Strike) -> None:
    """When a primary is gone its replica takes over and work goes on by itself; what is there agrees with itself."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    async with loading(cluster.url, sdk=True, forgets=True) as load:
        with worker_processes(tmp_path, cluster.url) as workers:
            await all_working(tmp_path, workers)
            for slot in (GLOBAL_SLOT, *(chance.randrange(SLOTS) for _ in range(FAILOVERS - 1))):
                await load.progress()
                await strike(cluster, slot)
                await load.progress()
            seen = await load.finish()
            end_workers(load, tmp_path, workers)
        await judge(load.backend, seen, kept=False)


@pytest.mark.timeout(120 + 12 * FAILOVERS)
@pytest.mark.parametrize("strike", [kill_primary, hang_primary])
async def test_what_a_replica_confirmed_survives_its_primary(
    cluster: Cluster, tmp_path: Path, strike: Strike
) -> None:
    """With `durability=replicated` a primary that is replaced takes nothing with it that was acknowledged."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    url = f"{cluster.url}?durability=replicated"
    async with loading(url, sdk=True) as load:
        with worker_processes(tmp_path, url) as workers:
            await all_working(tmp_path, workers)
            for slot in (GLOBAL_SLOT, *(chance.randrange(SLOTS) for _ in range(FAILOVERS - 1))):
                await load.progress()
                await strike(cluster, slot)
                await load.progress()
            seen = await load.finish()
            end_workers(load, tmp_path, workers)
        await judge(load.backend, seen, reads_kept=False)
