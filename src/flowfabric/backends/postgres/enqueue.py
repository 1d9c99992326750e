"""Creating executions inside an application's own transaction, on its own connection.

Two statements: one asks what a create depends on, one creates. What to send and what the answers mean is written once,
as a generator; how a statement is executed is all that differs between asyncpg, psycopg and SQLAlchemy, blocking or
not. What must stay true: nothing here begins, commits or rolls back; a refusal comes before anything is written and
leaves the transaction as it was; and parameters are plain text, numbers and bytes with their types said in the
statement, whatever codecs and row factories the application has set.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from flowfabric.backends import reply
from flowfabric.backends.inside import Outcome
from flowfabric.backends.postgres import shapes
from flowfabric.backends.postgres.shapes import Prepared, Published
from flowfabric.contract import limits
from flowfabric.contract.errors import Misuse, Refused, Unavailable
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import ExecutionId, PartitionCounts

SCHEMA_DEFAULT: Final = "ff"
STALE: Final = "stale_catalog"
_NO_STORE: Final = frozenset({"3F000", "42883", "42P01"})
_NO_RIGHTS: Final = "42501"
_ALONE: Final = "no transaction is under way, so that this would be committed by itself"
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_TRIES: Final = 8
_OUTLINE: Final = (
    "SELECT flow_partitions, now_ms, kind, defaults "
    "FROM {schema}.enqueue_outline(CAST({} AS text), CAST({} AS text[]))"
)
_CREATE: Final = (
    "SELECT at, code, message, details, status, execution_id, public_state, created_at_ms "
    "FROM {schema}.enqueue_create("
    + ", ".join(f"CAST({{}} AS {'text' if kind == 'uuid' else kind}[])" for kind in shapes.TYPES)
    + ")"
)

Value = TypeVar("Value")
Rows = Sequence[Sequence[Any]]
Statement = tuple[str, tuple[Any, ...]]
"""Text with `{}` where a parameter goes and `{schema}` where the schema goes, and the parameters."""
Steps = Generator[Statement, Rows, Value]


# What is said ---------------------------------------------------------------------------------------------------------


def now() -> Steps[int]:
    """Ask for the store's time."""
    rows = yield _OUTLINE, ("", [""])
    return int(_first(rows)[1])


def create_many(commands: Sequence[ExecutionCreate]) -> Steps[list[Outcome]]:
    """Create executions, each with its own outcome."""
    outcomes: list[Outcome] = []
    for chunk in shapes.chunks(commands):
        outcomes += yield from _create_chunk(chunk)
    return outcomes


def _create_chunk(commands: Sequence[ExecutionCreate]) -> Steps[list[Outcome]]:
    minted: dict[int, ExecutionId] = {}
    for _ in range(_TRIES):
        counts, published = yield from _outline(commands)
        outcomes: dict[int, Outcome] = {}
        sent: list[tuple[int, Prepared]] = []
        for at, command in enumerate(commands):
            try:
                command.check()
                prepared = shapes.prepare(
                    command,
                    published.get((command.namespace, command.kind)),
                    counts,
                    limits.RETENTION_DEFAULT_MS,
                    minted.get(at),
                )
            except Refused as refused:
                outcomes[at] = refused
            else:
                minted[at] = prepared.definition.execution_id
                sent.append((at, prepared))
        if sent:
            rows = yield _CREATE, tuple(shapes.columns_of([prepared for _, prepared in sent]))
            if any(row[1] == STALE for row in rows):
                # A worker has published others since the first statement.
                continue
            for position, code, message, details, *answer in rows:
                at, prepared = sent[int(position) - 1]
                outcomes[at] = (
                    shapes.answer_of(prepared, *answer) if code is None else _refusal(code, message, details)
                )
        return [outcomes[at] for at in range(len(commands))]
    raise Unavailable(shapes.UNSETTLED)


def _outline(
    commands: Sequence[ExecutionCreate],
) -> Steps[tuple[PartitionCounts, dict[tuple[str, str], Published]]]:
    """Ask what the creates depend on."""
    published: dict[tuple[str, str], Published] = {}
    counts: PartitionCounts | None = None
    for namespace in sorted({command.namespace for command in commands}):
        kinds = sorted({command.kind for command in commands if command.namespace == namespace})
        rows = yield _OUTLINE, (namespace, list(kinds))
        counts = PartitionCounts(flow=int(_first(rows)[0]))
        for _, _, kind, stored in rows:
            if stored is not None:
                published[namespace, kind] = shapes.published_of(bytes(stored))
    assert counts is not None, "there is a command"
    return counts, published


