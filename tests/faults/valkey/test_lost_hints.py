"""Hints and bells are advice: when they are gone, under load or at rest, a sweep puts them back and everything runs."""

from __future__ import annotations

import asyncio

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import keys
from flowfabric.contract.execution import ExecutionCreate, ExecutionList, ExecutionReadState
from flowfabric.contract.ids import Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import LeaseClaim
from flowfabric.contract.states import PublicState
from flowfabric.engine.timers import run_due
from tests.faults.judging import judge
from tests.faults.load import FEW, PATIENCE_S, loading
from tests.faults.scenes import blocking
from tests.faults.valkey.scenes import sweep
from tests.valkey.servers import Node

GONE = (keys.HELD, keys.DUE_HINTS, keys.DUE_HELD)
PATTERNS = (keys.hints("*"), keys.bell("*"))


def lose(server: Node) -> int:
    """Delete every hint and bell; return how many keys that were."""
    names = [name for pattern in PATTERNS for name in server.call("KEYS", pattern)]
    return server.call("DEL", *GONE, *names)


async def test_hints_are_lost_under_load(server: Node) -> None:
    """Hints that vanish again and again under load strand nothing once somebody sweeps."""
    async with loading(server.url) as load:
        await load.progress()
        lost = 0
        for _ in range(10):
            await load.progress(8)
            for _ in range(5):
                lost += lose(server)
            await sweep(load, server)
        assert lost
        await judge(load.backend, await load.finish())


async def test_a_sleeping_worker_is_found_by_the_sweep(server: Node) -> None:
    """Work whose hint was lost before anybody took it wakes a worker that sleeps, with the next sweep."""
    one = await backends.connect(server.url, partitions=FEW)
    other = await backends.connect(server.url)
    try:
        create = ExecutionCreate(kind=Kind("k"), lane=Lane("l"))
        created = await one.execution.create(create)
        assert lose(server)
        claim = LeaseClaim(
            worker_id=WorkerId("w"), worker_instance=WorkerInstance("w"), lanes=(Lane("l"),), wait_ms=20_000
        )
        claiming = asyncio.create_task(other.lease.claim(claim))
        found, _ = await asyncio.wait((claiming,), timeout=0.5)
        assert not found, "nobody said that there is work"
        await blocking(lambda: server.call("DEL", keys.SWEEPER))
        await one.timers.sweep()
        async with asyncio.timeout(PATIENCE_S):
            (lease,) = (await claiming).leases
        assert lease.execution_id == created.execution_id
    finally:
        await one.close()
        await other.close()


async def test_timers_whose_hints_are_lost_fire_after_a_sweep(server: Node) -> None:
    """A delayed execution whose partition nobody is told of becomes eligible after the next sweep."""
    clock = ManualClock()
    backend = await backends.connect(server.url, clock=clock, partitions=FEW)
    try:
        delay_until_ms = clock.now_ms() + 10_000
        create = ExecutionCreate(kind=Kind("k"), lane=Lane("l"), delay_until_ms=delay_until_ms)
        created = await backend.execution.create(create)
        await backend.timers.read_due(1)
        assert lose(server)
        clock.set(delay_until_ms)
        assert await run_due(backend) == 0
        await backend.timers.sweep()
        assert await run_due(backend) == 1
        state = await backend.execution.read_state(ExecutionReadState(execution_id=created.execution_id))
        assert state.public_state is PublicState.WAITING
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings
    finally:
        await backend.close()


async def test_callers_that_give_up_strand_nothing(server: Node) -> None:
    """What was created by callers that did not wait for the answer is given out without a sweep."""
    one = await backends.connect(server.url, partitions=FEW)
    other = await backends.connect(server.url)
    try:
        create = ExecutionCreate(kind=Kind("k"), lane=Lane("l"))
        await one.execution.create(create)
        # The first sweep is over before there is anything to find, and the next one is far away.
        await one.timers.sweep()
        for turns in range(1, 40):
            creating = asyncio.create_task(one.execution.create(create))
            for _ in range(turns):
                await asyncio.sleep(0)
            creating.cancel()
            await asyncio.gather(creating, return_exceptions=True)
        created = {
            info.execution_id for info in (await one.execution.list(ExecutionList(limit=1_000))).executions
        }
        assert len(created) > 5, "hardly any call was sent before it was given up"
        claimed: set[str] = set()
        claim = LeaseClaim(
            worker_id=WorkerId("w"),
            worker_instance=WorkerInstance("w"),
            lanes=(Lane("l"),),
            max_tasks=8,
            wait_ms=5_000,
        )
        async with asyncio.timeout(PATIENCE_S):
            while claimed < created:
                claimed |= {lease.execution_id for lease in (await other.lease.claim(claim)).leases}
        assert claimed == created
    finally:
        await one.close()
        await other.close()
