"""What each process knows of lanes, routes and defaults is a copy, which functions refuse when it is not fresh."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

import flowfabric
from flowfabric.backends.postgres.catalog import Catalog
from flowfabric.contract import limits
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import Kind, Lane, Namespace, WorkerId, WorkerInstance
from flowfabric.contract.lane import LaneList, LaneSetState
from flowfabric.contract.lease import LeaseClaim
from flowfabric.contract.policies import ExecutionPolicy, KindDefaults, RoutingRequirements
from flowfabric.contract.states import LaneState
from flowfabric.contract.worker import WorkerRegister
from tests.backends.postgres.work import opened, store_of
from tests.backends.working import claim, create, until


def claiming(*lanes: str, **fields: Any) -> LeaseClaim:
    """Build a claim on lanes."""
    return LeaseClaim(
        namespace=fields.pop("namespace", Namespace("default")),
        worker_id=WorkerId("w"),
        worker_instance=WorkerInstance("w"),
        lanes=tuple(map(Lane, lanes)),
        **fields,
    )


def needing(*capabilities: str) -> ExecutionPolicy:
    """Build a policy that requires capabilities."""
    return ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=capabilities))


async def described(catalog: Catalog, command: LeaseClaim) -> set[tuple[str, str, tuple[str, ...]]]:
    """Say which routes fit a claim."""
    routes = [catalog.route(route_id) for route_id in await catalog.fitting(command)]
    return {(route.lane, route.kind, route.required) for route in routes if route is not None}


async def test_routes_are_found_by_who_may_take_them(place: str) -> None:
    """A claim is given the routes of its lanes whose kind it takes and whose requirements it meets, and no others."""
    async with opened(place) as (backend,):
        for lane, kind, policy, namespace in (
            ("a", "k", None, "default"),
            ("a", "k", needing("gpu"), "default"),
            ("a", "m", None, "default"),
            ("b", "k", None, "default"),
            ("a", "k", None, "other"),
        ):
            await create(
                backend, lane=Lane(lane), kind=Kind(kind), policy=policy, namespace=Namespace(namespace)
            )
        catalog = Catalog(store_of(backend))
        assert await described(catalog, claiming("a")) == {("a", "k", ()), ("a", "m", ())}
        assert await described(catalog, claiming("a", "b", kinds=(Kind("k"),))) == {
            ("a", "k", ()),
            ("b", "k", ()),
        }
        assert await described(catalog, claiming("a", kinds=(Kind("k"),), capabilities=("gpu", "ssd"))) == {
            ("a", "k", ()),
            ("a", "k", ("gpu",)),
        }
        assert await described(catalog, claiming("c")) == set()
        assert await catalog.fitting(claiming("a")) is await catalog.fitting(claiming("a"))
        await backend.lane.set_state(LaneSetState(lane=Lane("a"), state=LaneState.PAUSED))
        await catalog.refresh()
        assert catalog.lane_state("a") is LaneState.PAUSED
        assert catalog.lane_state("b") is catalog.lane_state("c") is LaneState.ACTIVE


async def test_a_process_that_heard_nothing_yet_claims_new_work(place: str) -> None:
    """A claim that comes right after another process's first use of a route finds its work, every time."""
    async with opened(place, 2) as (mine, other):
        assert await claim(mine) == ()
        for turn in range(20):
            created = await create(other, kind=Kind(f"k{turn}"))
            (lease,) = await claim(mine)
            assert lease.execution_id == created


async def test_a_route_that_was_long_in_coming_is_not_missed(place: str) -> None:
    """A route made by a transaction that commits after a later one's is newer than all that was known before."""
    async with opened(place) as (backend,):
        store = store_of(backend)
        late = await asyncpg.connect(place)
        transaction = late.transaction()
        await transaction.start()
        enqueued = await flowfabric.enqueue(late, "late")
        early = await create(backend, kind=Kind("early"))
        catalog = Catalog(store)
        await catalog.ensure()
        known = catalog.known
        assert await described(catalog, claiming("default")) == {("default", "early", ())}
        await transaction.commit()
        await late.close()
        newest = await store.calls.value("SELECT max(revision) FROM ff.route")
        assert newest > known
        await catalog.refresh()
        assert catalog.known == newest
        assert await described(catalog, claiming("default")) == {
            ("default", "early", ()),
            ("default", "late", ()),
        }
        leases = await claim(backend, max_tasks=2)
        assert {lease.execution_id for lease in leases} == {early, enqueued.id}


