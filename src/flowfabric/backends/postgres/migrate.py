"""Bring a schema up to date: numbered migrations once each, then the functions whole, in one transaction.

A ledger remembers what was applied with its checksum; an advisory lock keeps two who migrate apart, and the second one
finds nothing left to do. Because everything is one transaction, a schema is never half migrated: one that looks so was
changed by somebody else, and is refused. What must stay true: nothing is created in a schema that holds anything of
another application, because functions that are not known are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import msgspec

from flowfabric.backends import assets, migrations
from flowfabric.backends.migrations import Migration
from flowfabric.backends.postgres import functions
from flowfabric.backends.postgres.driver import ERRORS, Connection
from flowfabric.backends.postgres.errors import is_forbidden
from flowfabric.backends.postgres.functions import PACKAGE, FunctionSet
from flowfabric.contract.errors import Misuse
from flowfabric.contract.ids import PartitionCounts
from flowfabric.version import VERSION

MIGRATIONS: Final = migrations.read(PACKAGE, "sql/migrations")
ADVICE: Final = "run `flowfabric migrate` with a role that owns the schema, then start again"

_SQL: Final = assets.named(PACKAGE, "sql/migrate.sql")


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided when the store was made."""

    store_id: str
    partitions: PartitionCounts
    created_at_ms: int


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What a schema holds."""

    exists: bool
    """There is a schema of this name."""
    is_store: bool
    """It has a ledger."""
    is_used: bool
    """There is something in it."""
    may_create: bool
    """This role may make the schema, or something in it."""
    is_owner: bool
    """This role may replace what is in it."""
    applied: dict[int, str] = {}
    """Checksums of the migrations, by number."""
    content_hash: str | None = None
    """Of the functions; None: none were applied."""
    version: str = ""
    """Of the FlowFabric that applied the functions."""
    layout: Layout | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be done to a schema."""

    is_new: bool
    steps: tuple[Migration, ...]
    replaces_functions: bool

    @property
    def is_empty(self) -> bool:
        """Whether the schema is up to date."""
        return not self.is_new and not self.steps and not self.replaces_functions


@cache
def function_set(*, manual_clock: bool) -> FunctionSet:
    """Return the functions of this version; assembled once."""
    return functions.assemble(manual_clock=manual_clock)


def sql(name: str, schema: str) -> str:
    """Return one of the named statements about the ledger."""
    return functions.in_schema(_SQL[name], schema)


async def inspect(connection: Connection, schema: str) -> Stored:
    """Read what a schema holds; nothing is written."""
    row = await connection.fetchrow(_SQL["read_schema"], schema)
    assert row is not None, "a SELECT without FROM has one row"
    found = Stored(
        exists=row["exists"],
        is_store=row["has_ledger"],
        is_used=row["is_used"],
        may_create=row["may_create"],
        is_owner=row["is_owner"],
    )
    if not found.is_store:
        return found
    ledger = await connection.fetch(sql("read_ledger", schema))
    applied_functions = await connection.fetchrow(sql("read_functions", schema))
    layout = await connection.fetchrow(sql("read_store", schema)) if ledger else None
    return msgspec.structs.replace(
        found,
        applied={row["number"]: row["checksum"] for row in ledger},
        content_hash=applied_functions["content_hash"] if applied_functions else None,
        version=applied_functions["version"] if applied_functions else "",
        layout=Layout(
            store_id=layout["store_id"],
            partitions=PartitionCounts(
                flow=layout["flow_partitions"],
                budget=layout["budget_partitions"],
                quota=layout["quota_partitions"],
            ),
            created_at_ms=layout["created_at_ms"],
        )
        if layout
        else None,
    )


def plan(
    stored: Stored,
    schema: str,
    *,
    manual_clock: bool = False,
    known: Sequence[Migration] = MIGRATIONS,
) -> Plan:
    """Work out what has to be done.

    Raises: Misuse when the schema is another application's, newer, or unfinished; Corrupt when it was migrated by
    files that differ from the ones known here.
    """
    if not stored.is_store:
        if stored.is_used:
            raise Misuse(
                f"schema {schema} holds something that is not FlowFabric's: name another schema (?schema=) or database"
            )
        return Plan(is_new=True, steps=tuple(known), replaces_functions=True)
    steps = migrations.pending(known, stored.applied)
    if _version(stored.version) > _version(VERSION):
        raise Misuse(
            f"the store's functions are those of FlowFabric {stored.version}, this is {VERSION}: upgrade "
            "FlowFabric, or open another store",
            store=stored.version,
            known=VERSION,
        )
    if sorted(stored.applied) != list(range(1, len(stored.applied) + 1)) or stored.layout is None:
        raise Misuse(
            f"schema {schema} is unfinished (its ledger has gaps, or it does not say what it is): restore a backup, or "
            "name another schema (?schema=)"
        )
    accepted = {function_set(manual_clock=manual_clock).content_hash}
    if not manual_clock:
        # A store that a test made keeps the clock that the test moves.
        accepted.add(function_set(manual_clock=True).content_hash)
    return Plan(is_new=False, steps=steps, replaces_functions=stored.content_hash not in accepted)


