"""execution.cancel: from every state but a finished one, once. Fences are in `test_fences`, too."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import ExecutionNotActive, FenceRequired, InvalidInput
from flowfabric.contract.execution import ExecutionCancelled
from flowfabric.contract.states import CancelSource, PublicState
from tests.conformance import situations
from tests.conformance.world import TTL_MS, UNKNOWN, World, won

OPERATOR = CancelSource.OPERATOR_OVERRIDE
NOT_ACTIVE = {**situations.RUNNABLE}
ACTIVE = {"leased": situations.leased, **situations.LOST}
WITHOUT_FENCE = [source for source in CancelSource if source is not CancelSource.LEASE_HOLDER]


@pytest.mark.parametrize("source", WITHOUT_FENCE)
@pytest.mark.parametrize("situation", situations.LIVE.values(), ids=situations.LIVE)
async def test_any_live_execution_can_be_cancelled(
    world: World, situation: situations.Situation, source: CancelSource
) -> None:
    """Operator, flow and system cancel from every live situation without a fence; it is never claimed again.

    Acceptance: cancel-from-waiting-is-never-claimed
    Acceptance: cancel-active-by-operator
    """
    execution_id = await situation(world)
    reply = await world.execution.cancel(execution_id, source=source, reason="enough")
    assert reply == ExecutionCancelled(
        execution_id=execution_id, public_state=PublicState.CANCELLED, already=False
    )
    seen = await world.describe(execution_id)
    assert (seen.public_state, seen.state_vector.terminal_outcome) == ("cancelled", "cancelled")
    assert (seen.cancel_reason, seen.cancelled_by, seen.failure) == ("enough", source.value, None)
    assert (seen.current_lease, seen.not_before_ms, seen.blocking_detail) == (None, None, "")
    assert await world.claim() == ()
    await world.advance(5_000_000)
    assert await world.claim() == ()
    assert await world.state(execution_id) is PublicState.CANCELLED


@pytest.mark.parametrize("situation", NOT_ACTIVE.values(), ids=NOT_ACTIVE)
async def test_what_nobody_runs_needs_no_fence(world: World, situation: situations.Situation) -> None:
    """An execution that is not active can be cancelled by anybody without a fence."""
    execution_id = await situation(world)
    assert not (await world.execution.cancel(execution_id)).already


@pytest.mark.parametrize("situation", ACTIVE.values(), ids=ACTIVE)
async def test_an_active_one_needs_the_fence(world: World, situation: situations.Situation) -> None:
    """An active execution is cancelled by its holder with the fence only; the default source is the holder.

    Acceptance: holder-cancel-needs-the-fence
    """
    execution_id = await situation(world)
    await world.refused(FenceRequired, world.execution.cancel(execution_id))


async def test_the_holder_cancels_with_its_fence(world: World) -> None:
    """With its fence the holder cancels: the attempt ends cancelled, its stream is closed.

    Acceptance: cancel-ends-the-attempt
    """
    lease = await world.leased()
    world.clock.advance(3)
    assert not (await world.execution.cancel(lease, reason="gave up")).already
    attempt = await world.attempt.describe(lease)
    assert (attempt.state, attempt.stream_closed_reason) == ("ended_cancelled", "attempt_cancelled")
    assert attempt.ended_at_ms == world.now_ms
    event = (await world.history(lease.execution_id))[-1]
    assert (event.name, event.outcome, event.actor) == ("released", "cancelled", None)


@pytest.mark.parametrize("situation", [situations.waiting, situations.delayed, situations.blocked])
async def test_without_a_lease_no_lease_ends(world: World, situation: situations.Situation) -> None:
    """Cancelling what nobody holds records the end, and no lease event.

    Acceptance: cancel-without-lease-has-no-lease-event
    """
    execution_id = await situation(world)
    await world.execution.cancel(execution_id)
    events = await world.history(execution_id)
    assert [(event.name, event.lease_id, event.outcome) for event in events] == [("ended", None, "cancelled")]


@pytest.mark.parametrize("source", CancelSource)
async def test_cancelling_twice_is_cancelling_once(world: World, source: CancelSource) -> None:
    """A cancelled execution answers that it already is, whoever asks, and keeps its first reason.

    Acceptance: cancel-of-cancelled-is-idempotent
    """
    execution_id = await world.create()
    await world.execution.cancel(execution_id, reason="first", actor="me")
    reply = await world.unchanged(world.execution.cancel(execution_id, source=source, reason="second"))
    assert reply == ExecutionCancelled(
        execution_id=execution_id, public_state=PublicState.CANCELLED, already=True
    )
    assert (await world.describe(execution_id)).cancel_reason == "first"


async def test_the_former_holder_finds_it_cancelled(world: World) -> None:
    """A holder whose execution an operator cancelled is told so by its own cancel, and refused everything else."""
    lease = await world.leased()
    await world.execution.cancel(lease.execution_id, source=OPERATOR)
    assert (await world.execution.cancel(lease)).already
    await world.refused(ExecutionNotActive, world.execution.complete(lease), terminal_outcome="cancelled")
    await world.refused(ExecutionNotActive, world.lease.renew(lease), terminal_outcome="cancelled")


@pytest.mark.parametrize("source", CancelSource)
@pytest.mark.parametrize("situation", [situations.completed, situations.failed, situations.expired])
async def test_what_ended_otherwise_is_refused(
    world: World, situation: situations.Situation, source: CancelSource
) -> None:
    """An execution that ended in another way cannot be cancelled; the details say how it ended.

    Acceptance: cancel-of-finished-is-refused
    """
    execution_id = await situation(world)
    refusal = await world.refused(ExecutionNotActive, world.execution.cancel(execution_id, source=source))
    assert refusal.details["terminal_outcome"] in ("success", "failed", "expired")


async def test_racing_cancels_are_one(world: World) -> None:
    """Of cancels at the same time one performs it, the others find it done; all report cancelled.

    Acceptance: racing-cancels-perform-once
    """
    lease = await world.leased()
    replies = await world.race(
        world.execution.cancel(lease),
        *(world.execution.cancel(lease.execution_id, source=OPERATOR) for _ in range(4)),
    )
    assert sorted(reply.already for reply in replies) == [False, True, True, True, True]
    assert {reply.public_state for reply in replies} == {PublicState.CANCELLED}
    assert len(await world.events(lease.execution_id)) == 2


async def test_cancel_and_claim_at_once_leave_it_cancelled(world: World) -> None:
    """A cancel that races claims wins in the end: either nobody got a lease, or the lease is gone."""
    for _ in range(5):
        execution_id = await world.create()
        await world.race(
            world.execution.cancel(execution_id, source=OPERATOR),
            world.claim("a"),
            world.claim("b"),
        )
        seen = await world.describe(execution_id)
        assert (seen.public_state, seen.current_lease) == ("cancelled", None)


async def test_cancel_and_complete_at_once_end_one_way(world: World) -> None:
    """Of an operator's cancel and the holder's completion at the same time exactly one takes place."""
    for _ in range(5):
        lease = await world.leased()
        outcomes = await world.race(
            world.execution.complete(lease), world.execution.cancel(lease.execution_id, source=OPERATOR)
        )
        assert len(won(outcomes)) == 1
        assert len(await world.events(lease.execution_id)) == 2


async def test_a_fence_with_an_override_is_not_compared(world: World) -> None:
    """An operator who also names a fence is still an operator: the fence may be an old one."""
    lease = await world.leased()
    await world.advance(TTL_MS)
    await world.claim_one("other")
    assert not (await world.execution.cancel(lease, source=OPERATOR)).already


async def test_texts_are_bounded(world: World) -> None:
    """Reason and actor are accepted up to their bound, and checked before the execution is looked for."""
    await world.refused(
        InvalidInput, world.execution.cancel(UNKNOWN, reason="x" * (limits.REASON_BYTES_MAX + 1))
    )
    await world.refused(InvalidInput, world.execution.cancel(UNKNOWN, actor="x" * 129))
    reason, actor = "x" * limits.REASON_BYTES_MAX, "a" * 128
    execution_id = await world.create()
    await world.execution.cancel(execution_id, reason=reason, actor=actor)
    seen = await world.describe(execution_id)
    assert (seen.cancel_reason, seen.cancelled_by) == (reason, actor)
