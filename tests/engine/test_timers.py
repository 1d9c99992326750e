"""The engine's timers on a real store with its own clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from flowfabric.backends import connect
from flowfabric.backends.clock import ManualClock
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import (
    ExecutionById,
    ExecutionCreate,
    ExecutionReadState,
)
from flowfabric.contract.ids import ExecutionId, Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import LeaseClaim
from flowfabric.contract.states import PublicState
from flowfabric.engine.supervisor import Engine
from flowfabric.engine.timers import run_due

START_MS = 1_760_000_000_000


@pytest.fixture
def clock() -> ManualClock:
    """A clock that moves only when told."""
    return ManualClock(start_ms=START_MS)


@pytest.fixture
async def backend(clock: ManualClock) -> AsyncIterator[Backend]:
    """A store in memory."""
    store = await connect("sqlite:///:memory:", clock=clock)
    yield store
    await store.close()


async def _state(backend: Backend, execution_id: ExecutionId) -> PublicState:
    read = await backend.execution.read_state(ExecutionReadState(execution_id=execution_id))
    return read.public_state


async def _delayed(backend: Backend, delay_ms: int) -> ExecutionId:
    created = await backend.execution.create(
        ExecutionCreate(kind=Kind("k"), delay_until_ms=START_MS + delay_ms)
    )
    return created.execution_id


async def _until(backend: Backend, execution_id: ExecutionId, state: PublicState) -> None:
    async def look() -> None:
        while await _state(backend, execution_id) is not state:  # noqa: ASYNC110 - asks the store as a user would
            await asyncio.sleep(0.005)

    await asyncio.wait_for(look(), 10)


async def test_nothing_due_serves_nothing(backend: Backend) -> None:
    """With nothing due, a round serves nothing."""
    assert await run_due(backend) == 0


async def test_a_round_serves_everything_that_is_due(backend: Backend, clock: ManualClock) -> None:
    """A round serves everything that is due, however much, and leaves what is not."""
    early = [await _delayed(backend, 1_000) for _ in range(600)]
    late = await _delayed(backend, 5_000)
    clock.advance(1_000)
    assert await run_due(backend) == 600
    assert await _state(backend, early[0]) is PublicState.WAITING
    assert await _state(backend, late) is PublicState.DELAYED


async def test_the_engine_wakes_at_the_nearest_instant(backend: Backend, clock: ManualClock) -> None:
    """A running engine serves a timer when its instant comes, without a poll in between.

    Acceptance: engine-wakes-at-the-nearest-instant
    """
    engine = Engine(backend)
    await engine.start()
    execution_id = await _delayed(backend, 60_000)
    clock.advance(59_999)
    await asyncio.sleep(0.05)
    assert await _state(backend, execution_id) is PublicState.DELAYED
    clock.advance(1)
    await _until(backend, execution_id, PublicState.WAITING)
    assert await engine.stop(5)


async def test_an_earlier_timer_wakes_a_sleeping_engine(backend: Backend, clock: ManualClock) -> None:
    """A timer that is due before the one the engine sleeps for wakes it."""
    engine = Engine(backend)
    await engine.start()
    late = await _delayed(backend, 3_600_000)
    await asyncio.sleep(0.05)
    early = await _delayed(backend, 1_000)
    clock.advance(1_000)
    await _until(backend, early, PublicState.WAITING)
    assert await _state(backend, late) is PublicState.DELAYED
    assert await engine.stop(5)


async def test_two_engines_on_one_store_do_no_harm(backend: Backend, clock: ManualClock) -> None:
    """Several engines serve the same timers once each: nothing is promoted twice and nothing is lost.

    Acceptance: several-engines-do-no-harm
    """
    engines = [Engine(backend), Engine(backend)]
    for engine in engines:
        await engine.start()
    created = [await _delayed(backend, 1_000 + index) for index in range(50)]
    clock.advance(2_000)
    for execution_id in created:
        await _until(backend, execution_id, PublicState.WAITING)
    for engine in engines:
        assert await engine.stop(5)
    assert not (await backend.maintenance.fsck()).findings


async def test_an_expired_lease_is_claimable_again_without_anybody_asking(
    backend: Backend, clock: ManualClock
) -> None:
    """When a worker stops renewing, a waiting worker gets its execution as soon as the lease runs out."""
    created = await backend.execution.create(ExecutionCreate(kind=Kind("k")))

    def claim(worker: str, wait_ms: int) -> LeaseClaim:
        return LeaseClaim(
            worker_id=WorkerId(worker),
            worker_instance=WorkerInstance(worker),
            lanes=(Lane("default"),),
            lease_ttl_ms=1_000,
            wait_ms=wait_ms,
        )

    engine = Engine(backend)
    await engine.start()
    first = (await backend.lease.claim(claim("first", 0))).leases[0]
    waiting = asyncio.create_task(backend.lease.claim(claim("second", 30_000)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    clock.advance(1_000)
    second = (await asyncio.wait_for(waiting, 10)).leases[0]
    assert second.execution_id == first.execution_id == created.execution_id
    assert second.attempt_index == 1
    assert second.lease_epoch > first.lease_epoch
    assert await engine.stop(5)


def test_every_kind_of_timer_has_its_operation() -> None:
    """Each kind of timer that a store can name is served by an operation."""
    from flowfabric.contract.backend import DueKind
    from flowfabric.engine.timers import DISPATCH

    assert set(DISPATCH) == set(DueKind)
    assert issubclass(ExecutionReadState, ExecutionById)
