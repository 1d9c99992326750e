"""Claims that are made again, by the same id or by a caller that left: who gets what they leased."""

from __future__ import annotations

import asyncio

from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.execution import (
    ExecutionCreate,
)
from flowfabric.contract.ids import ExecutionId, Kind
from flowfabric.contract.lease import (
    Lease,
)
from tests.backends.postgres.work import (
    PATIENCE_S,
    asleep,
    claim,
    claim_id,
    claiming,
    complete,
    create,
    create_many,
    gone,
    held,
    opened,
    served,
    waiting,
)
from tests.postgres.servers import Node


async def test_a_claim_repeated_elsewhere_gets_the_same(pair: list[PostgresBackend]) -> None:
    """The same claim id in another process gets the leases it has, best first, whatever it asks for then."""
    one, other = pair
    for number in range(20):
        await create(one, priority=number % 3, kind=Kind(f"k{number % 4}"))
    known = claim_id()
    first = await claim(one, max_tasks=5, claim_id=known)
    assert await claim(other, max_tasks=5, claim_id=known) == first
    assert await claim(other, max_tasks=1, kinds=(Kind("none"),), claim_id=known) == first
    await complete(other, first[0])
    assert await claim(one, max_tasks=9, claim_id=known) == first[1:]
    assert len(await claim(one, max_tasks=20)) == 15


async def test_one_claim_made_twice_at_once(pair: list[PostgresBackend]) -> None:
    """Two processes that claim with one id at the same moment get the same leases."""
    one, other = pair
    await create_many(one, [ExecutionCreate(kind=Kind("k")) for _ in range(60)])
    seen: set[ExecutionId] = set()
    for _ in range(20):
        known = claim_id()
        first, second = await asyncio.gather(
            claim(one, max_tasks=2, claim_id=known), claim(other, max_tasks=2, claim_id=known)
        )
        assert first == second and len(first) == 2
        seen.update(lease.execution_id for lease in first)
    assert len(seen) == 40


async def test_a_claim_whose_id_is_in_use_waits_for_the_other(pair: list[PostgresBackend]) -> None:
    """While a claim is not committed, one of the same id in another process has no answer; then it has the same one."""
    one, other = pair
    await create(one)
    known = claim_id()
    assert await claim(one, kinds=(Kind("none"),)) == ()
    (route,) = await one._catalog.fitting(claiming())
    rival = (
        "SELECT count(*) FROM ff.lease_claim(ARRAY['default'], ARRAY[$1], ARRAY[$2::integer], ARRAY['w'], ARRAY['w'],"
        " ARRAY[30000], ARRAY[$3::uuid], ARRAY[1])"
    )
    async with held(one, rival, f"{{{route}}}", one._catalog.known, known):
        task = asyncio.create_task(claim(other, claim_id=known))
        done, _ = await asyncio.wait([task], timeout=0.3)
        assert not done
    (lease,) = await served(task)
    assert await claim(one, claim_id=known) == (lease,)


async def test_a_waiting_claim_asked_for_again(pair: list[PostgresBackend]) -> None:
    """While a claim waits its id may be used again; both end with the same leases."""
    one, other = pair
    known = claim_id()
    first, second = waiting(one, claim_id=known), waiting(one, claim_id=known)
    await asleep(one, count=2)
    execution_id = await create(other)
    leases = await served(first)
    assert [lease.execution_id for lease in leases] == [execution_id]
    await create(other)
    assert await served(second) == leases


async def in_flight(
    backend: PostgresBackend, worker: str, **fields: object
) -> asyncio.Task[tuple[Lease, ...]]:
    """Start a claim and return when its looking is under way."""
    task = asyncio.create_task(claim(backend, worker, **fields))
    while not backend.lease._claiming._looking:  # noqa: ASYNC110 (the moment itself is wanted)
        await asyncio.sleep(0)
    return task


async def test_what_is_leased_to_a_caller_that_left_is_handed_back(pair: list[PostgresBackend]) -> None:
    """A caller that is cancelled while its claim is under way holds no lease a moment later."""
    backend, _ = pair
    for turns in range(12):
        execution_id = await create(backend)
        task = await in_flight(backend, "gone")
        for _ in range(turns):
            await asyncio.sleep(0)
        await gone(task)
        leases = task.result() if not task.cancelled() else await served(waiting(backend, "here"))
        assert [lease.execution_id for lease in leases] == [execution_id]
        await complete(backend, leases[0])


async def test_a_caller_that_comes_again_gets_its_leases(pair: list[PostgresBackend]) -> None:
    """A claim given up and asked for again with its id is answered with what it was granted, which stays leased."""
    backend, _ = pair
    for turns in range(12):
        execution_id = await create(backend)
        known = claim_id()
        task = await in_flight(backend, "w", claim_id=known)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        again = asyncio.create_task(claim(backend, "w", claim_id=known, kinds=(Kind("none"),)))
        (first,) = await asyncio.gather(task, return_exceptions=True)
        found = await again
        leases = found or await claim(backend)
        assert [lease.execution_id for lease in leases] == [execution_id], (turns, first)
        await complete(backend, leases[0])
    assert backend.lease._claiming._open == {}


async def test_closing_ends_a_claim(node: Node) -> None:
    """A claim under way when its store is closed ends with its leases or with Unavailable, and nothing hangs."""
    for turns in range(6):
        async with opened(node.url) as (backend,):
            await create(backend)
            task = asyncio.create_task(claim(backend))
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE_S):
                await backend.close()
                (outcome,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(outcome, (tuple, Unavailable))
