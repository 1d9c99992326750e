"""execution.promote: delayed executions become eligible when due."""

from __future__ import annotations

import pytest

from flowfabric.contract.execution import ExecutionPromoted
from flowfabric.contract.states import PublicState
from tests.conformance import situations
from tests.conformance.world import World

DELAYED = {
    "delayed": (situations.delayed, PublicState.WAITING),
    "paused": (situations.paused, PublicState.RESUMABLE),
    "retry_backoff": (situations.retry_backoff, PublicState.WAITING),
}


@pytest.mark.parametrize(("situation", "state"), DELAYED.values(), ids=DELAYED)
async def test_it_acts_exactly_when_due(
    world: World, situation: situations.Situation, state: PublicState
) -> None:
    """Before its instant nothing happens; at it the execution is eligible, and a second call finds it so.

    Acceptance: delayed-is-promoted-when-due
    """
    execution_id = await situation(world)
    world.clock.advance(59_999)
    reply = await world.unchanged(world.execution.promote(execution_id))
    assert reply == ExecutionPromoted(execution_id=execution_id, status="not_due")
    assert await world.claim() == ()
    world.clock.advance(1)
    assert (await world.execution.promote(execution_id)).status == "promoted"
    seen = await world.describe(execution_id)
    assert (seen.public_state, seen.not_before_ms) == (state, None)
    again = await world.unchanged(world.execution.promote(execution_id))
    assert again.status == "not_delayed"
    await world.claim_one()


OTHERS = {name: situation for name, situation in situations.ALL.items() if name not in DELAYED}


@pytest.mark.parametrize("situation", OTHERS.values(), ids=OTHERS)
async def test_what_is_not_delayed_is_left_alone(world: World, situation: situations.Situation) -> None:
    """On an execution that is not delayed nothing is done."""
    execution_id = await situation(world)
    reply = await world.unchanged(world.execution.promote(execution_id))
    assert reply.status == "not_delayed"


async def test_the_engine_promotes_and_it_runs_to_its_end(world: World) -> None:
    """A delayed execution is promoted by the timers alone and completes.

    Acceptance: delayed-runs-end-to-end
    """
    execution_id = await situations.delayed(world)
    assert await world.advance(60_000) == 1
    await world.execution.complete(await world.claim_one())
    assert await world.state(execution_id) is PublicState.COMPLETED


async def test_age_counts_from_when_it_could_have_run(world: World) -> None:
    """A delayed execution is as old as its `delay_until_ms`: work created before that instant goes first.

    Acceptance: delayed-work-is-as-old-as-its-instant
    """
    late = await world.create(delay_until_ms=world.now_ms + 1_000)
    world.clock.advance(500)
    early = await world.create()
    await world.advance(600)
    later = await world.create()
    order = [lease.execution_id for lease in await world.claim(max_tasks=3)]
    assert order == [early, late, later]


async def test_racing_promotions_act_once(world: World) -> None:
    """Several promotions at once act once."""
    execution_id = await situations.delayed(world)
    world.clock.advance(60_000)
    replies = await world.race(*(world.execution.promote(execution_id) for _ in range(4)))
    assert sorted(reply.status for reply in replies) == ["not_delayed"] * 3 + ["promoted"]
