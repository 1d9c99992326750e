"""execution.read_info: the short record."""

from __future__ import annotations

from flowfabric.contract.states import PublicState
from tests.conformance.world import World, retrying


async def test_it_follows_the_execution(world: World) -> None:
    """The short record shows placement, priority, instants and the latest attempt as they are now."""
    created_ms = world.now_ms
    execution_id = await world.create(priority=3, tags={"a.b": "c"}, policy=retrying(delay_ms=0))
    info = await world.execution.read_info(execution_id)
    assert (info.namespace, info.lane, info.kind, info.priority) == ("default", "default", "k", 3)
    assert (info.tags, info.flow_id, info.blocking_detail) == ({"a.b": "c"}, None, "")
    assert (info.created_at_ms, info.started_at_ms, info.completed_at_ms) == (created_ms, None, None)
    assert info.current_attempt_index is None
    world.clock.advance(5)
    lease = await world.claim_one()
    info = await world.execution.read_info(execution_id)
    assert (info.started_at_ms, info.current_attempt_index) == (world.now_ms, 0)
    await world.execution.fail(lease)
    world.clock.advance(5)
    await world.execution.complete(await world.claim_one())
    info = await world.execution.read_info(execution_id)
    assert (info.started_at_ms, info.completed_at_ms) == (created_ms + 5, world.now_ms)
    assert (info.current_attempt_index, info.public_state) == (1, PublicState.COMPLETED)
