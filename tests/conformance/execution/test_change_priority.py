"""execution.change_priority: in every state but a finished one."""

from __future__ import annotations

import pytest

from flowfabric.contract.errors import ExecutionNotEligible, InvalidInput
from flowfabric.contract.execution import ExecutionPriorityChanged
from tests.conformance import situations
from tests.conformance.world import UNKNOWN, World


async def test_the_order_of_claims_follows(world: World) -> None:
    """A changed priority moves an eligible execution to its new place at once.

    Acceptance: change-priority-reorders
    """
    first, second, third = [await world.create(priority=5) for _ in range(3)]
    await world.execution.change_priority(third, priority=9)
    await world.execution.change_priority(first, priority=1)
    leases = [await world.claim_one() for _ in range(3)]
    assert [lease.execution_id for lease in leases] == [third, second, first]
    assert [lease.priority for lease in leases] == [9, 5, 1]


@pytest.mark.parametrize("situation", situations.LIVE.values(), ids=situations.LIVE)
async def test_it_works_in_every_live_situation(world: World, situation: situations.Situation) -> None:
    """Any execution that has not ended takes a new priority and keeps its state.

    Acceptance: change-priority-in-any-live-state
    """
    execution_id = await situation(world, priority=2)
    before = await world.describe(execution_id)
    reply = await world.execution.change_priority(execution_id, priority=7)
    assert reply == ExecutionPriorityChanged(execution_id=execution_id, priority=7, previous=2)
    after = await world.describe(execution_id)
    assert (after.priority, after.state_vector) == (7, before.state_vector)


async def test_a_delayed_one_keeps_its_new_priority(world: World) -> None:
    """A priority given while delayed decides once it is eligible."""
    await world.create(priority=3)
    execution_id = await situations.delayed(world)
    await world.execution.change_priority(execution_id, priority=4)
    await world.advance(60_000)
    assert (await world.claim_one()).execution_id == execution_id


@pytest.mark.parametrize("situation", situations.ENDED.values(), ids=situations.ENDED)
async def test_a_finished_one_is_refused(world: World, situation: situations.Situation) -> None:
    """A finished execution has no priority to change."""
    execution_id = await situation(world)
    await world.refused(ExecutionNotEligible, world.execution.change_priority(execution_id, priority=1))


@pytest.mark.parametrize(("given", "effective"), [(9_001, 9_000), (-1, 0), (2**31 - 1, 9_000)])
async def test_it_is_clamped(world: World, given: int, effective: int) -> None:
    """The effective priority is within 0..9000."""
    reply = await world.execution.change_priority(await world.create(priority=1), priority=given)
    assert (reply.priority, reply.previous) == (effective, 1)


async def test_numbers_out_of_range_are_refused_first(world: World) -> None:
    """A number that does not fit 32 bits is refused, before the execution is looked for."""
    for priority in (2**31, -(2**31) - 1):
        await world.refused(InvalidInput, world.execution.change_priority(UNKNOWN, priority=priority))


async def test_twice_is_once(world: World) -> None:
    """The same priority again changes nothing; the second answer names it as the previous one."""
    execution_id = await world.create()
    await world.execution.change_priority(execution_id, priority=3)
    reply = await world.execution.change_priority(execution_id, priority=3)
    assert (reply.priority, reply.previous) == (3, 3)


async def test_racing_changes_are_serial(world: World) -> None:
    """Of calls at the same time each sees the one before: one chain of previous priorities."""
    execution_id = await world.create()
    wanted = list(range(1, 9))
    replies = await world.race(
        *(world.execution.change_priority(execution_id, priority=priority) for priority in wanted)
    )
    by_previous = {reply.previous: reply.priority for reply in replies}
    chain = [0]
    while chain[-1] in by_previous:
        chain.append(by_previous[chain[-1]])
    assert sorted(chain[1:]) == wanted
    assert (await world.describe(execution_id)).priority == chain[-1]
