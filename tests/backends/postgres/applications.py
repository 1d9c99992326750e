"""Applications with an open transaction in their own database, whatever they talk to it with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import psycopg
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import flowfabric


class Application:
    """An application's open transaction, whatever it talks to its database with."""

    def __init__(self, connection: Any, execute: Callable[..., Any], end: Callable[[bool], Any]) -> None:
        self.connection = connection
        self._execute = execute
        self._end = end

    @property
    def is_async(self) -> bool:
        raw = self.connection
        kinds = (
            asyncpg.Connection,
            asyncpg.pool.PoolConnectionProxy,
            psycopg.AsyncConnection,
            AsyncConnection,
        )
        return isinstance(raw, (*kinds, AsyncSession, async_scoped_session))

    async def buy(self, purchase: int) -> None:
        """Make the application's own change."""
        await _settled(self._execute(f"INSERT INTO purchase VALUES ({purchase})"))

    async def enqueue(self, *given: Any, **options: Any) -> flowfabric.Enqueued:
        """Enqueue in the transaction."""
        if self.is_async:
            return await flowfabric.enqueue(self.connection, *given, **options)
        return flowfabric.enqueue_sync(self.connection, *given, **options)

    async def enqueue_many(self, *given: Any, **options: Any) -> list[flowfabric.Enqueued]:
        """Enqueue several in the transaction."""
        if self.is_async:
            return await flowfabric.enqueue_many(self.connection, *given, **options)
        return flowfabric.enqueue_many_sync(self.connection, *given, **options)

    async def commit(self) -> None:
        """Commit."""
        await _settled(self._end(True))

    async def rollback(self) -> None:
        """Roll back."""
        await _settled(self._end(False))


async def _settled(found: Any) -> Any:
    return await found if asyncio.iscoroutine(found) or isinstance(found, asyncio.Future) else found


@asynccontextmanager
async def with_asyncpg(url: str) -> AsyncIterator[Application]:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield Application(
            connection,
            connection.execute,
            lambda commits: transaction.commit() if commits else transaction.rollback(),
        )
    finally:
        await connection.close()


@asynccontextmanager
async def with_asyncpg_pool(url: str) -> AsyncIterator[Application]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield Application(
            connection,
            connection.execute,
            lambda commits: transaction.commit() if commits else transaction.rollback(),
        )


@asynccontextmanager
async def with_psycopg(url: str) -> AsyncIterator[Application]:
    with psycopg.Connection[Any].connect(url, row_factory=dict_row) as connection:
        yield Application(
            connection,
            connection.execute,
            lambda commits: connection.commit() if commits else connection.rollback(),
        )


@asynccontextmanager
async def with_psycopg_async(url: str) -> AsyncIterator[Application]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield Application(
            connection,
            connection.execute,
            lambda commits: connection.commit() if commits else connection.rollback(),
        )


def dialect(url: str, driver: str) -> str:
    return url.replace("postgresql:", f"postgresql+{driver}:", 1)


def _sqlalchemy(connection: Any) -> Application:
    return Application(
        connection,
        lambda statement: connection.execute(sqlalchemy.text(statement)),
        lambda commits: connection.commit() if commits else connection.rollback(),
    )


@asynccontextmanager
async def with_sqlalchemy_connection(url: str) -> AsyncIterator[Application]:
    engine = sqlalchemy.create_engine(dialect(url, "psycopg"))
    with engine.connect() as connection:
        yield _sqlalchemy(connection)
    engine.dispose()


@asynccontextmanager
async def with_sqlalchemy_session(url: str) -> AsyncIterator[Application]:
    engine = sqlalchemy.create_engine(dialect(url, "psycopg"))
    with Session(engine) as session:
        yield _sqlalchemy(session)
    engine.dispose()


@asynccontextmanager
async def with_sqlalchemy_scoped_session(url: str) -> AsyncIterator[Application]:
    engine = sqlalchemy.create_engine(dialect(url, "psycopg"))
    sessions = scoped_session(sessionmaker(engine))
    yield _sqlalchemy(sessions)
    sessions.remove()
    engine.dispose()


@asynccontextmanager
async def with_sqlalchemy_async_connection(url: str) -> AsyncIterator[Application]:
    engine = create_async_engine(dialect(url, "asyncpg"))
    async with engine.connect() as connection:
        yield _sqlalchemy(connection)
    await engine.dispose()


@asynccontextmanager
async def with_sqlalchemy_async_session(url: str) -> AsyncIterator[Application]:
    engine = create_async_engine(dialect(url, "asyncpg"))
    async with AsyncSession(engine) as session:
        yield _sqlalchemy(session)
    await engine.dispose()


@asynccontextmanager
async def with_sqlalchemy_async_psycopg(url: str) -> AsyncIterator[Application]:
    engine = create_async_engine(dialect(url, "psycopg"))
    async with AsyncSession(engine) as session:
        yield _sqlalchemy(session)
    await engine.dispose()


WAYS: Final = (
    with_asyncpg,
    with_asyncpg_pool,
    with_psycopg,
    with_psycopg_async,
    with_sqlalchemy_connection,
    with_sqlalchemy_session,
    with_sqlalchemy_scoped_session,
    with_sqlalchemy_async_connection,
    with_sqlalchemy_async_session,
    with_sqlalchemy_async_psycopg,
)