def _first(rows: Rows) -> Sequence[Any]:
    if not rows:
        raise Misuse("this schema holds no store: run `flowfabric migrate` on this database")
    return rows[0]


def _refusal(code: str, message: str | None, details: str | None) -> Outcome:
    found: dict[str, Any] = msgspec.json.decode(details) if details else {}
    return reply.refusal(code, message, [part for pair in found.items() for part in pair])


# How it is said -------------------------------------------------------------------------------------------------------


class Blocking(msgspec.Struct, frozen=True):
    """A connection that blocks: how parameters are marked in a statement, and how it is executed."""

    mark: str
    execute: Callable[[str, Sequence[Any]], Rows]


class Awaited(msgspec.Struct, frozen=True):
    """A connection that is awaited."""

    mark: str
    execute: Callable[[str, Sequence[Any]], Awaitable[Rows]]


class Inside:
    """A transaction of an application's, on one connection."""

    def __init__(self, way: Blocking | Awaited, schema: str) -> None:
        self._way = way
        self._schema = schema

    @property
    def is_async(self) -> bool:
        """Whether the connection is awaited."""
        return isinstance(self._way, Awaited)

    async def now_ms(self) -> int:
        """Return the store's time."""
        return await self._go(now())

    async def create_many(self, commands: Sequence[ExecutionCreate]) -> list[Outcome]:
        """Create executions that exist once the transaction is committed; refusals are values."""
        return await self._go(create_many(commands))

    def now_ms_sync(self) -> int:
        """Return the store's time, on a connection that blocks."""
        return self._go_sync(now())

    def create_many_sync(self, commands: Sequence[ExecutionCreate]) -> list[Outcome]:
        """As `create_many`, on a connection that blocks."""
        return self._go_sync(create_many(commands))

    async def _go(self, steps: Steps[Value]) -> Value:
        way = self._way
        if not isinstance(way, Awaited):
            raise Misuse("this connection blocks: use flowfabric.enqueue_sync")
        try:
            statement, parameters = next(steps)
            while True:
                rows = await way.execute(self._text(statement, way.mark), parameters)
                statement, parameters = steps.send(rows)
        except StopIteration as stopped:
            return stopped.value
        except Exception as error:
            explained = self._explained(error)
            if explained is None:
                raise
            raise explained from error

    def _go_sync(self, steps: Steps[Value]) -> Value:
        way = self._way
        if isinstance(way, Awaited):
            raise Misuse("this connection is awaited: use `await flowfabric.enqueue(...)`")
        try:
            statement, parameters = next(steps)
            while True:
                rows = way.execute(self._text(statement, way.mark), parameters)
                statement, parameters = steps.send(rows)
        except StopIteration as stopped:
            return stopped.value
        except Exception as error:
            explained = self._explained(error)
            if explained is None:
                raise
            raise explained from error

    def _text(self, template: str, mark: str) -> str:
        places = (mark.format(at) for at in range(1, template.count("{}") + 1))
        return template.format(*places, schema=self._schema)

    def _explained(self, error: Exception) -> Misuse | None:
        """Return what is raised for an error of the driver's instead, if there is more to say."""
        driver = getattr(error, "orig", error)
        # psycopg 2, below SQLAlchemy, has another name for it.
        state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
        schema = self._schema
        if state in _NO_STORE:
            return Misuse(
                f"there is no FlowFabric in schema {schema} of this database, or another version: "
                "run `flowfabric migrate`"
            )
        if state == _NO_RIGHTS:
            return Misuse(
                f"the database role may not enqueue: GRANT USAGE ON SCHEMA {schema} and EXECUTE ON FUNCTION "
                f"{schema}.enqueue_outline, {schema}.enqueue_create TO it"
            )
        return None


