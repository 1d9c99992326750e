"""Server and workers are killed -9 on a Valkey store, as they are on SQLite: nothing acknowledged is lost.

`FLOWFABRIC_FAULT_KILLS` says how many processes are killed (10), `FLOWFABRIC_FAULT_SEED` repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from flowfabric import backends
from tests.faults.processes import free_port, targets
from tests.faults.test_kills import SETTLE_S, VICTIMS, Submitter, judge
from tests.faults.valkey.scenes import KILLS, SEED
from tests.faults.witness import facts
from tests.valkey.servers import Node


@pytest.mark.timeout(120 + 3 * KILLS)
async def test_kills_of_every_process_lose_nothing(server: Node, tmp_path: Path) -> None:
    """Whatever was acknowledged through the server or to a worker is there after any of them, or all, were killed."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    port = free_port()
    found = targets(tmp_path, server.url, port)
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
    backend = await backends.connect(server.url)
    try:
        await judge(backend, submitter, list(facts(tmp_path / "witness")))
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings
        assert report.executions == len(submitter.created)
    finally:
        await backend.close()
