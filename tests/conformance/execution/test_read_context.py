"""execution.read_context: what a handler needs."""

from __future__ import annotations

import pytest

from flowfabric.contract.payloads import Payload
from tests.conformance import situations
from tests.conformance.world import World


@pytest.mark.parametrize("situation", [situations.waiting, situations.leased, situations.completed])
async def test_the_input_comes_back_identical(world: World, situation: situations.Situation) -> None:
    """Input, media type, kind and tags are the same bytes before, during and after the run.

    Acceptance: input-bytes-are-identical
    """
    data = Payload(b"\xff\x00\xfe not text", "image/x-thing; q=1")
    execution_id = await situation(world, input=data, kind="look", tags={"a.b": "c"})
    context = await world.execution.read_context(execution_id)
    assert (context.execution_id, context.kind, context.input, context.tags) == (
        execution_id,
        "look",
        data,
        {"a.b": "c"},
    )


async def test_json_is_kept_as_it_was_written(world: World) -> None:
    """JSON input keeps its spacing, number spelling and key order."""
    written = Payload(b' {"b": 1.0, "a":1e2,\t"a": null} ')
    execution_id = await world.create(input=written)
    assert (await world.execution.read_context(execution_id)).input == written


async def test_tags_are_those_of_now(world: World) -> None:
    """Tags set later are part of the context."""
    execution_id = await world.create(tags={"a.b": "c"})
    await world.execution.set_tags(execution_id, tags={"a.c": "d"})
    assert (await world.execution.read_context(execution_id)).tags == {"a.b": "c", "a.c": "d"}
