"""execution.wait_children: give the lease back until dependencies are done. Fences are in `test_fences`."""

from __future__ import annotations

from flowfabric.contract.execution import ExecutionPaused
from flowfabric.contract.states import PublicState
from tests.conformance.world import World, frame, policy, timing


async def test_with_nothing_to_wait_for_it_is_eligible_at_once(world: World) -> None:
    """An execution that depends on nothing is resumable at once, and the same attempt continues.

    Acceptance: wait-children-without-children-is-eligible
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1),))
    reply = await world.execution.wait_children(lease)
    assert reply == ExecutionPaused(
        execution_id=lease.execution_id, public_state=PublicState.RESUMABLE, not_before_ms=None
    )
    seen = await world.describe(lease.execution_id)
    assert (seen.public_state, seen.current_lease) == (PublicState.RESUMABLE, None)
    assert (await world.attempt.describe(lease)).state == "suspended"
    resumed = await world.claim_one("other")
    assert (resumed.attempt_id, resumed.lease_epoch, resumed.resumed) == (lease.attempt_id, 2, True)
    assert resumed.frame_sequence == 1


async def test_the_stream_stays_open(world: World) -> None:
    """Waiting does not close the attempt's stream."""
    lease = await world.leased()
    await world.execution.wait_children(lease)
    page = await world.stream.read(lease.execution_id, attempt_index=0)
    assert (page.closed_at_ms, page.closed_reason) == (None, None)


async def test_no_timer_of_the_attempt_runs_meanwhile(world: World) -> None:
    """While nobody holds it, neither lease nor attempt timeout fires; the deadline still does."""
    timeouts = timing(attempt_timeout_ms=1_000, execution_deadline_ms=50_000)
    lease = await world.leased(policy=policy(timeout_policy=timeouts))
    await world.execution.wait_children(lease)
    assert await world.advance(49_999) == 0
    await world.advance(1)
    assert await world.state(lease.execution_id) is PublicState.EXPIRED


async def test_it_is_recorded_as_released(world: World) -> None:
    """The history says that the lease was released to wait for children."""
    lease = await world.leased()
    await world.execution.wait_children(lease)
    event = (await world.history(lease.execution_id))[-1]
    assert (event.name, event.reason, event.outcome) == ("released", "waiting_children", None)
