"""A lane is a row only once its state was set; until then it exists through its routes."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import flowfabric
from flowfabric.backends.clock import ManualClock
from flowfabric.contract.errors import LaneNotAccepting
from flowfabric.contract.ids import Kind, Lane
from flowfabric.contract.lane import LaneInfo, LaneList, LaneSetState
from flowfabric.contract.states import LaneState
from tests.backends.postgres.work import asleep, opened
from tests.backends.working import claim, create, served, waiting
from tests.postgres.servers import Node


async def test_a_lane_is_as_old_as_its_first_use(still_node: Node, clock: ManualClock) -> None:
    """Creation is the first route or the first setting of a state; a change is when the state was last set."""
    async with opened(still_node.url, clock=clock) as (backend,):
        began_ms = clock.now_ms()
        await create(backend, lane=Lane("used"))
        await backend.lane.set_state(LaneSetState(lane=Lane("set"), state=LaneState.PAUSED))
        clock.advance(10)
        await create(backend, lane=Lane("used"), kind=Kind("other"))
        await create(backend, lane=Lane("set"))
        await backend.lane.set_state(LaneSetState(lane=Lane("used"), state=LaneState.ACTIVE))
        clock.advance(10)
        before = await backend.lane.set_state(LaneSetState(lane=Lane("used"), state=LaneState.DRAINING))
        assert before.previous is LaneState.ACTIVE
        (fixed, used) = (await backend.lane.list(LaneList())).lanes
        assert fixed == LaneInfo(
            lane=Lane("set"),
            state=LaneState.PAUSED,
            created_at_ms=began_ms,
            changed_at_ms=began_ms,
            routes=1,
        )
        assert used == LaneInfo(
            lane=Lane("used"),
            state=LaneState.DRAINING,
            created_at_ms=began_ms,
            changed_at_ms=began_ms + 20,
            routes=2,
        )


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_pages_of_lanes_with_rows_and_without(place: str, limit: int) -> None:
    """Lanes come by name, each once, whether they have a row, routes, or both, also when one name begins another."""
    async with opened(place) as (backend,):
        for number, lane in enumerate(("a", "A", "a.b", "a-b", "b", "a:b")):
            if number % 2:
                await create(backend, lane=Lane(lane))
            if number % 3:
                await backend.lane.set_state(LaneSetState(lane=Lane(lane), state=LaneState.PAUSED))
            if number == 0:
                await create(backend, lane=Lane(lane))
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = await backend.lane.list(LaneList(cursor=cursor, limit=limit))
            found += [lane.lane for lane in page.lanes]
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
        assert found == sorted(["a", "A", "a.b", "a-b", "b", "a:b"])


async def test_a_resumed_lane_wakes_who_waits(place: str) -> None:
    """A claim that waits on a paused lane gets its work as soon as another process resumes the lane."""
    async with opened(place, 2) as (mine, other):
        created = await create(other)
        await other.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.PAUSED))
        assert await claim(mine) == ()
        asking = waiting(mine)
        await asleep(mine, count=1)
        await other.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.ACTIVE))
        (lease,) = await served(asking)
        assert lease.execution_id == created


async def test_a_state_acts_on_the_next_call_of_every_process(place: str) -> None:
    """Once set_state has answered, no process creates in or claims from a lane that does not allow it."""
    async with opened(place, 2) as (mine, other):
        for _ in range(10):
            await create(mine)
            await other.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.DISABLED))
            with pytest.raises(LaneNotAccepting):
                await create(mine)
            assert await claim(mine) == ()
            await other.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.ACTIVE))
            assert len(await claim(mine)) == 1


async def test_an_open_transaction_holds_no_lane(place: str) -> None:
    """While an application's transaction that uses a lane for the first time is open, others use and set it freely."""
    async with opened(place) as (backend,):
        connection = await asyncpg.connect(place)
        transaction = connection.transaction()
        await transaction.start()
        await flowfabric.enqueue(connection, "k", lane="new")
        async with asyncio.timeout(5):
            await create(backend, lane=Lane("new"))
            await backend.lane.set_state(LaneSetState(lane=Lane("new"), state=LaneState.PAUSED))
            await backend.lane.set_state(LaneSetState(lane=Lane("new"), state=LaneState.ACTIVE))
        await transaction.commit()
        await connection.close()
        assert len(await claim(backend, lanes=(Lane("new"),), max_tasks=2)) == 2


async def test_rivals_set_a_state_one_after_the_other(place: str) -> None:
    """Of states set at once the last one stays, and everybody is told what was before theirs."""
    states = [LaneState.PAUSED, LaneState.DRAINING, LaneState.DISABLED]
    async with opened(place, 3) as backends:
        found = await asyncio.gather(
            *(
                backend.lane.set_state(LaneSetState(lane=Lane("new"), state=state))
                for backend, state in zip(backends, states, strict=True)
            )
        )
        (lane,) = (await backends[0].lane.list(LaneList())).lanes
        assert sorted([LaneState.ACTIVE, *states]) == sorted([lane.state, *(one.previous for one in found)])
