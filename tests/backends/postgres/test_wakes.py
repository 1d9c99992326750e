"""Being woken across processes: whatever makes work claimable wakes a claim that waits elsewhere, and none is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flowfabric.backends.postgres import wakes
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionReadInfo,
    ExecutionReadResult,
)
from flowfabric.contract.ids import ExecutionId, Kind, Lane
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.lease import LeaseRelease
from flowfabric.contract.policies import ExecutionPolicy, RoutingRequirements
from flowfabric.contract.states import LaneState, PublicState
from flowfabric.contract.stream import FrameInput, StreamAppend, StreamTail
from flowfabric.engine.supervisor import Engine
from tests.backends.postgres.work import asleep, covered, opened, store_of
from tests.backends.working import (
    PATIENCE_S,
    WAIT_MS,
    claim,
    complete,
    create,
    create_many,
    gone,
    served,
    until,
    waiting,
)
from tests.postgres.servers import single_node

pytestmark = pytest.mark.usefixtures("told_only")


# What wakes -------------------------------------------------------------------------------------------------------


async def _create(one: PostgresBackend) -> ExecutionId:
    return await create(one)


async def _create_many(one: PostgresBackend) -> ExecutionId:
    return (await create_many(one, [ExecutionCreate(kind=Kind("k"))]))[0]


async def _new_route(one: PostgresBackend) -> ExecutionId:
    return await create(one, kind=Kind("never-seen"), lane=Lane("other"))


async def _promote(one: PostgresBackend) -> ExecutionId:
    execution_id = await create(one, delay_until_ms=await one.now_ms() + 30)
    engine = Engine(one)
    await engine.start()

    async def is_delayed() -> bool:
        info = await one.execution.read_info(ExecutionReadInfo(execution_id=execution_id))
        return info.public_state is PublicState.DELAYED

    try:
        async with asyncio.timeout(PATIENCE_S):
            while await is_delayed():  # noqa: ASYNC110 (asks as a user would)
                await asyncio.sleep(0.01)
    finally:
        await engine.stop(5)
    return execution_id


STEPS: dict[str, Callable[[PostgresBackend], Awaitable[ExecutionId]]] = {
    "create": _create,
    "create_many": _create_many,
    "new route": _new_route,
    "promote": _promote,
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_another_process_is_woken(
    pair: list[PostgresBackend], step: Callable[[PostgresBackend], Awaitable[ExecutionId]]
) -> None:
    """What one process makes claimable wakes a claim that waits in another, which gets it."""
    one, other = pair
    task = waiting(other, lanes=(Lane("default"), Lane("other")))
    await asleep(other, count=1)
    execution_id = await step(one)
    assert [lease.execution_id for lease in await served(task)] == [execution_id]


async def test_a_claim_of_the_same_process_is_woken(place: str) -> None:
    """A process tells itself too."""
    async with opened(place) as (one,):
        task = waiting(one)
        await asleep(one, count=1)
        execution_id = await create(one)
        assert [lease.execution_id for lease in await served(task)] == [execution_id]


async def test_what_is_handed_back_wakes(pair: list[PostgresBackend]) -> None:
    """Work that one process hands back goes to a claim that waits in another."""
    one, other = pair
    await create(one)
    (lease,) = await claim(one)
    task = waiting(other)
    await asleep(other, count=1)
    await one.lease.release(LeaseRelease(execution_id=lease.execution_id, fence=lease.fence))
    assert [each.execution_id for each in await served(task)] == [lease.execution_id]


async def test_a_lane_that_goes_on_wakes_as_many_as_it_has_work_for(pair: list[PostgresBackend]) -> None:
    """Resuming a lane wakes waiting claims of every process until all its work is done."""
    one, other = pair
    for state in (LaneState.ACTIVE, LaneState.PAUSED):
        await one.lane.set_state(LaneSetState(lane=Lane("default"), state=state))
    created = await create_many(one, [ExecutionCreate(kind=Kind(f"k{number % 3}")) for number in range(20)])
    tasks = [waiting(backend, f"w{number}") for number, backend in enumerate((one, other) * 10)]
    await asleep(one, other, count=20)
    await one.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.ACTIVE))
    leases = await served(*tasks)
    assert sorted(lease.execution_id for lease in leases) == sorted(created)


async def test_work_for_others_wakes_nobody_in_vain(pair: list[PostgresBackend]) -> None:
    """Work of other lanes, kinds, namespaces or requirements leaves claims in other processes asleep."""
    one, other = pair
    gpu = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=("gpu",)))
    task = waiting(other, kinds=(Kind("k"),), capabilities=("cpu",))
    await asleep(other, count=1)
    await create(one, lane=Lane("other"))
    await create(one, kind=Kind("other"))
    await create(one, namespace="other")
    await create(one, policy=gpu)
    await asyncio.sleep(0.05)  # sleeps: so that a wrong wake-up would show
    assert store_of(other).bells.claims_sleeping == 1
    execution_id = await create(one)
    assert [lease.execution_id for lease in await served(task)] == [execution_id]


# Many at once -----------------------------------------------------------------------------------------------------


async def test_a_burst_strands_nothing(place: str) -> None:
    """Each of many workers in several processes gets something of a burst as large as they are many."""
    async with opened(place, 4) as backends:
        tasks = [waiting(backends[number % 3], f"w{number}") for number in range(60)]
        await asleep(*backends[:3], count=60)
        submitter = backends[3]
        await asyncio.gather(*(create(submitter) for _ in range(30)))
        await create_many(submitter, [ExecutionCreate(kind=Kind("k"))] * 30)
        leases = await served(*tasks)
        assert len({lease.execution_id for lease in leases}) == 60


async def test_mixed_routes_strand_nothing(place: str) -> None:
    """Workers that fit several routes, taking from any of them, leave none of the others' work asleep."""
    async with opened(place, 4) as backends:
        kinds = [Kind(f"k{number}") for number in range(4)]
        picky = [
            waiting(backends[number % 3], f"p{number}", kinds=(kinds[number % 4],)) for number in range(20)
        ]
        broad = [waiting(backends[number % 3], f"b{number}") for number in range(20)]
        await asleep(*backends[:3], count=40)
        for turn in range(20):
            # More of each kind than broad workers can take away from the picky ones.
            await asyncio.gather(*(create(backends[3], kind=kind, priority=turn) for kind in kinds))
        assert len(await served(*picky, *broad)) == 40


