"""attempt.describe: one attempt."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import AttemptNotFound, ExecutionNotFound, InvalidInput
from tests.conformance import situations
from tests.conformance.world import TTL_MS, UNKNOWN, World, policy, timing


async def test_it_follows_the_attempt(world: World) -> None:
    """When it started, who runs it, when it times out and how it ended are shown as they are now."""
    timeouts = policy(timeout_policy=timing(attempt_timeout_ms=60_000))
    lease = await world.leased("w", policy=timeouts)
    attempt = await world.attempt.describe(lease)
    assert (attempt.execution_id, attempt.attempt_id, attempt.attempt_index) == (
        lease.execution_id,
        lease.attempt_id,
        0,
    )
    assert (attempt.state, attempt.started_at_ms, attempt.ended_at_ms) == ("started", world.now_ms, None)
    assert (attempt.worker_id, attempt.worker_instance, attempt.lease_epoch) == ("w", "w-1", 1)
    assert (attempt.timeout_at_ms, attempt.previous_attempt_index) == (world.now_ms + 60_000, None)
    world.clock.advance(7)
    await world.execution.complete(lease)
    attempt = await world.attempt.describe(lease)
    assert (attempt.state, attempt.ended_at_ms, attempt.timeout_at_ms) == (
        "ended_success",
        world.now_ms,
        None,
    )


async def test_a_former_attempt_stays_readable(world: World) -> None:
    """Attempts before the latest are kept as they ended."""
    first = await world.leased("a")
    await world.advance(TTL_MS)
    second = await world.claim_one("b")
    assert (await world.attempt.describe(first)).state == "interrupted_reclaimed"
    assert (await world.attempt.describe(second)).state == "started"


@pytest.mark.parametrize("situation", [situations.waiting, situations.leased, situations.completed])
async def test_an_attempt_that_does_not_exist_is_not_found(
    world: World, situation: situations.Situation
) -> None:
    """An index that was never used is attempt_not_found; the execution is looked for first."""
    execution_id = await situation(world)
    for index in (1, 2, limits.COUNT_MAX):
        await world.refused(AttemptNotFound, world.attempt.describe(execution_id, attempt_index=index))
    await world.refused(ExecutionNotFound, world.attempt.describe(UNKNOWN, attempt_index=1))


@pytest.mark.parametrize("index", [-1, limits.COUNT_MAX + 1])
async def test_the_index_is_bounded(world: World, index: int) -> None:
    """A negative or far too large index is refused."""
    execution_id = await world.create()
    await world.refused(InvalidInput, world.attempt.describe(execution_id, attempt_index=index))
