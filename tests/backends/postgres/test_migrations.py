"""Migrating a schema: once each, never two at a time, never half, and the functions with it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowfabric import backends
from flowfabric.backends import assets
from flowfabric.backends.migrations import Migration
from flowfabric.backends.postgres import functions, migrate, opening
from flowfabric.backends.postgres.driver import Connection
from flowfabric.backends.postgres.functions import FunctionSet
from flowfabric.contract.errors import Corrupt, Misuse
from flowfabric.contract.ids import PartitionCounts
from tests.backends.postgres.catalogs import catalog_of, functions_of
from tests.postgres.servers import Node
from tests.postgres.session import own_database, shared_node

NEXT_TEXT = "ALTER TABLE ff.lane ADD COLUMN note text;\nCREATE TABLE ff.later (id integer PRIMARY KEY);\n"
NEXT = Migration(
    number=len(migrate.MIGRATIONS) + 1,
    name="later",
    checksum=hashlib.sha256(NEXT_TEXT.encode()).hexdigest(),
    text=NEXT_TEXT,
)
LATER = (*migrate.MIGRATIONS, NEXT)


class Database:
    """A database of one's own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = url.rpartition("/")[2]
        self.node: Node = shared_node()

    def call(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self.node.call(statement, *values, database=self.name)

    async def connect(self) -> Connection:
        return await opening.connect(opening.parse(self.url).where)

    async def migrate(self, known: Sequence[Migration] = migrate.MIGRATIONS) -> migrate.Plan:
        connection = await self.connect()
        try:
            return await migrate.migrate(connection, "ff", known=known)
        finally:
            await connection.close()

    async def apply(self, known: FunctionSet) -> None:
        connection = await self.connect()
        try:
            async with connection.transaction():
                await functions.apply(connection, known, "ff")
        finally:
            await connection.close()

    async def open(self) -> None:
        await (await backends.connect(self.url)).close()


@pytest.fixture
def database() -> Iterator[Database]:
    with own_database() as url:
        yield Database(url)


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Database]:
    await database.open()
    yield database


# Tables -----------------------------------------------------------------------------------------------------------


async def test_migrations_make_the_schema_that_is_written_down(store: Database) -> None:
    """What all migrations make of an empty database is exactly what `schema.sql` shows."""
    with own_database() as url:
        written = Database(url)
        written.call(assets.text(migrate.functions.PACKAGE, "sql/schema.sql"))
        assert catalog_of(store.node, store.name) == catalog_of(written.node, written.name)


async def test_a_new_store_is_planned_then_made(database: Database) -> None:
    """A plan changes nothing; carrying it out says what was done; then there is nothing left."""
    plan = await backends.migrate(database.url, plan_only=True)
    assert (plan.is_new, plan.done, plan.replaces_functions) == (True, False, True)
    assert plan.steps[0] == "0001 initial"
    assert database.call("SELECT to_regnamespace('ff')") == [(None,)]
    done = await backends.migrate(database.url, partitions=PartitionCounts(flow=4))
    assert (done.is_new, done.done, done.steps) == (True, True, plan.steps)
    again = await backends.migrate(database.url)
    assert (again.is_new, again.steps, again.replaces_functions) == (False, (), False)
    backend = await backends.connect(database.url)
    assert (await backend.capabilities()).partitions.flow == 4
    await backend.close()
    with pytest.raises(Misuse, match="partitions"):
        await backends.migrate(database.url, partitions=PartitionCounts(flow=5))


async def test_an_older_schema_waits_for_migrate(store: Database) -> None:
    """A store with migrations to come is refused with advice; migrating applies just those, once."""
    connection = await store.connect()
    stored = await migrate.inspect(connection, "ff")
    plan = migrate.plan(stored, "ff", known=LATER)
    assert [step.name for step in plan.steps] == ["later"]
    with pytest.raises(Misuse, match="flowfabric migrate"):
        migrate.check(stored, plan, "ff")
    await connection.close()
    done = await store.migrate(LATER)
    assert [step.name for step in done.steps] == ["later"]
    assert not done.is_new
    assert (await store.migrate(LATER)).is_empty
    assert store.call("SELECT number, name FROM ff.migration ORDER BY number") == [
        *((step.number, step.name) for step in LATER)
    ]