def check(stored: Stored, found: Plan, schema: str) -> bool:
    """Say whether opening has something to do to the schema, or refuse what opening does not do by itself.

    A new store is made and functions are replaced by whoever may; tables are only ever changed on purpose.
    Raises: Misuse.
    """
    if found.is_empty:
        return False
    if found.is_new:
        if not stored.may_create:
            raise Misuse(
                f"there is no store in schema {schema}, and this role may not make one: {ADVICE}"
                " (it makes the schema, and --grant ROLE lets a role without further rights use it)"
            )
        return True
    if found.steps:
        raise Misuse(
            f"the store was written by an older FlowFabric (schema {len(stored.applied)}, this one needs "
            f"{found.steps[-1].number}): {ADVICE}",
            schema=len(stored.applied),
            known=found.steps[-1].number,
        )
    if not stored.is_owner:
        raise Misuse(
            f"the store's functions are those of another version, and this role may not replace them: {ADVICE}"
        )
    return True


async def migrate(
    connection: Connection,
    schema: str,
    *,
    partitions: PartitionCounts | None = None,
    manual_now_ms: int | None = None,
    grant: Sequence[str] = (),
    known: Sequence[Migration] = MIGRATIONS,
) -> Plan:
    """Bring a schema up to date and return what was done; a schema that is new is made.

    Waits for others who migrate the same schema. `partitions` are fixed when the store is made. With `manual_now_ms`
    the store's clock is one that tests move. `grant` names roles that may use the store from now on; those that may
    already get what is new.
    Raises: as `plan`; Misuse when this role may not.
    """
    manual_clock = manual_now_ms is not None
    try:
        async with connection.transaction():
            for name in ("patience", "lock_patience_none"):
                await connection.execute(_SQL[name])
            await connection.fetch(_SQL["lock"], schema)
            await connection.execute(_SQL["lock_patience"])
            stored = await inspect(connection, schema)
            found = plan(stored, schema, manual_clock=manual_clock, known=known)
            if not stored.exists:
                await connection.execute(f"CREATE SCHEMA {schema}")
            if not found.is_empty:
                # What is new is its owner's, too: functions run with their owner's rights.
                role = await connection.fetchval(_SQL["who_acts"])
                await connection.fetch(_SQL["act_as_owner"], schema)
                await _carry_out(connection, schema, found, partitions, manual_now_ms)
                await connection.fetch(_SQL["act_as"], role)
            roles = [quoted(role) for role in grant]
            if not found.is_empty:
                roles += [row["role"] for row in await connection.fetch(_SQL["users"], schema)]
            for role in dict.fromkeys(roles):
                await functions.let_use(connection, schema, role)
            # Postgres only warns when somebody grants what is not his to grant.
            for row in await connection.fetch(_SQL["not_let_in"], schema, list(grant)):
                raise Misuse(f"this role may not let {row['role']} use the store: {ADVICE}")
            return found
    except ERRORS as error:
        if not is_forbidden(error):
            raise
        raise Misuse(f"this role may not do that ({error}): {ADVICE}") from error


async def check_roles(connection: Connection, roles: Sequence[str]) -> None:
    """Refuse roles that are not there."""
    for row in await connection.fetch(_SQL["unknown_roles"], list(roles)):
        raise Misuse(f"role {quoted(row['role'])} does not exist: make it first (CREATE ROLE)")


async def _carry_out(
    connection: Connection,
    schema: str,
    found: Plan,
    partitions: PartitionCounts | None,
    manual_now_ms: int | None,
) -> None:
    now_ms = manual_now_ms if manual_now_ms is not None else await connection.fetchval(_SQL["now_ms"])
    if found.is_new:
        for name in ("create_ledger", "create_functions"):
            await connection.execute(sql(name, schema))
    for step in found.steps:
        await connection.execute(functions.in_schema(step.text, schema))
        await connection.execute(
            sql("insert_migration", schema), step.number, step.name, step.checksum, now_ms
        )
    if found.is_new:
        counts = partitions or PartitionCounts()
        await connection.execute(
            sql("insert_store", schema), counts.flow, counts.budget, counts.quota, now_ms
        )
    if manual_now_ms is not None:
        await connection.execute(sql("create_manual_clock", schema))
        if not await connection.fetchval(sql("is_manual_clock_set", schema)):
            await connection.execute(sql("insert_manual_clock", schema), manual_now_ms)
    if found.replaces_functions or found.steps:
        known = function_set(manual_clock=manual_now_ms is not None)
        await functions.apply(connection, known, schema)
        await connection.execute(sql("insert_functions", schema), known.content_hash, VERSION, now_ms)


def quoted(name: str) -> str:
    """Return a name as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _version(text: str) -> tuple[int, ...]:
    """Read a version's numbers; whatever follows them does not order versions here."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
