"""execution.set_tags: add or overwrite, in any state."""

from __future__ import annotations

import pytest

from flowfabric.contract.errors import InvalidInput, InvalidTagKey
from tests.conformance import situations
from tests.conformance.world import UNKNOWN, World


@pytest.mark.parametrize("situation", situations.ALL.values(), ids=situations.ALL)
async def test_tags_are_merged_in_every_situation(world: World, situation: situations.Situation) -> None:
    """Given tags are added or overwrite, the others stay; it counts as a change and moves nothing else.

    Acceptance: tags-can-be-set-in-any-state
    """
    execution_id = await situation(world, tags={"a.a": "1", "a.b": "2"})
    before = await world.describe(execution_id)
    world.clock.advance(1)
    reply = await world.execution.set_tags(execution_id, tags={"a.b": "3", "a.c": "4"})
    assert reply.tags == {"a.a": "1", "a.b": "3", "a.c": "4"}
    after = await world.describe(execution_id)
    assert after.tags == reply.tags
    assert after.last_mutation_at_ms == world.now_ms
    assert after.state_vector == before.state_vector


async def test_setting_twice_is_setting_once(world: World) -> None:
    """The same tags again give the same answer."""
    execution_id = await world.create()
    replies = [await world.execution.set_tags(execution_id, tags={"a.b": "c"}) for _ in range(2)]
    assert replies[0] == replies[1]


async def test_one_bad_key_sets_nothing(world: World) -> None:
    """With one malformed key among good ones nothing is written.

    Acceptance: one-bad-tag-key-sets-nothing
    """
    execution_id = await world.create()
    call = world.execution.set_tags(execution_id, tags={"a.b": "c", "bad": "x"})
    await world.refused(InvalidTagKey, call, key="bad")


async def test_no_tags_are_refused(world: World) -> None:
    """An empty set is refused."""
    await world.refused(InvalidInput, world.execution.set_tags(await world.create(), tags={}))


async def test_there_are_at_most_64_tags(world: World) -> None:
    """The 65th tag is refused, whether it comes at once or is added."""
    execution_id = await world.create(tags={f"a.k{index}": "" for index in range(63)})
    await world.execution.set_tags(execution_id, tags={"a.last": ""})
    await world.refused(InvalidInput, world.execution.set_tags(execution_id, tags={"a.more": ""}))
    await world.execution.set_tags(execution_id, tags={"a.last": "overwritten"})
    many = {f"b.k{index}": "" for index in range(65)}
    await world.refused(InvalidInput, world.execution.set_tags(execution_id, tags=many))


async def test_malformed_tags_are_refused_before_looking(world: World) -> None:
    """Of a bad tag and an unknown execution, the bad tag is the answer."""
    await world.refused(InvalidTagKey, world.execution.set_tags(UNKNOWN, tags={"bad": ""}))
    await world.refused(InvalidInput, world.execution.set_tags(UNKNOWN, tags={}))


async def test_racing_calls_lose_no_tag(world: World) -> None:
    """Calls at the same time on different keys all take effect."""
    execution_id = await world.create()
    await world.race(
        *(world.execution.set_tags(execution_id, tags={f"a.k{index}": "v"}) for index in range(16))
    )
    assert len((await world.describe(execution_id)).tags) == 16
