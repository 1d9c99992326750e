"""execution.delay: give the lease back, continue the same attempt later. Fences are in `test_fences`."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import ExecutionNotActive, InvalidInput
from flowfabric.contract.execution import ExecutionPaused
from flowfabric.contract.states import PublicState
from tests.conformance.world import TTL_MS, World, frame, policy, timing


async def test_it_waits_with_its_attempt_until_due(world: World) -> None:
    """The lease is given back, the attempt is suspended, and the execution is delayed until its instant.

    Acceptance: delay-while-active-releases-the-lease
    """
    lease = await world.leased()
    until_ms = world.now_ms + 60_000
    reply = await world.execution.delay(lease, delay_until_ms=until_ms)
    assert reply == ExecutionPaused(
        execution_id=lease.execution_id, public_state=PublicState.DELAYED, not_before_ms=until_ms
    )
    seen = await world.describe(lease.execution_id)
    assert seen.current_lease is None and seen.not_before_ms == until_ms
    assert seen.state_vector.blocking_reason == "waiting_for_delay"
    assert seen.state_vector.attempt_state == "attempt_interrupted"
    assert (await world.attempt.describe(lease)).state == "suspended"
    assert await world.advance(TTL_MS) == 0
    assert await world.claim() == ()


async def test_the_same_attempt_continues(world: World) -> None:
    """Once due it is resumable; the next claim continues the attempt under a new lease with a higher epoch.

    Acceptance: resumed-claim-keeps-the-attempt
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1), frame(2)))
    await world.execution.delay(lease, delay_until_ms=world.now_ms + 1_000)
    await world.advance(1_000)
    assert await world.state(lease.execution_id) is PublicState.RESUMABLE
    resumed = await world.claim_one("other")
    assert (resumed.attempt_id, resumed.attempt_index, resumed.resumed) == (lease.attempt_id, 0, True)
    assert (resumed.lease_epoch, resumed.frame_sequence) == (2, 2)
    assert resumed.lease_id != lease.lease_id
    await world.stream.append(resumed, frames=(frame(3),))
    assert [item.sequence for item in await world.frames(lease.execution_id, 0)] == [1, 2, 3]
    attempt = await world.attempt.describe(resumed)
    assert (attempt.state, attempt.worker_instance, attempt.lease_epoch) == ("started", "other-1", 1)
    await world.execution.complete(resumed)
    assert (await world.describe(lease.execution_id)).total_attempt_count == 1


@pytest.mark.parametrize("offset_ms", [0, -1])
async def test_a_delay_that_is_over_means_now(world: World, offset_ms: int) -> None:
    """An instant that is not in the future leaves the execution resumable at once.

    Acceptance: past-delay-of-a-worker-means-now
    """
    lease = await world.leased()
    reply = await world.execution.delay(lease, delay_until_ms=world.now_ms + offset_ms)
    assert (reply.public_state, reply.not_before_ms) == (PublicState.RESUMABLE, None)
    assert (await world.claim_one()).resumed


async def test_the_attempt_timeout_stands_still_meanwhile(world: World) -> None:
    """A paused attempt does not time out; it gets its whole time again when it continues."""
    lease = await world.leased(policy=policy(timeout_policy=timing(attempt_timeout_ms=5_000)))
    await world.execution.delay(lease, delay_until_ms=world.now_ms + 60_000)
    await world.advance(60_000)
    resumed = await world.claim_one()
    assert resumed.attempt_timeout_at_ms == world.now_ms + 5_000


async def test_it_keeps_its_place(world: World) -> None:
    """A resumed execution is as old as it was: it goes before younger work of its priority."""
    lease = await world.leased()
    world.clock.advance(1)
    await world.create()
    await world.execution.delay(lease, delay_until_ms=world.now_ms + 5)
    await world.advance(5)
    assert (await world.claim_one()).execution_id == lease.execution_id


async def test_the_former_fence_is_used_up(world: World) -> None:
    """After the delay the old fence gives no right, neither while waiting nor after the attempt continued."""
    lease = await world.leased()
    await world.execution.delay(lease, delay_until_ms=world.now_ms + 5)
    await world.refused(ExecutionNotActive, world.lease.renew(lease), lifecycle_phase="runnable")


async def test_it_is_recorded_as_released(world: World) -> None:
    """The history says that the lease was released by a delay, and acquired again."""
    lease = await world.leased()
    await world.execution.delay(lease, delay_until_ms=0)
    await world.claim_one()
    events = await world.history(lease.execution_id)
    assert [(event.name, event.reason) for event in events] == [
        ("acquired", None),
        ("released", "worker_delay"),
        ("acquired", None),
    ]


async def test_the_instant_is_bounded(world: World) -> None:
    """An instant before the epoch or after the year 9999 is refused."""
    lease = await world.leased()
    for until_ms in (-1, limits.TIMESTAMP_MAX_MS + 1):
        await world.refused(InvalidInput, world.execution.delay(lease, delay_until_ms=until_ms))
    await world.execution.delay(lease, delay_until_ms=limits.TIMESTAMP_MAX_MS)
