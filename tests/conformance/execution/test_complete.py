"""execution.complete: the end with success. Fences and repetitions are in `test_fences`."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import ExecutionNotActive, InvalidInput
from flowfabric.contract.execution import ExecutionCompleted
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import CancelSource, PublicState
from tests.conformance.world import TTL_MS, World, frame, lost, payload, policy, timing, won


async def test_it_ends_with_success(world: World) -> None:
    """After completion the execution is terminal with outcome success, without a lease, its attempt ended.

    Acceptance: full-life-ends-terminal
    """
    lease = await world.leased()
    world.clock.advance(5)
    reply = await world.execution.complete(lease, result=payload("1"))
    assert reply == ExecutionCompleted(
        execution_id=lease.execution_id, public_state=PublicState.COMPLETED, completed_at_ms=world.now_ms
    )
    seen = await world.describe(lease.execution_id)
    assert seen.state_vector.terminal_outcome == "success"
    assert seen.state_vector.ownership_state == "unowned"
    assert seen.completed_at_ms == seen.last_mutation_at_ms == world.now_ms
    attempt = await world.attempt.describe(lease)
    assert (attempt.state, attempt.ended_at_ms, attempt.failure) == ("ended_success", world.now_ms, None)
    assert (attempt.stream_closed_reason, attempt.stream_closed_at_ms) == ("attempt_success", world.now_ms)


async def test_it_is_recorded_once(world: World) -> None:
    """The history holds the release with the outcome, for executions outside any flow, too.

    Acceptance: every-end-is-a-completion-event
    """
    lease = await world.leased()
    await world.execution.complete(lease)
    event = (await world.history(lease.execution_id))[-1]
    assert (event.name, event.reason, event.outcome) == ("released", "completed", "success")
    assert (event.lease_id, event.lease_epoch, event.attempt_index) == (lease.lease_id, 1, 0)


async def test_every_timer_ends_with_it(world: World) -> None:
    """After completion no lease, timeout, deadline or delay fires any more.

    Acceptance: end-disarms-every-timer
    """
    timeouts = timing(attempt_timeout_ms=1_000, execution_deadline_ms=2_000)
    lease = await world.leased(policy=policy(timeout_policy=timeouts))
    await world.execution.complete(lease)
    before = await world.observe()
    assert await world.advance(2 * TTL_MS) == 0
    assert await world.observe() == before


async def test_its_result_is_bounded(local: World) -> None:
    """A result of 1 MiB is accepted, one byte more is refused and the execution stays active."""
    lease = await local.leased()
    kind = "application/octet-stream"
    large = Payload(b"x" * (limits.PAYLOAD_BYTES_MAX + 1), kind)
    await local.refused(InvalidInput, local.execution.complete(lease, result=large))
    whole = Payload(b"y" * limits.PAYLOAD_BYTES_MAX, kind)
    await local.execution.complete(lease, result=whole)
    assert (await local.execution.read_result(lease.execution_id)).result == whole


async def test_another_media_type_is_other_content(world: World) -> None:
    """The result's media type is part of what a repetition must repeat."""
    lease = await world.leased()
    await world.execution.complete(lease, result=Payload(b"1"))
    other = Payload(b"1", "text/plain")
    await world.refused(
        ExecutionNotActive, world.execution.complete(lease, result=other), terminal_outcome="success"
    )


async def test_an_empty_result_is_not_no_result(world: World) -> None:
    """Completing with zero bytes and completing without a result are different calls."""
    lease = await world.leased()
    await world.execution.complete(lease, result=Payload(b""))
    await world.refused(ExecutionNotActive, world.execution.complete(lease))


async def test_the_result_never_changes(world: World) -> None:
    """Whatever is tried afterwards, every reader gets the result of the one completion.

    Acceptance: result-never-changes
    """
    lease = await world.leased()
    await world.execution.complete(lease, result=payload("1"))
    await world.race(
        world.execution.complete(lease, result=payload("2")),
        world.execution.fail(lease),
        world.execution.cancel(lease.execution_id, source=CancelSource.OPERATOR_OVERRIDE),
    )
    assert (await world.execution.read_result(lease.execution_id)).result == payload("1")


async def test_racing_results_leave_one(world: World) -> None:
    """Of completions with different results at the same time one is kept and the others are refused."""
    lease = await world.leased()
    outcomes = await world.race(
        *(world.execution.complete(lease, result=payload(str(number))) for number in range(5))
    )
    assert len(won(outcomes)) == 1 and lost(outcomes) == ["execution_not_active"] * 4
    kept = next(index for index, outcome in enumerate(outcomes) if isinstance(outcome, ExecutionCompleted))
    assert (await world.execution.read_result(lease.execution_id)).result == payload(str(kept))


async def test_frames_written_before_stay_readable(world: World) -> None:
    """The stream is closed by the end and its frames stay."""
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1), frame(2)))
    await world.execution.complete(lease)
    page = await world.stream.read(lease.execution_id, attempt_index=0)
    assert [item.sequence for item in page.frames] == [1, 2]
    assert page.closed_reason == "attempt_success"


@pytest.mark.parametrize("actor", ["a" * 128, "a" * 129])
async def test_the_actor_is_bounded(world: World, actor: str) -> None:
    """An actor's name has at most 128 bytes."""
    lease = await world.leased()
    call = world.execution.complete(lease.execution_id, source=CancelSource.OPERATOR_OVERRIDE, actor=actor)
    if len(actor) == 128:
        await call
    else:
        await world.refused(InvalidInput, call, field="actor")
