"""Kills that go the same way on every store: of workers, and of every process there is."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from flowfabric import backends
from tests.faults.judging import judge
from tests.faults.load import loading
from tests.faults.processes import free_port, targets
from tests.faults.scenes import KILLS, SEED, all_working, end_workers, worker_processes
from tests.faults.test_kills import SETTLE_S, VICTIMS, Submitter, judge as judge_submitter
from tests.faults.witness import facts


async def kill_every_process(url: str, folder: Path) -> None:
    """Kill server, workers or all of them, again and again, while work is submitted; then hold the store to it."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    port = free_port()
    found = targets(folder, url, port)
    submitter = Submitter(f"http://127.0.0.1:{port}")
    submitting = asyncio.create_task(submitter.run())
    try:
        for target in found.values():
            target.start()
        while sum(target.kills for target in found.values()) < KILLS:
            # sleeps: the moment of the kill is the point; most fall into work, some into a start
            await asyncio.sleep(chance.choice([0.3, 0.9, 1.4]) * chance.uniform(0.5, 1.0))
            victims = [found[name] for name in chance.choice(VICTIMS)]
            for victim in victims:
                victim.kill()
            for victim in victims:
                victim.start()
        submitter.stop()
        await asyncio.wait_for(submitting, SETTLE_S)
    except TimeoutError:
        logs = "\n".join(f"--- {target.name}\n{target.log()}" for target in found.values())
        pytest.fail(f"{len(submitter.created) - len(submitter.results)} executions are stuck\n{logs}")
    finally:
        submitting.cancel()
        await asyncio.gather(submitting, return_exceptions=True)
        for target in found.values():
            target.stop()
    backend = await backends.connect(url)
    try:
        await judge_submitter(backend, submitter, list(facts(folder / "witness")))
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings
        assert report.executions == len(submitter.created)
    finally:
        await backend.close()


async def kill_workers(url: str, folder: Path) -> None:
    """Kill worker processes on the store itself, again and again, under load; then hold the store to it."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    async with loading(url, holders=1, sdk=True) as load:
        with worker_processes(folder, url, sdk=2, holders=1) as workers:
            await all_working(folder, workers)
            for _ in range(KILLS):
                # sleeps: the moment of the kill is the point; most fall into work, some into a start
                await asyncio.sleep(chance.choice([0.3, 0.9, 1.4]) * chance.uniform(0.5, 1.0))
                victim = chance.choice(workers)
                victim.kill()
                victim.start()
            await load.progress()
            seen = await load.finish()
            end_workers(load, folder, workers)
        await judge(load.backend, seen)
