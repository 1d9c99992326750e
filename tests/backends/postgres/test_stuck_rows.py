"""A row that somebody holds for long: whoever needs it waits in vain, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.execution import (
    ExecutionComplete,
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ItemRefused,
)
from flowfabric.contract.ids import Kind, execution_uuid
from flowfabric.contract.lease import LeaseRenew
from flowfabric.contract.payloads import Payload
from tests.backends.postgres.work import opened
from tests.backends.working import claim, create
from tests.postgres.servers import Node

COUNT = 12


@pytest.fixture
async def store(node: Node) -> AsyncIterator[PostgresBackend]:
    """A store whose server waits for rows a moment only."""
    async with opened(f"{node.url}?lock_timeout=300ms") as (backend,):
        yield backend


@asynccontextmanager
async def holding(node: Node, statement: str, *values: object) -> AsyncIterator[None]:
    """Hold what a statement locks, on a connection of somebody else's."""
    line = await asyncpg.connect(node.url)
    try:
        async with line.transaction():
            await line.execute(statement, *values)
            yield
    finally:
        await line.close()


def is_certain(error: object) -> bool:
    """Say whether an error promises that nothing was executed."""
    return type(error) is Unavailable and "nothing was executed" in error.message


@pytest.mark.parametrize("what", ["complete", "renew"])
async def test_one_of_many_leases(store: PostgresBackend, node: Node, what: str) -> None:
    """Of calls that share a statement only the one whose execution is held fails, certainly unexecuted."""
    for _ in range(COUNT):
        await create(store)
    leases = await claim(store, max_tasks=COUNT)
    assert len(leases) == COUNT
    uuid = execution_uuid(leases[3].execution_id)
    async with holding(node, "SELECT FROM ff.execution WHERE id = $1 FOR UPDATE", uuid):
        if what == "complete":
            calls = [
                store.execution.complete(
                    ExecutionComplete(
                        execution_id=lease.execution_id, fence=lease.fence, result=Payload(b"1")
                    )
                )
                for lease in leases
            ]
        else:
            calls = [
                store.lease.renew(LeaseRenew(execution_id=lease.execution_id, fence=lease.fence))
                for lease in leases
            ]
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert [at for at, outcome in enumerate(found) if isinstance(outcome, BaseException)] == [3]
    assert is_certain(found[3])


async def test_a_key_that_an_open_transaction_takes(store: PostgresBackend, node: Node) -> None:
    """Creates do not suffer from one whose idempotency key an open transaction has taken, alone or in a batch."""
    await create(store)
    taking = (
        "INSERT INTO ff.idempotency (namespace, key, partition, id, digest, expires_at_ms) "
        "VALUES ('default', 'taken', 0, gen_random_uuid(), '', 1)"
    )
    async with holding(node, taking):
        found = await asyncio.gather(
            *(create(store, idempotency_key="taken" if at == 5 else f"key {at}") for at in range(COUNT)),
            return_exceptions=True,
        )
        assert [at for at, outcome in enumerate(found) if isinstance(outcome, BaseException)] == [5]
        assert is_certain(found[5])
        items = tuple(
            ExecutionCreate(kind=Kind("k"), idempotency_key="taken" if at == 5 else f"other {at}")
            for at in range(COUNT)
        )
        done = await store.execution.create_many(ExecutionCreateMany(executions=items))
    refused = [(at, r.code) for at, r in enumerate(done.results) if isinstance(r, ItemRefused)]
    assert refused == [(5, "unavailable")]
    assert all(isinstance(result, ExecutionCreated) for at, result in enumerate(done.results) if at != 5)
    assert node.one("SELECT count(*) FROM ff.execution") == 1 + 2 * (COUNT - 1)
