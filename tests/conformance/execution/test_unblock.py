"""execution.unblock: a blocked execution may run again, in its place."""

from __future__ import annotations

import pytest

from flowfabric.contract.errors import ExecutionNotEligible
from flowfabric.contract.states import BLOCKED_BY_REASON, BlockingReason, PublicState
from tests.conformance import situations
from tests.conformance.world import World, lost, won


@pytest.mark.parametrize("reason", sorted(BLOCKED_BY_REASON))
async def test_it_is_eligible_again_in_its_place(world: World, reason: BlockingReason) -> None:
    """After unblocking the execution goes before younger work of its priority, as if never blocked.

    Acceptance: unblock-keeps-the-place
    """
    execution_id = await world.create()
    await world.execution.block(execution_id, reason=reason, detail="why")
    world.clock.advance(10)
    await world.create()
    reply = await world.execution.unblock(execution_id)
    assert (reply.public_state, reply.blocking_reason) == (PublicState.WAITING, "waiting_for_worker")
    assert (await world.describe(execution_id)).blocking_detail == ""
    assert (await world.claim_one()).execution_id == execution_id


async def test_only_for_the_expected_reason(world: World) -> None:
    """With an expected reason that is not the present one nothing happens: the unblock is out of date."""
    execution_id = await world.create()
    await world.execution.block(execution_id, reason=BlockingReason.WAITING_FOR_BUDGET)
    call = world.execution.unblock(execution_id, expected_reason=BlockingReason.WAITING_FOR_QUOTA)
    await world.refused(ExecutionNotEligible, call)
    await world.execution.unblock(execution_id, expected_reason=BlockingReason.WAITING_FOR_BUDGET)
    assert await world.state(execution_id) is PublicState.WAITING


NOT_BLOCKED = {name: situation for name, situation in situations.ALL.items() if name != "blocked"}


@pytest.mark.parametrize("situation", NOT_BLOCKED.values(), ids=NOT_BLOCKED)
async def test_what_is_not_blocked_is_refused(world: World, situation: situations.Situation) -> None:
    """An execution that nobody blocked cannot be unblocked."""
    execution_id = await situation(world)
    await world.refused(ExecutionNotEligible, world.execution.unblock(execution_id))


async def test_twice_is_refused(world: World) -> None:
    """The second call finds it eligible."""
    execution_id = await situations.blocked(world)
    await world.execution.unblock(execution_id)
    await world.refused(ExecutionNotEligible, world.execution.unblock(execution_id))


async def test_racing_calls_act_once(world: World) -> None:
    """Of several calls at once one unblocks."""
    execution_id = await situations.blocked(world)
    outcomes = await world.race(*(world.execution.unblock(execution_id) for _ in range(4)))
    assert len(won(outcomes)) == 1 and lost(outcomes) == ["execution_not_eligible"] * 3