async def test_workers_that_come_and_go_strand_nothing(place: str) -> None:
    """Claims that are given up the moment they are woken leave their work to others."""
    async with opened(place, 3) as backends:
        for number in range(20):
            leaving = [waiting(backends[0], f"l{number}"), waiting(backends[1], f"m{number}")]
            await asleep(*backends[:2], count=2)
            creating = asyncio.create_task(create(backends[2]))
            for _ in range(number % 7):
                await asyncio.sleep(0.0005)
            for task in leaving:
                task.cancel()
            outcomes = await asyncio.gather(*leaving, return_exceptions=True)
            execution_id = await creating
            kept = [lease for outcome in outcomes if isinstance(outcome, tuple) for lease in outcome]
            leases = kept or await served(waiting(backends[2], "stays"))
            assert [lease.execution_id for lease in leases] == [execution_id]
            await complete(backends[2], leases[0])


async def test_workers_that_fall_asleep_while_work_arrives_strand_nothing(place: str) -> None:
    """Whatever the moment at which a worker falls asleep: work committed around it is found."""
    async with opened(place, 3) as (submitter, *others):
        for turn in range(30):
            creating = [asyncio.create_task(create(submitter, lane=Lane(f"l{turn}"))) for _ in range(4)]
            tasks = [
                waiting(other, f"{number}", lanes=(Lane(f"l{turn}"),))
                for other in others
                for number in range(2)
            ]
            leases = await served(*tasks)
            assert {lease.execution_id for lease in leases} == set(await asyncio.gather(*creating))


# Executions -------------------------------------------------------------------------------------------------------


async def test_the_end_wakes_who_waits_for_it(pair: list[PostgresBackend]) -> None:
    """Whoever waits for a result in another process gets it as soon as it is there."""
    one, other = pair
    execution_id = await create(one)
    (lease,) = await claim(one)
    tasks = [
        asyncio.create_task(
            other.execution.read_result(ExecutionReadResult(execution_id=execution_id, wait_ms=WAIT_MS))
        )
        for _ in range(20)
    ]
    await until(lambda: store_of(other).bells.waiting == 20)
    await covered(other)
    await complete(one, lease, b"42")
    async with asyncio.timeout(PATIENCE_S):
        results = await asyncio.gather(*tasks)
    assert {result.result.data for result in results} == {b"42"}  # type: ignore[union-attr]
    assert other._wakes._sleepers == {}


