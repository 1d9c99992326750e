"""execution.block: hold an eligible execution back."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    ExecutionNotActive,
    ExecutionNotEligible,
    InvalidBlockingReason,
    InvalidInput,
)
from flowfabric.contract.states import BLOCKED_BY_REASON, BlockingReason, PublicState
from tests.conformance import situations
from tests.conformance.world import UNKNOWN, World, won

PUBLIC = {
    BlockingReason.WAITING_FOR_BUDGET: PublicState.RATE_LIMITED,
    BlockingReason.WAITING_FOR_QUOTA: PublicState.RATE_LIMITED,
    BlockingReason.WAITING_FOR_CAPABLE_WORKER: PublicState.WAITING,
    BlockingReason.PAUSED_BY_OPERATOR: PublicState.WAITING,
    BlockingReason.PAUSED_BY_POLICY: PublicState.WAITING,
}
SETTABLE = sorted(BLOCKED_BY_REASON)


@pytest.mark.parametrize("reason", SETTABLE)
async def test_a_blocked_execution_is_not_given_out(world: World, reason: BlockingReason) -> None:
    """Blocking shows the public state that its reason implies, and nobody gets the execution.

    Acceptance: blocked-work-is-not-claimed
    """
    execution_id = await world.create()
    reply = await world.execution.block(execution_id, reason=reason, detail="why")
    assert (reply.public_state, reply.blocking_reason) == (PUBLIC[reason], reason)
    seen = await world.describe(execution_id)
    assert (seen.blocking_detail, seen.state_vector.blocking_reason) == ("why", reason)
    assert await world.claim() == ()


async def test_the_default_reason_is_the_operator(world: World) -> None:
    """Without a reason it is paused by an operator."""
    reply = await world.execution.block(await world.create())
    assert reply.blocking_reason is BlockingReason.PAUSED_BY_OPERATOR


async def test_twice_for_one_reason_is_once(world: World) -> None:
    """Blocking again for the same reason changes nothing; for another it is not eligible."""
    execution_id = await world.create()
    first = await world.execution.block(execution_id, detail="first")
    assert await world.unchanged(world.execution.block(execution_id, detail="second")) == first
    call = world.execution.block(execution_id, reason=BlockingReason.PAUSED_BY_POLICY)
    await world.refused(ExecutionNotEligible, call)


async def test_a_resumable_execution_can_be_blocked(world: World) -> None:
    """Blocking keeps what the next claim continues."""
    execution_id = await situations.interrupted(world)
    await world.execution.block(execution_id)
    await world.execution.unblock(execution_id)
    assert (await world.claim_one()).resumed


async def test_blocking_ends_a_grant(world: World) -> None:
    """A granted execution that is blocked cannot be taken with the grant."""
    execution_id = await situations.granted(world)
    await world.execution.block(execution_id)
    outcomes = await world.race(world.claim_granted(execution_id))
    assert won(outcomes) == []
    assert await world.advance(60_000) == 0


NOT_ELIGIBLE = {
    name: situation
    for name, situation in situations.LIVE.items()
    if name not in ("waiting", "granted", "blocked", "interrupted")
}


@pytest.mark.parametrize("situation", NOT_ELIGIBLE.values(), ids=NOT_ELIGIBLE)
async def test_only_eligible_work_can_be_blocked(world: World, situation: situations.Situation) -> None:
    """What is delayed or active cannot be blocked."""
    execution_id = await situation(world)
    await world.refused(ExecutionNotEligible, world.execution.block(execution_id))


@pytest.mark.parametrize("situation", situations.ENDED.values(), ids=situations.ENDED)
async def test_a_finished_execution_is_not_active(world: World, situation: situations.Situation) -> None:
    """A finished execution answers execution_not_active, before the reason is looked at."""
    execution_id = await situation(world)
    bad = BlockingReason.WAITING_FOR_SIGNAL
    await world.refused(ExecutionNotActive, world.execution.block(execution_id, reason=bad))


@pytest.mark.parametrize("reason", sorted(set(BlockingReason) - set(BLOCKED_BY_REASON)))
async def test_other_reasons_cannot_be_set(world: World, reason: BlockingReason) -> None:
    """Reasons that follow from other operations cannot be set by hand; not being eligible comes first."""
    execution_id = await world.create()
    await world.refused(InvalidBlockingReason, world.execution.block(execution_id, reason=reason))
    delayed = await situations.delayed(world)
    await world.refused(ExecutionNotEligible, world.execution.block(delayed, reason=reason))


async def test_the_detail_is_bounded(world: World) -> None:
    """A detail of 4,096 bytes is accepted; one more is refused before the execution is looked for."""
    await world.refused(InvalidInput, world.execution.block(UNKNOWN, detail="x" * 4_097))
    execution_id = await world.create()
    await world.execution.block(execution_id, detail="x" * limits.REASON_BYTES_MAX)


async def test_block_and_claim_at_once_leave_one_of_them(world: World) -> None:
    """An execution that is blocked and claimed at the same time is either held or blocked."""
    for _ in range(5):
        execution_id = await world.create()
        _, leases = await world.race(world.execution.block(execution_id), world.claim())
        seen = await world.describe(execution_id)
        assert (seen.current_lease is not None) == (len(leases) == 1)
        assert (seen.state_vector.blocking_reason == "paused_by_operator") == (len(leases) == 0)
        await world.execution.cancel(execution_id, source="operator_override")
