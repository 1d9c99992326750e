"""What functions announce is enough: whoever sleeps is woken by it, without ever looking again by itself."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.backends.postgres import timers
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.contract.ids import Lane
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.policies import ExecutionPolicy, TimeoutPolicy
from flowfabric.contract.states import LaneState
from flowfabric.contract.stream import ATTEMPT_STARTED, StreamTail
from tests.backends.postgres.work import asleep, asleep_for_timers, covered, held, store_of
from tests.backends.working import PATIENCE_S, WAIT_MS, claim, complete, create, served, until, waiting


@pytest.fixture(autouse=True)
def timers_told_only(told_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines neither."""
    for name in ("LOOK_AGAIN_S", "POLL_S"):
        monkeypatch.setattr(timers, name, 600.0)


async def test_the_first_attempt_wakes_who_follows_a_run(pair: list[PostgresBackend]) -> None:
    """A tail of a run that nobody has claimed yet shows the marker of its first attempt as soon as it begins."""
    one, other = pair
    execution_id = await create(one)
    tail = StreamTail(execution_id=execution_id, wait_ms=WAIT_MS)
    task = asyncio.create_task(other.stream.tail(tail))
    await until(lambda: store_of(other).bells.waiting == 1)
    await covered(other)
    await claim(one)
    page = await asyncio.wait_for(task, PATIENCE_S / 4)
    assert [frame.frame_type for frame in page.frames] == [ATTEMPT_STARTED]


async def test_a_first_attempt_that_may_not_take_long_wakes_timers(pair: list[PostgresBackend]) -> None:
    """The time limit of a first attempt is told to timers that sleep for longer, however late its lease runs out."""
    one, other = pair
    timeout = TimeoutPolicy(attempt_timeout_ms=1_000)
    await create(one, policy=ExecutionPolicy(timeout_policy=timeout))
    task = await asleep_for_timers(other, await one.now_ms() + 60_000)
    (lease,) = await claim(one, lease_ttl_ms=30_000)
    await asyncio.wait_for(task, PATIENCE_S / 4)
    assert (await other.timers.read_due(1)).next_due_at_ms == lease.attempt_timeout_at_ms


async def test_work_created_while_its_lane_is_resumed_wakes(pair: list[PostgresBackend]) -> None:
    """Work committed just before its lane goes on again, unseen by who resumes it, reaches a claim that sleeps."""
    one, other = pair
    await create(one)
    (lease,) = await claim(one)
    await complete(one, lease)
    await one.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.PAUSED))
    task = waiting(other)
    await asleep(other, count=1)
    async with held(one, "SELECT ff.lane_set_state('default', 'active')"):
        execution_id = await create(one)
        # Woken by the create, the claim finds the lane stopped.
        await asyncio.sleep(0.1)  # sleeps: so that it is sure to have looked
        await asleep(other, count=1)
    assert [found.execution_id for found in await asyncio.wait_for(served(task), PATIENCE_S / 4)] == [
        execution_id
    ]
