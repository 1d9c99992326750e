"""The functions of the store: read from the package, filled with constants, and applied whole.

Functions are code, so they are replaced, not migrated: applying creates or replaces every function known here and drops
every other one in the schema, inside the caller's transaction. The functions of the concepts are what roles without
further rights call: they run with their owner's rights, a pinned search path, and no sequential scans, since a plan
that is kept from when a table was empty would read all of it when it is full. What must stay true: a function keeps
its grants when it is replaced, and also when its signature changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Final

import msgspec

from flowfabric.backends import assets
from flowfabric.backends.postgres import constants
from flowfabric.backends.postgres.driver import ERRORS, Connection
from flowfabric.backends.postgres.errors import is_other_signature

PACKAGE: Final = "flowfabric.backends.postgres"
FOLDER: Final = "sql/functions"
SHARED: Final = "_core"
"""The folder of functions that only other functions call."""
SCHEMA_DEFAULT: Final = "ff"

_SCHEMA: Final = re.compile(r"\bff\.")
_NEXT: Final = re.compile(r"(?m)^(?=CREATE (?:OR REPLACE )?FUNCTION )")
_HEAD: Final = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION ff\.([a-z_][a-z0-9_]*)\s*\(")
_POLICY: Final = "owner's rights, pinned search path, no scans, nothing compiled"
"""Part of what identifies the functions: change it when what is done to all of them changes."""
_SQL: Final = assets.named(PACKAGE, "sql/functions.sql")

_CLOCK: Final = """\
CREATE FUNCTION ff.now_ms() RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint
$$;
"""
_MANUAL_CLOCK: Final = """\
CREATE FUNCTION ff.now_ms() RETURNS bigint
LANGUAGE sql VOLATILE AS $$
    SELECT now_ms FROM ff.manual_clock
$$;
"""


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """One function, as the statement that creates it in schema `ff`."""

    name: str
    statement: str
    is_public: bool
    """Called from outside the schema: by adapters and applications."""


class FunctionSet(msgspec.Struct, frozen=True, kw_only=True):
    """Every function of the store."""

    functions: tuple[Function, ...]
    content_hash: str
    """SHA-256 of all of them."""


def in_schema(text: str, schema: str) -> str:
    """Return SQL text with its schema's literal name replaced."""
    return text if schema == SCHEMA_DEFAULT else _SCHEMA.sub(f"{schema}.", text)


def statements(path: str, schema: str) -> Mapping[str, str]:
    """Return the named statements of a file of the package (`sql/queries/lane.sql`), fit to be executed."""
    return {
        name: in_schema(constants.fill(statement), schema)
        for name, statement in assets.named(PACKAGE, path).items()
    }


def assemble(*, manual_clock: bool) -> FunctionSet:
    """Read every function; with `manual_clock` the one that tells the time reads a table that tests write."""
    found: list[Function] = []
    found.extend(split(constants.generated(), is_public=False))
    found.extend(split(_MANUAL_CLOCK if manual_clock else _CLOCK, is_public=False))
    for folder, text in _files():
        found.extend(split(text, is_public=folder != SHARED))
    names = [function.name for function in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"functions are there twice: {', '.join(sorted(twice))}")
    digest = hashlib.sha256(_POLICY.encode())
    for function in found:
        digest.update(b"\0" + function.statement.encode())
    return FunctionSet(functions=tuple(found), content_hash=digest.hexdigest())


async def apply(connection: Connection, known: FunctionSet, schema: str) -> None:
    """Create or replace every function and drop what is not known, inside the transaction that is under way.

    A function that is broken is refused here, not when it is first called.
    """
    before = {row["oid"]: row["version"] for row in await connection.fetch(_SQL["list"], schema)}
    grants = await connection.fetch(_SQL["grants"], schema)
    await connection.execute(_SQL["unchecked"])
    if not await _create(connection, "\n".join(in_schema(f.statement, schema) for f in known.functions)):
        for function in known.functions:
            await _replace(connection, function, schema)
    found = await connection.fetch(_SQL["list"], schema)
    unknown = [row["signature"] for row in found if before.get(row["oid"]) == row["version"]]
    await _run(connection, (f"DROP FUNCTION {signature}" for signature in unknown))
    await connection.execute(_SQL["checked"])
    for name in ("validate_plpgsql", "validate_sql"):
        await connection.fetch(_SQL[name], schema)
    public = {function.name for function in known.functions if function.is_public}
    rights: list[str] = []
    for row in await connection.fetch(_SQL["list"], schema):
        signature = row["signature"]
        rights.append(f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC")
        if row["name"] in public:
            rights.append(
                f"ALTER FUNCTION {signature} SECURITY DEFINER "
                "SET search_path TO pg_catalog, pg_temp SET enable_seqscan TO off SET jit TO off"
            )
        rights += [
            f"GRANT EXECUTE ON FUNCTION {signature} TO {grant['role']}"
            for grant in grants
            if grant["name"] == row["name"]
        ]
    await _run(connection, rights)


async def let_use(connection: Connection, schema: str, role: str) -> None:
    """Let a role, given as an identifier in SQL, use a store: call its functions and read its tables, nothing else."""
    await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    for what in ("SELECT ON ALL TABLES", "SELECT ON ALL SEQUENCES", "EXECUTE ON ALL FUNCTIONS"):
        await connection.execute(f"GRANT {what} IN SCHEMA {schema} TO {role}")


async def _create(connection: Connection, script: str) -> bool:
    """Create or replace functions; False, and nothing is done, when one has another signature than before."""
    try:
        async with connection.transaction():
            await connection.execute(script)
    except ERRORS as error:
        if not is_other_signature(error):
            raise
        return False
    return True


async def _replace(connection: Connection, function: Function, schema: str) -> None:
    statement = in_schema(function.statement, schema)
    if not await _create(connection, statement):
        # What it returns, or what a parameter is called, has changed: it can only be made anew.
        for row in await connection.fetch(_SQL["list"], schema):
            if row["name"] == function.name:
                await connection.execute(f"DROP FUNCTION {row['signature']}")
        await connection.execute(statement)


async def _run(connection: Connection, statements: Iterable[str]) -> None:
    script = ";\n".join(statements)
    if script:
        await connection.execute(script)


def _files() -> Iterator[tuple[str, str]]:
    root = resources.files(PACKAGE).joinpath(FOLDER)
    for folder in sorted(entry.name for entry in root.iterdir() if entry.is_dir()):
        for name in assets.names(PACKAGE, f"{FOLDER}/{folder}"):
            if name.endswith(".sql"):
                path = f"{FOLDER}/{folder}/{name}"
                try:
                    yield folder, constants.fill(assets.text(PACKAGE, path))
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error


def split(text: str, *, is_public: bool) -> Iterator[Function]:
    """Split a script at the functions it creates; what comes before the first one is a comment."""
    for part in _NEXT.split(text)[1:]:
        head = _HEAD.match(part)
        if head is None:
            raise ValueError(f"not a function of schema ff: {part.partition('(')[0]!r}")
        statement = part.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1).rstrip()
        yield Function(name=head[1], statement=statement, is_public=is_public and not head[1].startswith("_"))
