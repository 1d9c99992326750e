"""Opening a store: read the URL, ask the server what it is, refuse what cannot keep executions, agree on what it is.

Nothing is written before the server has been looked at, and nothing at all when the schema is up to date, so that a
role without any right to change it is enough. What is refused is `gates`' business, what is in a schema `migrate`'s.
"""

from __future__ import annotations

import asyncio
import os
import re
import urllib.parse
from collections.abc import Sequence
from typing import Final

import msgspec

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.migrations import MigrationReport
from flowfabric.backends.postgres import gates, migrate, pool
from flowfabric.backends.postgres.driver import ERRORS, Connection
from flowfabric.backends.postgres.errors import UNREADABLE_URL, refused_at_opening
from flowfabric.backends.postgres.functions import SCHEMA_DEFAULT
from flowfabric.backends.postgres.gates import Server
from flowfabric.backends.postgres.migrate import Layout, Stored
from flowfabric.backends.postgres.pool import SIZE_DEFAULT, SIZE_MAX, Where
from flowfabric.backends.urls import public_url
from flowfabric.contract.errors import Misuse
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability
from flowfabric.telemetry import log

_LOG: Final = log.get_logger("flowfabric.backends.postgres")

POOL_SIZE_VARIABLE: Final = "FF_POSTGRES_POOL_SIZE"
SCHEMA_OPTION: Final = "schema"
POOL_SIZE_OPTION: Final = "pool_size"
POOLER_OPTION: Final = "pooler"
DURABILITY_OPTION: Final = "durability"
LISTENER_OPTION: Final = "listener"
ANSWER_TIMEOUT_S: Final = 10.0
"""How long a server and a schema may take to be looked at."""
_OPTIONS: Final = (SCHEMA_OPTION, POOL_SIZE_OPTION, POOLER_OPTION, DURABILITY_OPTION, LISTENER_OPTION)
_SCHEMES: Final = ("postgresql", "postgres")
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")
PORT_MAX: Final = 65_535
_PORT: Final = re.compile(r":([0-9]+)$")
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(:[0-9]{1,5})?")
_TRANSACTION: Final = "transaction"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a URL asks for."""

    where: Where
    schema: str
    pool_size: int
    durability: Durability | None
    """What acknowledgements must promise at least; None: whatever the server is set to."""
    listener: Where | None
    """How to reach the server itself, to hear what it announces; None: there is only the proxy."""

    @property
    def public_url(self) -> str:
        """The URL for people: no credentials."""
        return self.where.address

    def asking(self, level: Durability | None) -> Target:
        """Return this target with at least that level asked for."""
        return msgspec.structs.replace(self, durability=gates.strongest(self.durability, level))


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was found where a URL points."""

    server: Server
    layout: Layout


