"""execution.expire: attempt timeouts and deadlines, applied only when due."""

from __future__ import annotations

import pytest

from flowfabric.contract.execution import ExecutionExpireDone
from flowfabric.contract.states import ExpireReason, PublicState
from tests.conformance import situations
from tests.conformance.world import TTL_MS, World, policy, retrying, timing

DEADLINE, TIMEOUT = ExpireReason.EXECUTION_DEADLINE, ExpireReason.ATTEMPT_TIMEOUT


async def status(world: World, execution_id: str, reason: ExpireReason) -> str:
    """Apply a timer by hand and return what was done."""
    reply = await world.execution.expire(execution_id, reason=reason)
    assert reply.execution_id == execution_id
    return reply.status


@pytest.mark.parametrize("situation", situations.LIVE.values(), ids=situations.LIVE)
async def test_a_deadline_ends_every_live_execution(world: World, situation: situations.Situation) -> None:
    """A deadline ends the execution as expired from every live situation, whatever retries are left.

    Acceptance: deadline-expires-from-any-live-state
    Acceptance: expire-active-and-never-claimed
    """
    deadline_ms = world.now_ms + 50_000
    execution_id = await situation(world, deadline_at_ms=deadline_ms)
    assert await status(world, execution_id, DEADLINE) == "not_due"
    world.clock.set(deadline_ms - 1)
    assert await status(world, execution_id, DEADLINE) == "not_due"
    world.clock.set(deadline_ms)
    assert await status(world, execution_id, DEADLINE) == "expired"
    seen = await world.describe(execution_id)
    assert (seen.public_state, seen.state_vector.terminal_outcome) == ("expired", "expired")
    assert (seen.completed_at_ms, seen.current_lease) == (deadline_ms, None)
    assert seen.failure is not None and seen.failure.category == "execution_deadline"
    assert (await world.history(execution_id))[-1].outcome == "expired"
    assert await world.claim() == ()
    assert await status(world, execution_id, DEADLINE) == "already_terminal"


async def test_a_deadline_closes_attempt_and_stream(world: World) -> None:
    """The running attempt ends as failed and its stream is closed as expired."""
    lease = await world.leased(deadline_at_ms=world.now_ms + 5_000)
    await world.advance(5_000)
    attempt = await world.attempt.describe(lease)
    assert (attempt.state, attempt.stream_closed_reason) == ("ended_failure", "expired")
    assert (await world.history(lease.execution_id))[-1].reason == "expired:execution_deadline"


async def test_a_deadline_that_passed_already_expires_at_once(world: World) -> None:
    """An execution created after its deadline expires with the next timers, and is never given out."""
    execution_id = await world.create(deadline_at_ms=world.now_ms - 1)
    assert await world.claim() == ()
    await world.advance(0)
    assert await world.state(execution_id) is PublicState.EXPIRED


async def test_an_attempt_that_times_out_is_a_failure_to_retry(world: World) -> None:
    """A timed-out attempt fails with class timeout; with retries left another follows after the backoff.

    Acceptance: attempt-timeout-is-a-retryable-failure
    """
    policies = retrying(delay_ms=500, timeout_policy=timing(attempt_timeout_ms=1_000))
    lease = await world.leased(policy=policies)
    assert lease.attempt_timeout_at_ms == world.now_ms + 1_000
    world.clock.advance(999)
    assert await status(world, lease.execution_id, TIMEOUT) == "not_due"
    world.clock.advance(1)
    assert await status(world, lease.execution_id, TIMEOUT) == "retry_scheduled"
    attempt = await world.attempt.describe(lease)
    assert attempt.failure is not None
    assert (attempt.state, attempt.failure.failure_class, attempt.failure.category) == (
        "ended_failure",
        "timeout",
        "attempt_timeout",
    )
    assert attempt.stream_closed_reason == "attempt_failure"
    seen = await world.describe(lease.execution_id)
    assert (seen.public_state, seen.retry_count) == ("delayed", 1)
    assert seen.not_before_ms == world.now_ms + 500
    assert await status(world, lease.execution_id, TIMEOUT) == "not_due"


async def test_an_attempt_that_times_out_without_retries_is_final(world: World) -> None:
    """Without retries a timed-out attempt ends the execution as failed, not as expired."""
    lease = await world.leased(policy=policy(timeout_policy=timing(attempt_timeout_ms=1_000)))
    world.clock.advance(1_000)
    assert await status(world, lease.execution_id, TIMEOUT) == "failed"
    reply = await world.execution.read_result(lease.execution_id)
    assert (reply.failure_class, reply.category) == ("timeout", "attempt_timeout")
    assert await status(world, lease.execution_id, TIMEOUT) == "already_terminal"


async def test_renewing_does_not_extend_the_attempt(world: World) -> None:
    """The attempt timeout counts from the claim however often the lease is renewed; engine timers apply it.

    Acceptance: renewal-does-not-extend-the-attempt-timeout
    """
    lease = await world.leased(policy=policy(timeout_policy=timing(attempt_timeout_ms=15_000)))
    await world.advance(8_000)
    await world.lease.renew(lease)
    await world.advance(6_999)
    assert await world.state(lease.execution_id) is PublicState.ACTIVE
    await world.advance(1)
    assert await world.state(lease.execution_id) is PublicState.FAILED


@pytest.mark.parametrize("situation", [*situations.RUNNABLE.values(), *situations.LOST.values()])
async def test_only_a_held_execution_times_out(world: World, situation: situations.Situation) -> None:
    """An execution that nobody holds has no attempt to time out, however long ago it started."""
    execution_id = await situation(world)
    world.clock.advance(10_000_000)
    reply = await world.unchanged(world.execution.expire(execution_id, reason=TIMEOUT))
    assert reply == ExecutionExpireDone(execution_id=execution_id, status="not_due")


@pytest.mark.parametrize("reason", ExpireReason)
@pytest.mark.parametrize("situation", situations.ENDED.values(), ids=situations.ENDED)
async def test_a_finished_execution_does_not_expire(
    world: World, situation: situations.Situation, reason: ExpireReason
) -> None:
    """On a finished execution nothing is done."""
    execution_id = await situation(world)
    reply = await world.unchanged(world.execution.expire(execution_id, reason=reason))
    assert reply.status == "already_terminal"


async def test_without_timers_nothing_is_due(world: World) -> None:
    """An execution without deadline and timeout never expires."""
    lease = await world.leased(lease_ttl_ms=86_400_000)
    for reason in ExpireReason:
        assert await status(world, lease.execution_id, reason) == "not_due"


async def test_timeout_and_lease_expiry_at_once(world: World) -> None:
    """When the attempt's time and its lease run out at once, the execution still runs again exactly once."""
    policies = retrying(delay_ms=0, timeout_policy=timing(attempt_timeout_ms=TTL_MS))
    lease = await world.leased(policy=policies)
    await world.advance(TTL_MS)
    following = await world.claim_one()
    assert (following.execution_id, following.attempt_index) == (lease.execution_id, 1)
    assert await world.claim() == ()


async def test_racing_timers_act_once(world: World) -> None:
    """The same timer applied several times at once acts once."""
    lease = await world.leased(policy=retrying(timeout_policy=timing(attempt_timeout_ms=1_000)))
    world.clock.advance(1_000)
    replies = await world.race(
        *(world.execution.expire(lease.execution_id, reason=TIMEOUT) for _ in range(4))
    )
    assert sorted(reply.status for reply in replies) == ["not_due", "not_due", "not_due", "retry_scheduled"]
    assert (await world.describe(lease.execution_id)).retry_count == 1