async def test_frames_wake_tails_elsewhere(pair: list[PostgresBackend]) -> None:
    """A tail in another process sees a frame, and then the end."""
    one, other = pair
    execution_id = await create(one)
    (lease,) = await claim(one)

    async def tail(after: str) -> Any:
        return await other.stream.tail(StreamTail(execution_id=execution_id, after=after, wait_ms=WAIT_MS))

    tails = [asyncio.create_task(tail("0:0-1")) for _ in range(10)]
    await until(lambda: store_of(other).bells.waiting == 10)
    await covered(other)
    await one.stream.append(
        StreamAppend(
            execution_id=execution_id, attempt_index=0, fence=lease.fence, frames=(FrameInput(sequence=1),)
        )
    )
    async with asyncio.timeout(PATIENCE_S):
        pages = await asyncio.gather(*tails)
    assert {len(page.frames) for page in pages} == {1}
    tails = [asyncio.create_task(tail(pages[0].next_cursor)) for _ in range(10)]
    await until(lambda: store_of(other).bells.waiting == 10)
    await complete(one, lease)
    async with asyncio.timeout(PATIENCE_S):
        pages = await asyncio.gather(*tails)
    assert all(page.closed_at_ms is not None and not page.frames for page in pages)


async def test_results_that_come_while_their_readers_fall_asleep_are_seen(
    pair: list[PostgresBackend],
) -> None:
    """Whatever the moment at which a reader falls asleep: an end committed around it is seen."""
    one, other = pair
    await create_many(one, [ExecutionCreate(kind=Kind("k"))] * 40)
    leases = [lease for _ in range(4) for lease in await claim(one, max_tasks=10)]
    assert len(leases) == 40

    async def read(lease: Any) -> Any:
        return await other.execution.read_result(
            ExecutionReadResult(execution_id=lease.execution_id, wait_ms=WAIT_MS)
        )

    async with asyncio.timeout(PATIENCE_S):
        for number, lease in enumerate(leases):
            reading = asyncio.create_task(read(lease))
            for _ in range(number % 8):
                await asyncio.sleep(0.0005)
            await complete(one, lease, b"1")
            assert (await reading).result.data == b"1"


# Looking without being told -----------------------------------------------------------------------------------------


async def test_a_look_finds_work_that_was_not_told(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that nobody told of is found by the look that a process makes for all its sleeping claims."""
    monkeypatch.setattr(wakes, "POLL_CLAIMS_S", 0.02)
    monkeypatch.setattr(wakes, "LOOK_FOR_WORK_S", 0.05)
    async with opened(place, 2) as (one, other):
        execution_id = await create(one)
        (row,) = await store_of(one).calls.change("DELETE FROM ff.ready RETURNING *")
        task = waiting(other)
        await asleep(other, count=1)
        await store_of(one).calls.change("INSERT INTO ff.ready VALUES ($1, $2, $3, $4, $5)", *row)
        assert [lease.execution_id for lease in await served(task)] == [execution_id]


async def test_a_look_passes_over_lanes_that_are_stopped(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on a paused lane wakes nobody, however often one looks."""
    monkeypatch.setattr(wakes, "POLL_CLAIMS_S", 0.02)
    monkeypatch.setattr(wakes, "LOOK_FOR_WORK_S", 0.0)
    async with opened(place, 2) as (one, other):
        await create(one)
        await one.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.PAUSED))
        task = waiting(other)
        await asleep(other, count=1)
        await asyncio.sleep(0.1)  # sleeps: some looks are made
        assert store_of(other).bells.claims_sleeping == 1
        await gone(task)


async def test_closing_ends_what_waits(place: str) -> None:
    """Claims and readers that wait when the store is closed end with Unavailable."""
    async with opened(place) as (one,):
        execution_id = await create(one, lane=Lane("other"))
        task = waiting(one)
        reading = asyncio.create_task(
            one.execution.read_result(ExecutionReadResult(execution_id=execution_id, wait_ms=WAIT_MS))
        )
        await asleep(one, count=1)
        await until(lambda: store_of(one).bells.waiting == 2)
        await one.close()
        for ended in (task, reading):
            with pytest.raises(Unavailable):
                await ended


async def test_waiting_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine, and ten processes with a waiting claim each, ask the server for less than 20 things a second."""
    monkeypatch.undo()
    tmp_path.chmod(0o711)
    with single_node(tmp_path / "postgres", log_statement="all") as node:
        async with opened(node.url, 10) as backends:
            engine = Engine(backends[0])
            await engine.start()
            tasks = [waiting(backend) for backend in backends]
            await asleep(*backends, count=10)

            def statements() -> int:
                log = (node.folder / "postgres.log").read_text()
                return log.count("LOG:  statement:") + log.count("LOG:  execute ")

            before, started = statements(), time.monotonic()
            await asyncio.sleep(6)  # sleeps: what happens while nothing happens is what is measured
            rate = (statements() - before) / (time.monotonic() - started)
            assert rate < 20
            await gone(*tasks)
            await engine.stop(5)