def parse(url: str) -> Target:
    """Read a URL: `postgresql://user:password@host:port/database?option=value`.

    Options of this engine: `schema` (ff), `pool_size` (FF_POSTGRES_POOL_SIZE, else 10), `pooler=transaction` behind a
    proxy that pools transactions, `listener=host:port` of the server itself behind such a proxy,
    `durability=memory|fsync|replicated`. Every other one is the driver's (`host` for a socket's folder, `sslmode`,
    ...), or a setting of the server.
    Raises: Misuse.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise Misuse("not a Postgres URL: write postgresql://user:password@host:port/database")
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise Misuse(UNREADABLE_URL) from None
    if parts.fragment:
        raise Misuse("a Postgres URL takes no fragment: write # in a password as %23")
    mine: dict[str, str] = {}
    others: list[tuple[str, str]] = []
    try:
        options = urllib.parse.parse_qsl(
            parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)
        )
    except ValueError:
        raise Misuse("the URL's options cannot be read: write ?name=value&name=value") from None
    for name, value in options:
        if name not in _OPTIONS:
            others.append((name, value))
        elif name in mine:
            raise Misuse(f"the option {name!r} is given twice in the URL")
        else:
            mine[name] = value
    is_pooled = _pooler(mine.get(POOLER_OPTION))
    netloc, _, hosts = parts.netloc.rpartition("@")
    _check_ports(hosts)
    where = Where(
        dsn=urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode(others))),
        address=public_url(url),
        is_pooled=is_pooled,
        # With several hosts the one that takes writes is meant.
        target="primary" if "," in hosts and "target_session_attrs" not in dict(others) else None,
        given=frozenset(name for name, _ in others),
    )
    return Target(
        where=where,
        schema=_schema(mine.get(SCHEMA_OPTION)),
        pool_size=_pool_size(mine.get(POOL_SIZE_OPTION)),
        durability=_durability(mine.get(DURABILITY_OPTION)),
        listener=_listener(mine.get(LISTENER_OPTION), where, parts, netloc, others),
    )


def _check_ports(hosts: str) -> None:
    for host in hosts.split(","):
        port = _PORT.search(host)
        if port is not None and not 1 <= int(port[1]) <= PORT_MAX:
            raise Misuse("a port is a number from 1 to 65535: postgresql://host:5432/database")


def _schema(text: str | None) -> str:
    if text is None:
        return SCHEMA_DEFAULT
    if not _SCHEMA.fullmatch(text) or text.startswith("pg_") or text in ("public", "information_schema"):
        raise Misuse(
            "schema is a name of its own for the store: lower case letters, digits and underscores, at most 48, and "
            "neither public nor one of Postgres's"
        )
    return text


def _pool_size(text: str | None) -> int:
    where, given = (f"the option {POOL_SIZE_OPTION}", text)
    if given is None:
        where, given = POOL_SIZE_VARIABLE, os.environ.get(POOL_SIZE_VARIABLE)
    if given is None or not given.strip():
        return SIZE_DEFAULT
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= SIZE_MAX:
        raise Misuse(f"{where} is a number of connections, 1 to {SIZE_MAX}")
    return int(given)


def _pooler(text: str | None) -> bool:
    if text not in (None, _TRANSACTION):
        raise Misuse("pooler is transaction, or left out")
    return text == _TRANSACTION


def _durability(text: str | None) -> Durability | None:
    if text is None:
        return None
    try:
        return Durability(text)
    except ValueError:
        raise Misuse("durability is memory, fsync or replicated") from None


def _listener(
    text: str | None,
    where: Where,
    parts: urllib.parse.SplitResult,
    credentials: str,
    others: list[tuple[str, str]],
) -> Where | None:
    if text is None:
        return None if where.is_pooled else where
    if not _HOST_PORT.fullmatch(text):
        raise Misuse("listener is host:port of the server itself")
    direct = parts._replace(
        netloc=f"{credentials}@{text}" if credentials else text,
        query=urllib.parse.urlencode(
            [(name, value) for name, value in others if name not in ("host", "port")]
        ),
    )
    address = f"{parts.scheme}://{text}{parts.path}"
    return Where(dsn=urllib.parse.urlunsplit(direct), address=address, is_pooled=False, given=where.given)


async def connect(where: Where, *, application: str = pool.APPLICATION) -> Connection:
    """Open one connection, for setting up. Raises: Misuse, Unavailable."""
    try:
        return await pool.open_connection(where, application=application)
    except (*ERRORS, ValueError) as error:
        refused = refused_at_opening(error, where.address)
        # What cannot be read of a URL may be secret, in a traceback too.
        raise refused from (None if isinstance(error, ValueError) else error)


async def look(connection: Connection, target: Target) -> Server:
    """Ask the server what it is.

    Raises: Misuse when it cannot keep executions, or promises less than was asked.
    """
    row = await connection.fetchrow(gates.QUESTION)
    assert row is not None, "a SELECT without FROM has one row"
    server = gates.server_of(dict(row))
    gates.check_server(target.where.address, server)
    gates.check_durability(target.where.address, server, target.durability)
    if server.is_unbounded:
        _LOG.warning(
            "store_unbounded",
            store=target.public_url,
            message="statements of this role may wait for ever, because the proxy takes no settings: run ALTER ROLE "
            f"... SET statement_timeout = '30s' and SET lock_timeout = '{pool.LOCK_TIMEOUT_MS // 1_000}s'",
        )
    return server


async def _look_around(connection: Connection, target: Target) -> tuple[Server, Stored]:
    """Look at the server and at the schema, which takes a moment or else the server is not there."""
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        return await look(connection, target), await migrate.inspect(connection, target.schema)


async def prepare(target: Target, *, clock: ManualClock | None, partitions: PartitionCounts | None) -> Found:
    """Look at the server and the schema; make the store when this is the first process, or replace its functions.

    Processes that start at once agree.
    Raises: Misuse (not a server that can keep executions, other partition counts, a schema that is newer, older,
        unfinished or another application's), Corrupt, Unavailable.
    """
    manual = clock is not None
    connection = await connect(target.where)
    try:
        server, stored = await _look_around(connection, target)
        found = migrate.plan(stored, target.schema, manual_clock=manual)
        if migrate.check(stored, found, target.schema):
            await migrate.migrate(
                connection,
                target.schema,
                partitions=partitions,
                manual_now_ms=clock.now_ms() if clock is not None else None,
            )
            stored = await migrate.inspect(connection, target.schema)
        layout = stored.layout
        assert layout is not None, "a store that is up to date says what it is"
        gates.check_partitions(layout.partitions, partitions)
        return Found(server=server, layout=layout)
    except ERRORS as error:
        raise refused_at_opening(error, target.where.address) from error
    finally:
        connection.terminate()


async def migrate_store(
    url: str, *, plan_only: bool, partitions: PartitionCounts | None, grant: Sequence[str]
) -> MigrationReport:
    """Bring a store up to date, or say what would be done; then let roles use it.

    Raises: as `prepare`; Misuse when a role is unknown.
    """
    target = parse(url)
    connection = await connect(target.where)
    try:
        _, stored = await _look_around(connection, target)
        found = migrate.plan(stored, target.schema)
        if stored.layout is not None:
            gates.check_partitions(stored.layout.partitions, partitions)
        await migrate.check_roles(connection, grant)
        if not plan_only:
            found = await migrate.migrate(connection, target.schema, partitions=partitions, grant=grant)
    except ERRORS as error:
        raise refused_at_opening(error, target.where.address) from error
    finally:
        connection.terminate()
    return MigrationReport(
        store=target.public_url,
        done=not plan_only,
        is_new=found.is_new,
        steps=tuple(f"{step.number:04} {step.name}" for step in found.steps),
        replaces_functions=found.replaces_functions,
        granted=tuple(grant),
    )
