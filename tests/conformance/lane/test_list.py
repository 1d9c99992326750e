"""lane.list: every lane there is, by name."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from tests.conformance.world import World, requiring


async def test_before_first_use_there_are_none(world: World) -> None:
    """A new store has no lanes."""
    page = await world.lane.list()
    assert (page.lanes, page.next_cursor) == ((), None)


@pytest.mark.parametrize("limit", [1, 2, 3, 1_000])
async def test_lanes_come_in_the_order_of_their_names(world: World, limit: int) -> None:
    """Whatever the page size every lane appears once, by name.

    Acceptance: list-lanes-pages-by-name
    """
    for lane in ("c", "a", "B", "b"):
        await world.create(lane=lane)
    found = await world.pages("lane.list", "lanes", limit=limit)
    assert [info.lane for info in found] == ["B", "a", "b", "c"]


async def test_routes_are_counted(world: World) -> None:
    """Each lane shows how many distinct combinations of kind and requirements were used on it, ever."""
    for kind, tokens in (
        ("k", ()),
        ("k", ()),
        ("k", ("a",)),
        ("k", ("b", "a")),
        ("k", ("a", "b")),
        ("m", ()),
    ):
        await world.create(kind=kind, policy=requiring(*tokens) if tokens else None)
    assert (await world.lane_info("default")).routes == 4
    await world.claim(max_tasks=10)
    assert (await world.lane_info("default")).routes == 4


async def test_namespaces_share_lanes(world: World) -> None:
    """A lane is one lane for all namespaces."""
    await world.create(namespace="a")
    await world.create(namespace="b")
    assert len((await world.lane.list()).lanes) == 1


@pytest.mark.parametrize(
    "fields", [{"limit": 0}, {"limit": limits.PAGE_MAX + 1}, {"cursor": "a b"}, {"cursor": ""}], ids=str
)
async def test_malformed_arguments_are_refused(world: World, fields: dict[str, Any]) -> None:
    """Bounds are kept and malformed names refused."""
    await world.refused(InvalidInput, world.lane.list(**fields))
