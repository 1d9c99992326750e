"""Operations of several statements: what is told when a later one fails and the first ones were carried out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from flowfabric.backends.postgres import pool, worker
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.backends.postgres.pool import Link
from flowfabric.contract.errors import OutcomeUnknown, ResourceExhausted
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import LeaseClaimGranted, LeaseGrant, LeaseGranted
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy, TimeoutPolicy
from flowfabric.contract.worker import WorkerMarkDead
from flowfabric.engine import timers
from flowfabric.engine.timers import FailureTracker
from tests.backends.postgres.work import opened, store_of
from tests.backends.working import claim, create
from tests.postgres.servers import Node

BIG = Payload(b'"' + b"x" * 100_000 + b'"')


@pytest.fixture
async def store(node: Node, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PostgresBackend]:
    """A store with one connection, which nobody waits for long."""
    monkeypatch.setattr(pool, "PATIENCE_S", 0.05)
    async with opened(f"{node.url}?pool_size=1") as (backend,):
        yield backend


class Robbed:
    """Somebody else takes the only connection before a call of a method, counted from 1, and keeps it."""

    def __init__(
        self, store: PostgresBackend, method: str, monkeypatch: pytest.MonkeyPatch, *, nth: int
    ) -> None:
        self._pool = store_of(store).pool
        self._calls = 0
        self._nth = nth
        self._link: Link | None = None
        self._method: Callable[..., Awaitable[Any]] = getattr(store_of(store).calls, method)
        monkeypatch.setattr(store_of(store).calls, method, self._call)

    async def _call(self, *given: Any, **options: Any) -> Any:
        self._calls += 1
        if self._calls == self._nth:
            self._link = await self._pool.acquire(asyncio.get_running_loop().time() + 5)
        return await self._method(*given, **options)

    def give_back(self) -> None:
        assert self._link is not None, "it was not called so often"
        self._pool.release(self._link)


async def test_a_batch_of_which_a_part_was_created(store: PostgresBackend, node: Node) -> None:
    """When one part of a batch found no connection and another was created, the outcome is unknown, not a refusal."""
    await create(store)
    line = await asyncpg.connect(node.url)
    try:
        writing = line.transaction()
        await writing.start()
        await line.execute("LOCK TABLE ff.definition IN EXCLUSIVE MODE")
        items = tuple(ExecutionCreate(kind=Kind("k")) for _ in range(256))
        task = asyncio.create_task(store.execution.create_many(ExecutionCreateMany(executions=items)))
        # The second part has given up when the first one goes on.
        await asyncio.sleep(0.3)  # sleeps: several times as long as is waited for a connection
        await writing.commit()
        with pytest.raises(OutcomeUnknown, match="part of the batch"):
            await task
        assert await line.fetchval("SELECT count(*) FROM ff.execution") == 129
    finally:
        await line.close()


async def test_a_batch_of_which_nothing_was_created(store: PostgresBackend, node: Node) -> None:
    """A batch that found no connection at all is refused as exhausted: nothing was created."""
    await create(store)
    lent = await store_of(store).pool.acquire(asyncio.get_running_loop().time() + 5)
    items = tuple(ExecutionCreate(kind=Kind("k")) for _ in range(256))
    with pytest.raises(ResourceExhausted):
        await store.execution.create_many(ExecutionCreateMany(executions=items))
    store_of(store).pool.release(lent)
    assert node.one("SELECT count(*) FROM ff.execution") == 1


async def test_a_grant_that_finds_no_connection(
    store: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choosing work to grant says that the store is exhausted, and not that there is no work."""
    await create(store)
    robbed = Robbed(store, "call", monkeypatch, nth=1)
    command = LeaseGrant(
        worker_id=WorkerId("w"),
        worker_instance=WorkerInstance("w"),
        grant_ttl_ms=5_000,
        lanes=(Lane("default"),),
    )
    with pytest.raises(ResourceExhausted):
        await store.lease.grant(command)
    robbed.give_back()
    assert isinstance(await store.lease.grant(command), LeaseGranted)


async def test_a_lease_whose_input_could_not_be_read(
    store: PostgresBackend, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that leased and then could not read an input is in doubt: something was changed."""
    await create(store, input=BIG)
    await claim(store, kinds=(Kind("none"),))
    robbed = Robbed(store, "rows", monkeypatch, nth=1)
    with pytest.raises(OutcomeUnknown):
        await claim(store)
    robbed.give_back()
    assert node.one("SELECT count(*) FROM ff.execution WHERE lease_id IS NOT NULL") == 1


async def test_a_grant_that_was_used_and_not_answered(
    store: PostgresBackend, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Using a grant is in doubt when the definition could not be read: the lease was given."""
    execution_id = await create(store)
    who = {"worker_id": WorkerId("w"), "worker_instance": WorkerInstance("w")}
    await store.lease.grant(LeaseGrant(**who, grant_ttl_ms=5_000, execution_id=execution_id))
    robbed = Robbed(store, "row", monkeypatch, nth=1)
    with pytest.raises(OutcomeUnknown):
        await store.lease.claim_granted(
            LeaseClaimGranted(**who, execution_id=execution_id, lease_ttl_ms=30_000)
        )
    robbed.give_back()
    assert node.one("SELECT count(*) FROM ff.execution WHERE lease_id IS NOT NULL") == 1


async def test_a_worker_of_which_a_part_is_dead(
    store: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When no connection is found after the worker has left the registry, the outcome is unknown."""
    for _ in range(2):
        await create(store)
    assert len(await claim(store, max_tasks=2)) == 2
    monkeypatch.setattr(worker, "_DEAD_BATCH", 1)
    robbed = Robbed(store, "call", monkeypatch, nth=2)
    with pytest.raises(OutcomeUnknown):
        await store.worker.mark_dead(WorkerMarkDead(worker_instance=WorkerInstance("w"), reason="r"))
    robbed.give_back()


async def test_a_timer_that_finds_no_connection(store: PostgresBackend) -> None:
    """A timer that finds no connection has failed for now; it is not taken for one that somebody else served."""
    await create(store, policy=ExecutionPolicy(timeout_policy=TimeoutPolicy(execution_deadline_ms=1)))
    tracker = FailureTracker()
    async with asyncio.timeout(5):
        while not (due := (await store.timers.read_due(10)).due):
            await store.timers.wait_change(None, 0.01)
    lent = await store_of(store).pool.acquire(asyncio.get_running_loop().time() + 5)
    assert not await timers._serve(store, due[0], tracker)
    store_of(store).pool.release(lent)
    assert await timers._serve(store, due[0], tracker)
    assert not (await store.timers.read_due(10)).due
