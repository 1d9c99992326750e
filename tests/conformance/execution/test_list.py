"""execution.list: newest first, filtered, page by page."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput, InvalidTagKey
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import execution_uuid
from tests.conformance import situations
from tests.conformance.world import World


async def test_newest_come_first(world: World) -> None:
    """Executions are listed newest first, across partitions and lanes.

    Acceptance: list-is-newest-first-across-partitions
    """
    created: list[str] = []
    for index in range(8):
        created.append(await world.create(lane=f"lane-{index % 3}"))
        world.clock.advance(1)
    assert await world.listed() == created[::-1]


async def test_an_empty_store_lists_nothing(world: World) -> None:
    """With no executions there is one empty page."""
    page = await world.execution.list()
    assert (page.executions, page.next_cursor) == ((), None)


async def test_entries_are_the_short_records(world: World) -> None:
    """What is listed is what read_info shows."""
    lease = await world.completed(tags={"a.b": "c"})
    page = await world.execution.list()
    assert page.executions == (await world.execution.read_info(lease.execution_id),)


@pytest.mark.parametrize("limit", [1, 3, 7, 8, 1_000])
async def test_pages_lose_and_repeat_nothing(world: World, limit: int) -> None:
    """Whatever the page size, all executions appear once, also those created in the same millisecond.

    Acceptance: list-pages-lose-nothing
    """
    batch = tuple(ExecutionCreate(kind="k") for _ in range(7))  # type: ignore[arg-type]
    created = [
        result.execution_id for result in (await world.execution.create_many(executions=batch)).results
    ]
    assert sorted(await world.listed(limit=limit)) == sorted(created)


async def test_what_is_created_meanwhile_does_not_disturb(world: World) -> None:
    """Executions created or removed while somebody pages neither repeat nor hide the others."""
    old = [await world.create() for _ in range(4)]
    first = await world.execution.list(limit=2)
    # Within one millisecond there is no order that all stores share.
    world.clock.advance(1)
    await world.create()
    rest = await world.execution.list(limit=10, cursor=first.next_cursor)
    seen = [info.execution_id for info in (*first.executions, *rest.executions)]
    assert sorted(seen) == sorted(old)


async def _populate(world: World) -> dict[str, str]:
    return {
        "plain": await world.create(),
        "tenant": await world.create(namespace="tenant"),
        "lane": await world.create(lane="bulk"),
        "kind": await world.create(kind="resize"),
        "tagged": await world.create(tags={"app.customer": "acme", "app.x": "1=2"}),
        "other": await world.create(tags={"app.customer": "other"}),
        "cancelled": await situations.cancelled(world, lane="bulk"),
    }


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"namespace": "tenant"}, ("tenant",)),
        ({"lane": "bulk"}, ("lane", "cancelled")),
        ({"kind": "resize"}, ("kind",)),
        ({"state": "cancelled"}, ("cancelled",)),
        ({"tag": "app.customer"}, ("tagged", "other")),
        ({"tag": "app.customer=acme"}, ("tagged",)),
        ({"tag": "app.x=1=2"}, ("tagged",)),
        ({"tag": "app.customer="}, ()),
        ({"tag": "app.nothing"}, ()),
        ({"lane": "bulk", "state": "waiting"}, ("lane",)),
        ({"namespace": "tenant", "kind": "resize"}, ()),
        ({"state": "suspended"}, ()),
    ],
    ids=str,
)
async def test_filters_combine(world: World, filters: dict[str, Any], names: tuple[str, ...]) -> None:
    """Only executions that pass every filter given are listed.

    Acceptance: list-filters-combine
    """
    created = await _populate(world)
    assert set(await world.listed(**filters)) == {created[name] for name in names}


async def test_time_bounds_are_from_inclusive_to_exclusive(world: World) -> None:
    """`created_from_ms` is included, `created_before_ms` is not."""
    created: dict[int, str] = {}
    for at_ms in range(world.now_ms, world.now_ms + 5):
        created[at_ms] = await world.create()
        world.clock.advance(1)
    start_ms = min(created)
    found = await world.listed(created_from_ms=start_ms + 1, created_before_ms=start_ms + 3)
    assert found == [created[start_ms + 2], created[start_ms + 1]]


async def test_an_id_can_be_shortened(world: World) -> None:
    """`id_prefix` is the beginning of the uuid, from 2 characters to all of it.

    Acceptance: shortened-ids-are-found
    """
    created = [await world.create() for _ in range(30)]
    wanted = execution_uuid(created[7])
    for length in (2, 8, 9, 20, 36):
        found = await world.listed(id_prefix=wanted[:length])
        assert sorted(found) == sorted(
            item for item in created if execution_uuid(item).startswith(wanted[:length])
        )
    assert await world.listed(id_prefix="0-") == []


async def test_a_tag_set_later_is_found(world: World) -> None:
    """Filters see tags and states as they are now."""
    execution_id = await world.create()
    await world.execution.set_tags(execution_id, tags={"app.customer": "acme"})
    assert await world.listed(tag="app.customer=acme", state="waiting") == [execution_id]
    await world.claim_one()
    assert await world.listed(state="waiting") == []
    assert await world.listed(state="active") == [execution_id]


@pytest.mark.parametrize("limit", [0, -1, limits.PAGE_MAX + 1])
async def test_the_page_is_bounded(world: World, limit: int) -> None:
    """A page has 1 to 1,000 entries."""
    await world.refused(InvalidInput, world.execution.list(limit=limit))
    await world.execution.list(limit=limits.PAGE_MAX)


@pytest.mark.parametrize(
    "fields",
    [
        {"cursor": "no cursor"},
        {"cursor": ""},
        {"cursor": "zzzz"},
        {"cursor": "1" * 512},
        {"cursor": "\u0661"},
        {"lane": "{a}"},
        {"namespace": ""},
        {"kind": "a b"},
        {"id_prefix": "a"},
        {"id_prefix": "xy"},
        {"id_prefix": "A0"},
        {"id_prefix": "a" * 37},
        {"created_from_ms": -1},
        {"created_before_ms": limits.TIMESTAMP_MAX_MS + 1},
    ],
    ids=str,
)
async def test_malformed_filters_are_refused(world: World, fields: dict[str, Any]) -> None:
    """A malformed filter, prefix or cursor is refused, never guessed at.

    Acceptance: bad-cursor-is-refused
    """
    await world.create()
    await world.refused(InvalidInput, world.execution.list(**fields))


async def test_a_malformed_tag_filter_is_refused(world: World) -> None:
    """A filter on a tag key that cannot exist is refused; of two malformed fields the plain one is the answer."""
    await world.refused(InvalidTagKey, world.execution.list(tag="Name=x"))
    await world.refused(InvalidInput, world.execution.list(tag="Name=x", lane="{a}"))
