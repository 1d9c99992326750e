"""Transactional enqueue at its edges: nothing to enqueue, and connections that are set up unusually."""

from __future__ import annotations

import asyncpg
import psycopg
import pytest

import flowfabric
from flowfabric import Misuse
from tests.backends import working
from tests.backends.postgres import work


async def test_nothing_to_enqueue(place: str) -> None:
    """No sets of arguments are no executions, on every kind of connection."""
    async with work.opened(place) as (_,):
        connection = await asyncpg.connect(place)
        async with connection.transaction():
            assert await flowfabric.enqueue_many(connection, "k", []) == []
        await connection.close()
        with psycopg.connect(place) as line:
            assert flowfabric.enqueue_many_sync(line, "k", []) == []


async def test_cursors_with_other_marks(place: str) -> None:
    """A connection whose cursors mark parameters in Postgres's own way is as good as any other."""
    async with work.opened(place) as (backend,):
        for factory in (psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor):
            with psycopg.connect(place, cursor_factory=factory) as line:
                flowfabric.enqueue_sync(line, "k", a=1)
        for factory in (psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor):
            async with await psycopg.AsyncConnection.connect(place, cursor_factory=factory) as line:
                await flowfabric.enqueue(line, "k", a=1)
        assert len(await working.claim(backend, max_tasks=10)) == 6


async def test_savepoints_and_failed_transactions(place: str) -> None:
    """What is enqueued after a savepoint goes with it; a transaction that has failed says so itself."""
    async with work.opened(place) as (backend,):
        connection = await asyncpg.connect(place)
        async with connection.transaction():
            kept = await flowfabric.enqueue(connection, "k", idempotency_key="kept")
            with pytest.raises(LookupError):
                async with connection.transaction():
                    await flowfabric.enqueue(connection, "other", idempotency_key="dropped")
                    raise LookupError
            again = await flowfabric.enqueue(connection, "other", idempotency_key="dropped")
            assert not again.duplicate
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            async with connection.transaction():
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await connection.execute("SELECT 1 / 0")
                await flowfabric.enqueue(connection, "k")
        with pytest.raises(Misuse, match="no transaction"):
            await flowfabric.enqueue(connection, "k")
        await connection.close()
        leases = await working.claim(backend, max_tasks=10)
        assert {lease.execution_id for lease in leases} == {kept.id, again.id}