async def test_two_who_migrate_at_once(database: Database) -> None:
    """Of several who migrate at once one does each step, the others find it done."""
    done = await asyncio.gather(*(database.migrate(LATER) for _ in range(4)))
    assert sorted(plan.is_new for plan in done) == [False, False, False, True]
    done = await asyncio.gather(*(database.migrate(LATER) for _ in range(3)))
    assert all(plan.is_empty for plan in done)


async def test_a_newer_schema_is_refused(store: Database) -> None:
    """A store that a newer version migrated is refused by this one, and left as it is."""
    await store.migrate(LATER)
    for attempt in (store.open(), store.migrate()):
        with pytest.raises(Misuse, match="newer FlowFabric") as refused:
            await attempt
        assert refused.value.details == {"schema": len(LATER), "known": len(migrate.MIGRATIONS)}


async def test_a_migration_that_fails_leaves_nothing(store: Database) -> None:
    """When a step fails, neither it nor those before it are there, and the store still opens."""
    before = catalog_of(store.node, store.name)
    broken = Migration(
        number=NEXT.number + 1, name="broken", checksum="x", text="CREATE TABLE ff.lane (id int);"
    )
    with pytest.raises(Exception, match="already exists"):
        await store.migrate((*LATER, broken))
    assert catalog_of(store.node, store.name) == before
    await store.open()


async def test_a_changed_migration_is_refused(store: Database) -> None:
    """A file that differs from what was applied is Corrupt."""
    store.call("UPDATE ff.migration SET checksum = 'other' WHERE number = 1")
    for attempt in (store.open(), store.migrate()):
        with pytest.raises(Corrupt, match="migration 1"):
            await attempt


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM ff.store", "INSERT INTO ff.migration VALUES (0, 'x', 'x', 0)", "DELETE FROM ff.migration"],
)
async def test_an_unfinished_schema_is_refused(store: Database, damage: str) -> None:
    """A schema that somebody left half there is refused by servers and by `migrate`."""
    store.call(damage)
    for attempt in (store.open(), store.migrate()):
        with pytest.raises(Misuse, match="unfinished"):
            await attempt


# Functions --------------------------------------------------------------------------------------------------------


async def test_functions_are_replaced_when_a_store_is_opened(store: Database) -> None:
    """Functions of an older version are replaced by whoever opens the store and may."""
    store.call("UPDATE ff.function_set SET content_hash = 'old', version = '0.0.1'")
    known = functions_of(store.node, store.name)
    store.call("DROP FUNCTION ff.phase(smallint)")
    store.call("CREATE FUNCTION ff.gone() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    await store.open()
    assert functions_of(store.node, store.name) == known
    assert store.call("SELECT content_hash = 'old' FROM ff.function_set") == [(False,)]


async def test_functions_are_not_replaced_by_who_may_not(store: Database) -> None:
    """A role without the right is told to have it done, and uses functions that are up to date."""
    await backends.migrate(store.url)
    store.call("CREATE ROLE reader LOGIN PASSWORD 'reader'")
    try:
        await backends.migrate(store.url, grant=["reader"])
        url = f"postgresql://reader:reader@{store.url.partition('@')[2]}"
        await (await backends.connect(url)).close()
        store.call("UPDATE ff.function_set SET content_hash = 'old'")
        with pytest.raises(Misuse, match="flowfabric migrate"):
            await backends.connect(url)
        await backends.migrate(store.url)
        await (await backends.connect(url)).close()
    finally:
        store.call("DROP OWNED BY reader")
        store.call("DROP ROLE reader")


async def test_functions_of_a_newer_version_are_refused(store: Database) -> None:
    """With the same tables a newer version's functions are refused too: they may take other arguments."""
    store.call("UPDATE ff.function_set SET content_hash = 'new', version = '99.0.0'")
    with pytest.raises(Misuse, match=r"99\.0\.0"):
        await store.open()


def with_function(statement: str, *, replacing: str = "") -> FunctionSet:
    """Return the functions known here and one more."""
    known = functions.assemble(manual_clock=False)
    kept = tuple(function for function in known.functions if function.name != replacing)
    extra = tuple(functions.split(statement, is_public=True))
    return FunctionSet(functions=(*kept, *extra), content_hash="x")


ONE = "CREATE FUNCTION ff.extra(p_one integer) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$;"
TWO = "CREATE FUNCTION ff.extra(p_one integer, OUT two text) LANGUAGE plpgsql AS $$ BEGIN two := 'b'; END $$;"
THREE = "CREATE FUNCTION ff.extra(p_one text) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN RETURN 3; END $$;"


async def test_a_function_whose_signature_changed(store: Database) -> None:
    """Whatever changes about a function there is one of it afterwards, and who could call it still can."""
    store.call("CREATE ROLE caller")
    try:
        await store.apply(with_function(ONE))
        store.call("GRANT EXECUTE ON FUNCTION ff.extra(integer) TO caller")
        for statement, signature in (
            (TWO, "ff.extra(integer)"),
            (THREE, "ff.extra(text)"),
            (ONE, "ff.extra(integer)"),
        ):
            await store.apply(with_function(statement))
            found = [name for name in functions_of(store.node, store.name) if "extra" in name]
            assert found == [signature]
            assert store.call("SELECT has_function_privilege('caller', %s, 'EXECUTE')", signature) == [
                (True,)
            ]
        await store.apply(functions.assemble(manual_clock=False))
        assert not [name for name in functions_of(store.node, store.name) if "extra" in name]
    finally:
        store.call("DROP OWNED BY caller")
        store.call("DROP ROLE caller")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE FUNCTION ff.extra() RETURNS int LANGUAGE plpgsql AS $$ BEGIN GIVE 1; END $$;",
        "CREATE FUNCTION ff.extra() RETURNS int LANGUAGE sql AS $$ SELECT nothing FROM ff.nowhere $$;",
    ],
)
async def test_a_broken_function_is_refused(store: Database, statement: str) -> None:
    """A function that cannot run is found when it is applied, and nothing is replaced."""
    before = functions_of(store.node, store.name)
    with pytest.raises(Exception, match=r"GIVE|nowhere"):
        await store.apply(with_function(statement))
    assert functions_of(store.node, store.name) == before


