"""Claims that are made again, by the same id or by a caller that left: who gets what they leased, on every server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest

import tests.postgres.session
import tests.valkey.session
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.ids import Kind
from flowfabric.contract.lease import Lease
from tests.backends.postgres import work as postgres
from tests.backends.valkey import work as valkey
from tests.backends.working import (
    PATIENCE_S,
    claim,
    claim_id,
    complete,
    create,
    gone,
    served,
    waiting,
)

STORES: Final[dict[str, tuple[Any, Callable[[], Any]]]] = {
    "valkey": (valkey, tests.valkey.session.empty_node),
    "valkey-cluster": (valkey, tests.valkey.session.empty_cluster),
    "postgres": (postgres, tests.postgres.session.empty_node),
}
"""What looks inside of each store's backend, and how to come by it, empty."""


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """What looks inside of a store's backend, and its URL."""
    work, empty = STORES[request.param]
    return work, empty().url


@pytest.fixture
async def pair(store: tuple[Any, str]) -> AsyncIterator[list[Backend]]:
    """The same store in two processes, so to speak."""
    work, url = store
    async with work.opened(url, 2) as backends:
        yield backends
        report = await backends[0].maintenance.fsck()
        assert not report.findings, report.findings


async def in_flight(backend: Any, worker: str, **fields: object) -> asyncio.Task[tuple[Lease, ...]]:
    """Start a claim and return when its looking is under way."""
    task = asyncio.create_task(claim(backend, worker, **fields))
    while not backend.lease._claiming._looking:  # noqa: ASYNC110 (the moment itself is wanted)
        await asyncio.sleep(0)
    return task


async def test_a_claim_repeated_elsewhere_gets_the_same(pair: list[Backend]) -> None:
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


async def test_a_waiting_claim_asked_for_again(store: tuple[Any, str], pair: list[Backend]) -> None:
    """While a claim waits its id may be used again; both end with the same leases."""
    work, _ = store
    one, other = pair
    known = claim_id()
    first, second = waiting(one, claim_id=known), waiting(one, claim_id=known)
    await work.asleep(one, count=2)
    execution_id = await create(other)
    leases = await served(first)
    assert [lease.execution_id for lease in leases] == [execution_id]
    await create(other)
    assert await served(second) == leases


async def test_what_is_leased_to_a_caller_that_left_is_handed_back(pair: list[Backend]) -> None:
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


async def test_a_caller_that_comes_again_gets_its_leases(pair: list[Any]) -> None:
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


async def test_closing_ends_a_claim(store: tuple[Any, str]) -> None:
    """A claim under way when its store is closed ends with its leases or with Unavailable, and nothing hangs."""
    work, url = store
    for turns in range(6):
        async with work.opened(url) as (backend,):
            await create(backend)
            task = asyncio.create_task(claim(backend))
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE_S):
                await backend.close()
                (outcome,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(outcome, (tuple, Unavailable))
