"""What each process knows of lanes, routes and defaults is a copy here, so it has to be kept right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.catalog import Catalog
from flowfabric.backends.valkey.lane import ValkeyLanes
from flowfabric.backends.valkey.store import Store
from flowfabric.backends.valkey.worker import ValkeyWorkers
from flowfabric.contract import limits
from flowfabric.contract.creating import route_of
from flowfabric.contract.errors import RouteLimitExceeded
from flowfabric.contract.execution import ExecutionDefinition
from flowfabric.contract.ids import ExecutionId, Kind, Lane, Namespace, WorkerId, WorkerInstance
from flowfabric.contract.lane import LaneInfo, LaneSetState
from flowfabric.contract.lease import LeaseClaim
from flowfabric.contract.policies import KindDefaults
from flowfabric.contract.states import LaneState
from flowfabric.contract.worker import WorkerRegister
from tests.backends.valkey.conftest import Opens
from tests.backends.valkey.wire.servers import Server


def definition(
    lane: str = "lane", kind: str = "k", *capabilities: str, namespace: str = "n"
) -> ExecutionDefinition:
    """Build as much of a definition as a route is made of."""
    return ExecutionDefinition(
        execution_id=ExecutionId("{fp:0}:00000000-0000-4000-8000-000000000000"),
        namespace=Namespace(namespace),
        lane=Lane(lane),
        kind=Kind(kind),
        route=route_of(kind, capabilities),
        required_capabilities=capabilities,
        digest="",
        created_at_ms=0,
    )


def claim(*lanes: str, **fields: Any) -> LeaseClaim:
    """Build a claim on lanes."""
    return LeaseClaim(
        namespace=Namespace("n"),
        worker_id=WorkerId("w"),
        worker_instance=WorkerInstance("w"),
        lanes=tuple(map(Lane, lanes)),
        **fields,
    )


def lanes_of(store: Store) -> ValkeyLanes:
    """The lane operations of a store without hints."""

    async def resumed(lane: str) -> None:
        del lane

    return ValkeyLanes(store.calls, store.partitions, store.catalog, resumed)


async def until(store: Store, holds: Callable[[], bool]) -> None:
    """Wait until the catalog has heard what makes this true."""
    changed = asyncio.Event()
    stop = store.catalog.subscribe(changed.set)
    try:
        async with asyncio.timeout(5):
            while not holds():
                await changed.wait()
                changed.clear()
    finally:
        stop()


async def fresh(store: Store) -> Catalog:
    """A catalog that was just read."""
    catalog = Catalog(store.calls, store.layout.store_id)
    await catalog.load()
    return catalog


def described(catalog: Catalog) -> tuple[list[LaneInfo], set[str]]:
    """What two catalogs must agree on."""
    return catalog.lanes(), {route.rid for route in catalog.all_routes()}


async def test_routes_are_found_by_who_may_take_them(place: str, opens: Opens) -> None:
    """A claim is given the routes of its lanes whose kind it takes and whose requirements it meets, and no others."""
    store = await opens(place)
    for route in (
        definition("a", "k"),
        definition("a", "k", "gpu"),
        definition("a", "m"),
        definition("b", "k"),
        definition("a", "k", namespace="other"),
    ):
        await store.catalog.register(route)

    def found(command: LeaseClaim) -> set[tuple[str, str, frozenset[str]]]:
        return {(route.lane, route.kind, route.required) for route in store.catalog.fitting(command)}

    plain: frozenset[str] = frozenset()
    assert found(claim("a")) == {("a", "k", plain), ("a", "m", plain)}
    assert found(claim("a", "b", kinds=(Kind("k"),))) == {("a", "k", plain), ("b", "k", plain)}
    assert found(claim("a", kinds=(Kind("k"),), capabilities=("gpu", "ssd"))) == {
        ("a", "k", plain),
        ("a", "k", frozenset({"gpu"})),
    }
    assert found(claim("c")) == set()
    assert store.catalog.fitting(claim("a")) is store.catalog.fitting(claim("a"))


async def test_a_lane_that_gives_nothing_out_has_no_routes(place: str, opens: Opens) -> None:
    """Routes of a paused lane are not offered to claims, and are again when it is resumed."""
    store = await opens(place)
    await store.catalog.register(definition())
    for state, offered in ((LaneState.PAUSED, 0), (LaneState.DRAINING, 1), (LaneState.DISABLED, 0)):
        await lanes_of(store).set_state(LaneSetState(lane=Lane("lane"), state=state))
        assert len(store.catalog.fitting(claim("lane"))) == offered


async def test_other_processes_hear_of_changes(place: str, opens: Opens) -> None:
    """What one process registers, sets or publishes the others know without reading."""
    one, other = await opens(place), await opens(place)
    await one.catalog.register(definition("a", "k", "gpu"))
    await until(other, lambda: bool(other.catalog.fitting(claim("a", capabilities=("gpu",)))))
    await lanes_of(one).set_state(LaneSetState(lane=Lane("a"), state=LaneState.PAUSED))
    await until(other, lambda: other.catalog.lane_state("a") is LaneState.PAUSED)
    workers = ValkeyWorkers(one.calls, one.partitions, one.catalog)
    await workers.register(
        WorkerRegister(
            worker_id=WorkerId("w"),
            worker_instance=WorkerInstance("i"),
            namespace=Namespace("n"),
            lanes=(Lane("a"),),
            defaults=(KindDefaults(kind=Kind("k"), priority=7),),
        )
    )
    await one.catalog.register(definition("z"))
    await until(other, lambda: bool(other.catalog.fitting(claim("z"))))
    for store in (one, other):
        found = store.catalog.defaults("n", "k")
        assert found is not None and found.priority == 7
    assert described(one.catalog) == described(other.catalog) == described(await fresh(one))
    assert not await other.catalog.catch_up()


async def test_missed_messages_are_caught_up_with(single: Server, opens: Opens) -> None:
    """A process that heard nothing for a while notices by the number of changes, and reads what it missed."""
    deaf, other = await opens(single.url), await opens(single.url)
    deaf.client.subscriber().remove(keys.CATALOG_CHANNEL.encode(), deaf._catalog_changed)  # pyright: ignore[reportPrivateUsage]
    await other.catalog.register(definition("a"))
    assert not deaf.catalog.fitting(claim("a"))
    assert await deaf.catalog.catch_up()
    assert deaf.catalog.fitting(claim("a"))
    assert not await deaf.catalog.catch_up()


async def test_a_lost_connection_is_caught_up_after(single: Server, opens: Opens) -> None:
    """When the subscription breaks, changes made meanwhile are known soon after it is back."""
    store, other = await opens(single.url), await opens(single.url)
    single.call("CLIENT", "KILL", "TYPE", "pubsub")
    await other.catalog.register(definition("a"))
    await until(store, lambda: bool(store.catalog.fitting(claim("a"))))


async def test_messages_in_any_order_are_understood(single: Server, opens: Opens) -> None:
    """Two processes that register at once end up with the same picture, and nothing is read again."""
    one, other = await opens(single.url), await opens(single.url)
    await asyncio.gather(
        *(store.catalog.register(definition("a", f"k{n}")) for n in range(50) for store in (one, other))
    )
    for store in (one, other):
        await until(store, lambda store=store: store.catalog.version == 50)
    assert described(one.catalog) == described(other.catalog) == described(await fresh(one))


async def test_routes_are_bounded(place: str, opens: Opens) -> None:
    """A lane has at most 1,000 combinations of kind and requirements, in all namespaces together."""
    store = await opens(place)
    await asyncio.gather(
        *(store.catalog.register(definition("a", f"k{n}")) for n in range(limits.ROUTES_PER_LANE_MAX))
    )
    unaware = Catalog(store.calls, store.layout.store_id)
    for catalog in (store.catalog, unaware):
        await catalog.register(definition("a", "k0", namespace="other"))
        with pytest.raises(RouteLimitExceeded):
            await catalog.register(definition("a", "k0", "gpu"))
    await store.catalog.register(definition("b", "k0", "gpu"))
    counted = {lane.lane: lane.routes for lane in (await fresh(store)).lanes()}
    assert counted == {"a": limits.ROUTES_PER_LANE_MAX, "b": 1}


async def test_what_a_failover_lost_is_registered_again(single: Server, opens: Opens) -> None:
    """When the store has forgotten its latest changes, a process that knows of them makes the routes known again."""
    store = await opens(single.url)
    await store.catalog.register(definition("a"))
    before = single.call("DUMP", keys.META), single.call("DUMP", keys.LANES)
    await store.catalog.register(definition("b"))
    for key, stored in zip((keys.META, keys.LANES), before, strict=True):
        single.call("RESTORE", key, 0, stored, "REPLACE")
    single.call("DEL", keys.routes("b"))
    assert await store.catalog.catch_up()
    assert described(store.catalog) == described(await fresh(store))
    assert {lane.lane for lane in store.catalog.lanes()} == {"a", "b"}


async def test_a_cancelled_caller_stops_nobody(single: Server, opens: Opens) -> None:
    """Callers that register one route share the call; when one gives up the others are served."""
    store = await opens(single.url)
    given_up, *others = [asyncio.create_task(store.catalog.register(definition())) for _ in range(10)]
    await asyncio.sleep(0)
    given_up.cancel()
    assert len(set(await asyncio.gather(*others))) == 1
    assert single.call("HGET", keys.META, "catalog") == b"1"


async def test_defaults_are_told_when_they_change(single: Server, opens: Opens, clock: ManualClock) -> None:
    """Registering again with the same defaults changes nothing that others would have to hear of."""
    store = await opens(single.url, clock=clock)
    workers = ValkeyWorkers(store.calls, store.partitions, store.catalog)
    for priority, version in ((1, 1), (1, 1), (2, 2)):
        await workers.register(
            WorkerRegister(
                worker_id=WorkerId("w"),
                worker_instance=WorkerInstance("i"),
                lanes=(Lane("a"),),
                defaults=(KindDefaults(kind=Kind("k"), priority=priority),),
            )
        )
        assert int(single.call("HGET", keys.META, "catalog")) == version
        found = store.catalog.defaults("default", "k")
        assert found is not None and found.priority == priority