async def test_who_runs_as_whom(store: Database) -> None:
    """What roles call runs with its owner's rights and a pinned search path; what is inlined has neither."""
    rows = store.call(
        "SELECT p.proname, l.lanname = 'sql', prosecdef, coalesce(proconfig::text, '') FROM pg_proc AS p "
        "JOIN pg_language AS l ON l.oid = p.prolang WHERE pronamespace = 'ff'::regnamespace"
    )
    known = {function.name: function for function in functions.assemble(manual_clock=False).functions}
    assert {name for name, *_ in rows} == set(known)
    for name, is_sql, is_definer, config in rows:
        assert is_definer == ("search_path" in config)
        if known[name].is_public:
            assert is_definer, name
        elif is_sql:
            assert not is_definer, name
    assert known["execution_create"].is_public
    assert not known["phase"].is_public and not known["now_ms"].is_public


def test_functions_are_the_same_for_everybody() -> None:
    """What identifies the functions depends on their text and on whose clock they read, on nothing else."""
    one, two = functions.assemble(manual_clock=False), functions.assemble(manual_clock=False)
    assert one.content_hash == two.content_hash
    assert functions.assemble(manual_clock=True).content_hash != one.content_hash


# The command ------------------------------------------------------------------------------------------------------


def flowfabric(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowfabric", *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command(database: Database) -> None:
    """`flowfabric migrate` plans, does, and says when there is nothing to do."""
    plan = flowfabric("migrate", "--plan", "--store", database.url)
    assert plan.returncode == 0, plan.stderr
    assert "would be applied: 0001 initial" in plan.stdout
    assert database.call("SELECT to_regnamespace('ff')") == [(None,)]
    done = flowfabric("migrate", "--store", database.url, "--flow-partitions", "4", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["done"] and report["is_new"] and report["steps"][0] == "0001 initial"
    assert database.url.split("@")[1].partition("?")[0] in report["store"]
    assert "postgres:" not in report["store"].partition("//")[2]
    again = flowfabric("migrate", "--store", database.url)
    assert "is up to date" in again.stdout
    for plan_only in ((), ("--plan",)):
        refused = flowfabric("migrate", "--store", database.url, "--grant", "no_such_role", *plan_only)
        assert refused.returncode == 2
        assert "CREATE ROLE" in refused.stderr


def test_the_command_on_other_stores(tmp_path: Path) -> None:
    """A SQLite store is made or brought up to date by opening it; it has no roles."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    refused = flowfabric("migrate", "--plan", "--store", url)
    assert refused.returncode == 2
    done = flowfabric("migrate", "--store", url)
    assert done.returncode == 0 and "whenever it is opened" in done.stdout
    assert (tmp_path / "a.db").exists()
    refused = flowfabric("migrate", "--store", url, "--grant", "somebody")
    assert refused.returncode == 2 and "roles" in refused.stderr
