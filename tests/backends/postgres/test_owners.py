"""A store that somebody else than its owner brings up to date: everything in it stays its owner's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowfabric import backends
from flowfabric.backends.postgres import migrate, opening
from flowfabric.contract.errors import Misuse
from flowfabric.contract.ids import PartitionCounts
from tests.backends.postgres.test_migrations import LATER
from tests.backends.postgres.work import opened
from tests.backends.working import claim, complete, create
from tests.postgres.session import own_database, shared_node

WHOLE = PartitionCounts()
OWNERS = (
    "SELECT DISTINCT r.rolname FROM pg_roles r JOIN ("
    "SELECT relowner AS owner FROM pg_class WHERE relnamespace = 'mine'::regnamespace UNION "
    "SELECT proowner FROM pg_proc WHERE pronamespace = 'mine'::regnamespace) x ON x.owner = r.oid"
)


@pytest.fixture
def database() -> Iterator[tuple[str, str]]:
    """A database, as its administrator and as a role with a schema of its own in it."""
    node = shared_node()
    with own_database() as url:
        name = url.rpartition("/")[2]
        node.call("CREATE ROLE keeper LOGIN PASSWORD 'keeper'")
        try:
            node.call("CREATE SCHEMA mine AUTHORIZATION keeper", database=name)
            yield f"{url}?schema=mine", f"postgresql://keeper:keeper@{url.partition('@')[2]}?schema=mine"
        finally:
            node.call("DROP OWNED BY keeper CASCADE", database=name)
            node.call("DROP ROLE keeper")


async def test_an_administrator_migrates_it(database: tuple[str, str]) -> None:
    """New tables and functions belong to the store's owner, whoever migrates, so that its functions can use them."""
    as_administrator, as_keeper = database
    node, name = shared_node(), as_keeper.rpartition("/")[2].partition("?")[0]
    async with opened(as_keeper, partitions=WHOLE):
        assert node.call(OWNERS, database=name) == [("keeper",)]
    # As if the version before this one had not had them.
    node.call("DROP FUNCTION mine._work_bucket(text, text)", database=name)
    node.call("DROP FUNCTION mine._happened", database=name)
    node.call("UPDATE mine.function_set SET content_hash = 'old'", database=name)
    async with opened(as_administrator, partitions=WHOLE) as (backend,):
        await create(backend)
        (lease,) = await claim(backend)
        await complete(backend, lease)
    assert node.call(OWNERS, database=name) == [("keeper",)]
    connection = await opening.connect(opening.parse(as_administrator).where)
    try:
        await migrate.migrate(connection, "mine", known=LATER)
        assert await connection.fetchval("SELECT current_user") == "postgres"
    finally:
        await connection.close()
    assert node.call(OWNERS, database=name) == [("keeper",)]


async def test_an_administrator_grants(database: tuple[str, str]) -> None:
    """Roles that may use the store may also use what an administrator's migration brings."""
    as_administrator, as_keeper = database
    node, name = shared_node(), as_keeper.rpartition("/")[2].partition("?")[0]
    await backends.migrate(as_keeper)
    node.call("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    try:
        await backends.migrate(as_administrator, grant=["guest"])
        node.call("DROP FUNCTION mine.lane_set_state", database=name)
        node.call("UPDATE mine.function_set SET content_hash = 'old'", database=name)
        await backends.migrate(as_administrator)
        async with opened(as_keeper.replace("keeper:keeper", "guest:guest"), partitions=WHOLE) as (backend,):
            await create(backend)
            (lease,) = await claim(backend)
            await complete(backend, lease)
    finally:
        node.call("DROP OWNED BY guest", database=name)
        node.call("DROP ROLE guest")


async def test_a_guest_cannot_let_others_in(database: tuple[str, str]) -> None:
    """A role that may use the store and nothing else is told that it may not grant; Postgres itself only warns."""
    _, as_keeper = database
    node, name = shared_node(), as_keeper.rpartition("/")[2].partition("?")[0]
    await backends.migrate(as_keeper)
    node.call("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    node.call("CREATE ROLE friend")
    try:
        await backends.migrate(as_keeper, grant=["guest"])
        with pytest.raises(Misuse, match="may not let friend use the store"):
            await backends.migrate(as_keeper.replace("keeper:keeper", "guest:guest"), grant=["friend"])
        assert node.call("SELECT has_schema_privilege('friend', 'mine', 'USAGE')", database=name) == [
            (False,)
        ]
        await backends.migrate(as_keeper, grant=["friend"])
        assert node.call("SELECT has_schema_privilege('friend', 'mine', 'USAGE')", database=name) == [(True,)]
    finally:
        node.call("DROP OWNED BY guest, friend", database=name)
        node.call("DROP ROLE guest, friend")


@pytest.mark.parametrize("option", ["nonsense=1", "work_mem=much"])
async def test_settings_that_the_server_does_not_take(database: tuple[str, str], option: str) -> None:
    """An option of the URL that neither we nor the driver nor the server know is called what it is."""
    with pytest.raises(Misuse, match="the URL cannot be used"):
        await backends.connect(f"{database[0]}&{option}")