async def test_a_route_made_twice_is_one(place: str) -> None:
    """Open transactions that make the same route do not wait for each other; all their work is claimed, in order."""
    async with opened(place) as (backend,):
        connections = [await asyncpg.connect(place) for _ in range(3)]
        transactions = [connection.transaction() for connection in connections]
        created: list[str] = []
        for connection, transaction in zip(connections, transactions, strict=True):
            await transaction.start()
            created.append((await flowfabric.enqueue(connection, "same", lane="new", priority=1)).id)
        created.append(await create(backend, kind=Kind("same"), lane=Lane("new"), priority=2))
        for connection, transaction in zip(connections, transactions, strict=True):
            await transaction.commit()
            await connection.close()
        (lane,) = (await backend.lane.list(LaneList())).lanes
        assert (lane.lane, lane.routes) == ("new", 1)
        leases = await claim(backend, lanes=(Lane("new"),), max_tasks=4)
        assert {lease.execution_id for lease in leases} == set(created)
        assert leases[0].execution_id == created[-1]


async def test_a_bounded_number_of_routes(place: str) -> None:
    """The last route that a lane has room for is made, the next one is not; known ones go on."""
    async with opened(place) as (backend,):
        store = store_of(backend)
        await store.calls.change(
            "INSERT INTO ff.route (namespace, lane, route, kind, required, created_at_ms) "
            "SELECT 'default', 'full', 'k' || n || '|', 'k' || n, '{}', 1 FROM generate_series(2, $1) AS n",
            limits.ROUTES_PER_LANE_MAX,
        )
        await create(backend, kind=Kind("last"), lane=Lane("full"))
        refused = await asyncio.gather(
            *(create(backend, kind=Kind("over"), lane=Lane("full")) for _ in range(3)), return_exceptions=True
        )
        assert {getattr(error, "code", None) for error in refused} == {"route_limit_exceeded"}
        await create(backend, kind=Kind("last"), lane=Lane("full"))
        await create(backend, kind=Kind("last"), lane=Lane("full"), namespace=Namespace("other"))


async def test_a_copy_is_read_again_when_it_is_told_so(place: str) -> None:
    """Without an announcement a copy counts as fresh for a while; one that is announced makes the next use read."""
    async with opened(place, 2) as (mine, other):
        catalog = Catalog(store_of(mine))
        await catalog.ensure()
        await other.worker.register(
            WorkerRegister(
                worker_id=WorkerId("w"),
                worker_instance=WorkerInstance("w"),
                lanes=(Lane("default"),),
                defaults=(KindDefaults(kind=Kind("k"), priority=5),),
            )
        )
        await catalog.ensure()
        assert catalog.defaults("default", "k") is None
        catalog.invalidate()
        await catalog.ensure()
        assert catalog.defaults("default", "k") == KindDefaults(kind=Kind("k"), priority=5)


async def test_announcements_reach_a_process_that_listens(place: str) -> None:
    """A process that has a claim asleep hears of new defaults and routes without asking for them."""
    async with opened(place, 2) as (mine, other):
        waiting = asyncio.create_task(claim(mine, wait_ms=20_000, lanes=(Lane("other"),)))
        await until(lambda: store_of(mine).bells.claims_sleeping == 1)
        await mine._catalog.ensure()
        await other.execution.create(ExecutionCreate(kind=Kind("k"), lane=Lane("other")))
        assert len(await waiting) == 1


async def test_those_who_refresh_together_read_once_or_twice(place: str) -> None:
    """A hundred callers that find the copy stale share the reading, and none is left with what was read before it."""
    async with opened(place) as (backend,):
        catalog = Catalog(store_of(backend))
        await catalog.ensure()
        reads = 0
        read = catalog._read

        async def counted() -> None:
            nonlocal reads
            reads += 1
            await read()

        catalog._read = counted
        await create(backend, kind=Kind("new"))
        await asyncio.gather(*(catalog.refresh() for _ in range(100)))
        assert 1 <= reads <= 2
        assert await described(catalog, claiming("default")) == {("default", "new", ())}
