"""execution.read_state: the one word."""

from __future__ import annotations

from flowfabric.contract.states import CancelSource, PublicState
from tests.conformance.world import TTL_MS, World, retrying


async def test_it_follows_every_step(world: World) -> None:
    """The public state is the same word at once after every step."""
    seen: list[PublicState] = []

    async def note(execution_id: str) -> None:
        seen.append(await world.state(execution_id))

    execution_id = await world.create(delay_until_ms=world.now_ms + 10, policy=retrying(delay_ms=100))
    await note(execution_id)
    await world.advance(10)
    await note(execution_id)
    lease = await world.claim_one()
    await note(execution_id)
    await world.execution.wait_children(lease)
    await note(execution_id)
    lease = await world.claim_one()
    await world.execution.fail(lease)
    await note(execution_id)
    await world.advance(100)
    await world.claim_one()
    await world.advance(TTL_MS)
    await note(execution_id)
    await world.execution.cancel(execution_id, source=CancelSource.OPERATOR_OVERRIDE)
    await note(execution_id)
    assert seen == ["delayed", "waiting", "active", "resumable", "delayed", "active", "cancelled"]
