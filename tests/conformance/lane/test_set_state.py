"""lane.set_state: what a lane lets through."""

from __future__ import annotations

import pytest

from flowfabric.contract.errors import InvalidInput, LaneNotAccepting
from flowfabric.contract.ids import DEFAULT_LANE, Lane
from flowfabric.contract.lane import LaneStateSet
from flowfabric.contract.states import LANE_ACCEPTS_CLAIMS, LANE_ACCEPTS_CREATES, LaneState
from tests.conformance.world import World


async def test_the_previous_state_is_told(world: World) -> None:
    """The answer names the state before and now; the lane remembers when it changed."""
    await world.create()
    created_ms = world.now_ms
    world.clock.advance(5)
    reply = await world.lane.set_state(lane="default", state="paused")
    assert reply == LaneStateSet(lane=DEFAULT_LANE, state=LaneState.PAUSED, previous=LaneState.ACTIVE)
    info = await world.lane_info("default")
    assert (info.state, info.created_at_ms, info.changed_at_ms) == ("paused", created_ms, world.now_ms)


async def test_twice_is_once(world: World) -> None:
    """Setting the state it has changes nothing."""
    await world.lane.set_state(lane="default", state="paused")
    world.clock.advance(5)
    reply = await world.unchanged(world.lane.set_state(lane="default", state="paused"))
    assert (reply.state, reply.previous) == ("paused", "paused")


async def test_a_new_lane_is_created_in_its_state(world: World) -> None:
    """A lane that nobody used yet can be stopped before its first use."""
    reply = await world.lane.set_state(lane="later", state="draining")
    assert reply == LaneStateSet(lane=Lane("later"), state=LaneState.DRAINING, previous=LaneState.ACTIVE)
    await world.refused(LaneNotAccepting, world.execution.create(kind="k", lane="later"))


@pytest.mark.parametrize("state", LaneState)
async def test_each_state_lets_through_what_it_says(world: World, state: LaneState) -> None:
    """Active lets everything through, paused creates only, draining claims only, disabled nothing.

    Acceptance: lane-states-act
    """
    await world.create()
    await world.lane.set_state(lane="default", state=state)
    outcomes = await world.race(world.execution.create(kind="k"))
    assert isinstance(outcomes[0], LaneNotAccepting) == (state not in LANE_ACCEPTS_CREATES)
    assert bool(await world.claim()) == (state in LANE_ACCEPTS_CLAIMS)


async def test_what_runs_goes_on(world: World) -> None:
    """Disabling a lane stops neither held work nor its timers."""
    lease = await world.leased()
    await world.lane.set_state(lane="default", state="disabled")
    await world.lease.renew(lease)
    await world.execution.complete(lease)
    assert await world.state(lease.execution_id) == "completed"


async def test_it_acts_on_the_next_claim(world: World) -> None:
    """A pause holds back the very next claim, and resuming gives work at once."""
    for _ in range(3):
        await world.create()
    await world.claim_one()
    await world.lane.set_state(lane="default", state="paused")
    assert await world.claim(max_tasks=10) == ()
    await world.lane.set_state(lane="default", state="active")
    assert len(await world.claim(max_tasks=10)) == 2


@pytest.mark.parametrize("lane", ["", "a b", "{a}", "l" * 65, "a\n"])
async def test_malformed_names_are_refused(world: World, lane: str) -> None:
    """A lane's name is 1 to 64 of a small set of characters.

    Acceptance: lane-name-is-bounded
    """
    await world.refused(InvalidInput, world.lane.set_state(lane=lane, state="paused"))
    await world.lane.set_state(lane="l" * 64, state="paused")


async def test_racing_changes_are_serial(world: World) -> None:
    """Changes at the same time happen one after the other: the last one's state is the lane's."""
    await world.create()
    replies = await world.race(
        *(world.lane.set_state(lane="default", state=state) for state in ("paused", "draining", "disabled"))
    )
    previous = [reply.previous for reply in replies]
    final = (await world.lane_info("default")).state
    assert sorted(previous) == sorted({"active", "paused", "draining", "disabled"} - {final})