def inside(connection: Any, schema: str = SCHEMA_DEFAULT) -> Inside:
    """Return a transaction of an application's, by its connection or session.

    asyncpg connections (also of a pool); psycopg 3 connections, blocking or not; SQLAlchemy connections and sessions,
    blocking or not, on whatever driver for Postgres. Raises: Misuse for anything else, for a connection that would
    commit by itself, and for a schema's name that FlowFabric does not make.
    """
    if _SCHEMA.fullmatch(schema) is None:
        raise Misuse(f"{schema!r} is not the name of a schema that FlowFabric makes")
    for module, find in (("asyncpg", _asyncpg), ("psycopg", _psycopg), ("sqlalchemy", _sqlalchemy)):
        # Whoever has such a connection has imported its driver.
        if module in sys.modules and (way := find(connection)) is not None:
            return Inside(way, schema)
    raise Misuse(
        f"cannot enqueue on a {type(connection).__module__}.{type(connection).__qualname__}: give an asyncpg, psycopg "
        "or SQLAlchemy connection or session"
    )


def _asyncpg(connection: Any) -> Awaited | None:
    driver: Any = sys.modules["asyncpg"]
    if not isinstance(connection, (driver.Connection, driver.pool.PoolConnectionProxy)):
        return None
    if not connection.is_in_transaction():
        raise Misuse(f"{_ALONE}: use `async with connection.transaction():`")
    return Awaited("${}", lambda statement, parameters: connection.fetch(statement, *parameters))


def _psycopg(connection: Any) -> Blocking | Awaited | None:
    driver: Any = sys.modules["psycopg"]
    is_async = isinstance(connection, driver.AsyncConnection)
    if not is_async and not isinstance(connection, driver.Connection):
        return None
    if connection.autocommit and connection.info.transaction_status is driver.pq.TransactionStatus.IDLE:
        raise Misuse(f"{_ALONE}: use `with connection.transaction():`, or no autocommit")

    def execute(statement: str, parameters: Sequence[Any]) -> Rows:
        with connection.cursor(row_factory=driver.rows.tuple_row) as cursor:
            return cursor.execute(statement, parameters).fetchall()

    async def execute_async(statement: str, parameters: Sequence[Any]) -> Rows:
        async with connection.cursor(row_factory=driver.rows.tuple_row) as cursor:
            await cursor.execute(statement, parameters)
            return await cursor.fetchall()

    numbered = tuple(
        getattr(driver, name) for name in ("RawCursor", "AsyncRawCursor") if hasattr(driver, name)
    )
    mark = "${}" if numbered and issubclass(connection.cursor_factory, numbered) else "%s"
    return Awaited(mark, execute_async) if is_async else Blocking(mark, execute)


def _sqlalchemy(connection: Any) -> Blocking | Awaited | None:
    library: Any = sys.modules["sqlalchemy"]
    orm: Any = sys.modules.get("sqlalchemy.orm")
    aio: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    scoped = (getattr(orm, "scoped_session", None), getattr(aio, "async_scoped_session", None))
    is_scoped = isinstance(connection, tuple(kind for kind in scoped if kind is not None))
    raw = connection() if is_scoped else connection

    def execute(statement: str, parameters: Sequence[Any]) -> Rows:
        return raw.execute(library.text(statement), _named(parameters)).all()

    async def execute_async(statement: str, parameters: Sequence[Any]) -> Rows:
        connection = await raw.connection() if isinstance(raw, aio.AsyncSession) else raw
        _check(connection.sync_connection)
        return (await connection.execute(library.text(statement), _named(parameters))).all()

    if isinstance(raw, library.Connection):
        _check(raw)
        return Blocking(":p{}", execute)
    if orm is not None and isinstance(raw, orm.Session):
        _check(raw.connection())
        return Blocking(":p{}", execute)
    if aio is not None and isinstance(raw, (aio.AsyncConnection, aio.AsyncSession)):
        return Awaited(":p{}", execute_async)
    return None


def _named(parameters: Sequence[Any]) -> dict[str, Any]:
    return {f"p{at}": value for at, value in enumerate(parameters, 1)}


def _check(connection: Any) -> None:
    if connection is None:
        raise Misuse("the connection has not been started: use `async with engine.begin() as connection:`")
    if connection.dialect.name != "postgresql":
        raise Misuse(
            f"the connection is to {connection.dialect.name}: the store must be in the same Postgres database"
        )
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise Misuse(f"{_ALONE}: the connection is in AUTOCOMMIT mode")
