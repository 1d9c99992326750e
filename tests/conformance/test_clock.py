"""The store's clock: the only one, and it never goes back."""

from __future__ import annotations

from tests.conformance.world import TTL_MS, World, frame


async def test_a_jump_back_stretches_leases_and_breaks_nothing(world: World) -> None:
    """When the host's clock jumps back a minute, leases and order stay sound and work goes on.

    Acceptance: clock-jump-back-breaks-nothing
    """
    lease = await world.leased()
    await world.advance(1_000)
    await world.stream.append(lease, frames=(frame(1),))
    world.clock.advance(-60_000)
    renewed = await world.lease.renew(lease)
    assert renewed.lease_expires_at_ms >= lease.lease_expires_at_ms
    await world.stream.append(lease, frames=(frame(2),))
    second = await world.create()
    await world.execution.complete(lease)
    assert (await world.claim_one()).execution_id == second
    history = await world.history(lease.execution_id)
    instants = [event.at_ms for event in history]
    assert instants == sorted(instants)


async def test_a_jump_ahead_expires_what_is_over(world: World) -> None:
    """When the host's clock jumps ahead a minute, leases whose time is over are lost, and the work is done again.

    Acceptance: clock-jump-ahead-breaks-nothing
    """
    lease = await world.leased("a")
    await world.advance(60_000)
    taken = await world.claim_one("b")
    assert (taken.execution_id, taken.attempt_index) == (lease.execution_id, 1)
    world.clock.advance(-60_000)
    await world.lease.renew(taken)
    await world.execution.complete(taken)


async def test_callers_say_nothing_about_the_present(world: World) -> None:
    """Instants in replies are the store's, and no command carries the present."""
    from flowfabric.contract.operations import OPERATIONS

    for operation in OPERATIONS.values():
        assert not {"now", "now_ms"} & set(operation.command.__struct_fields__)
    world.clock.advance(TTL_MS)
    reply = await world.execution.create(kind="k")
    assert reply.created_at_ms == await world.backend.now_ms() == world.now_ms
