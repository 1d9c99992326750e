"""Opening a store in Postgres: its URL, who may make one, and what two who open it at once agree on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres import opening, pool
from flowfabric.contract.errors import Misuse, Unavailable
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability, PublicState
from tests.backends.postgres.catalogs import functions_of
from tests.conformance.world import World
from tests.postgres.servers import Node
from tests.postgres.session import own_database, shared_node


def over(backend: Any) -> World:
    """Return what uses a store on the server's own clock."""
    return World(backend, ManualClock())


BASE = "postgresql://u:p@h:5433/d"


# URLs -------------------------------------------------------------------------------------------------------------


def test_url_with_nothing_special() -> None:
    """Without options a store is in schema ff, with ten connections, straight to the server."""
    target = opening.parse(BASE)
    assert (target.schema, target.pool_size, target.durability) == ("ff", pool.SIZE_DEFAULT, None)
    assert target.where.dsn == BASE
    assert target.listener == target.where
    assert target.public_url == "postgresql://h:5433/d"


def test_url_options() -> None:
    """The engine's own options are taken out; the driver gets the others."""
    target = opening.parse(
        "postgres://u:p@h/d?schema=mine&pool_size=3&sslmode=require&durability=fsync&pooler=transaction"
        "&listener=db:5432&application_name=x"
    )
    assert (target.schema, target.pool_size, target.durability) == ("mine", 3, Durability.FSYNC)
    assert target.where.is_pooled
    assert target.where.dsn == "postgres://u:p@h/d?sslmode=require&application_name=x"
    assert target.listener is not None
    assert target.listener.dsn == "postgres://u:p@db:5432/d?sslmode=require&application_name=x"
    assert not target.listener.is_pooled
    assert opening.parse(f"{BASE}?pooler=transaction").listener is None
    assert target.asking(Durability.REPLICATED).durability is Durability.REPLICATED
    assert target.asking(Durability.MEMORY).durability is Durability.FSYNC


def test_several_hosts_mean_the_primary() -> None:
    """With several hosts the one that takes writes is meant, unless the URL says otherwise."""
    assert opening.parse("postgresql://a:1,b:2/d").where.target == "primary"
    assert opening.parse("postgresql://a:1,b:2/d?target_session_attrs=any").where.target is None
    assert opening.parse(BASE).where.target is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:/d",
        "mysql://h/d",
        f"{BASE}#x",
        f"{BASE}?schema=public",
        f"{BASE}?schema=pg_x",
        f"{BASE}?schema=information_schema",
        f"{BASE}?schema=Up",
        f"{BASE}?schema=a;b",
        f"{BASE}?schema=",
        f"{BASE}?schema={'x' * 49}",
        f"{BASE}?schema=a&schema=b",
        "postgresql://h:99999/d",
        "postgresql://h:0/d",
        "postgresql://u:p@one:5432,two:65536/d",
        f"{BASE}?pool_size=0",
        f"{BASE}?pool_size=1001",
        f"{BASE}?pool_size=-1",
        f"{BASE}?pool_size=ten",
        f"{BASE}?pooler=session",
        f"{BASE}?durability=much",
        f"{BASE}?listener=",
        f"{BASE}?listener=a/b",
        f"{BASE}?listener=u@h",
        f"{BASE}?novalue",
    ],
)
def test_urls_that_make_no_sense(url: str) -> None:
    """A URL that cannot be what was meant is refused, and nothing of it is quoted that may be a password."""
    with pytest.raises(Misuse) as refused:
        opening.parse(url)
    assert "u:p@" not in refused.value.message


def test_pool_size_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """FF_POSTGRES_POOL_SIZE counts where the URL says nothing."""
    monkeypatch.setenv(opening.POOL_SIZE_VARIABLE, "7")
    assert opening.parse(BASE).pool_size == 7
    assert opening.parse(f"{BASE}?pool_size=2").pool_size == 2
    monkeypatch.setenv(opening.POOL_SIZE_VARIABLE, "many")
    with pytest.raises(Misuse, match=opening.POOL_SIZE_VARIABLE):
        opening.parse(BASE)


# Reaching the server ----------------------------------------------------------------------------------------------


async def test_nobody_there() -> None:
    """A server that cannot be reached is Unavailable; one that refuses the user, or has no such database, is Misuse."""
    node = shared_node()
    with pytest.raises(Unavailable) as unavailable:
        await backends.connect("postgresql://u:secret@127.0.0.1:1/d")
    assert not isinstance(unavailable.value, Misuse)
    assert "secret" not in unavailable.value.message
    with pytest.raises(Misuse, match="createdb"):
        await backends.connect(node.url_of("nowhere"))
    wrong = node.url.replace(node.url.split(":")[2].split("@")[0], "wrong")
    with pytest.raises(Misuse, match="refuses this user") as refused:
        await backends.connect(wrong)
    assert "wrong" not in refused.value.message
    with pytest.raises(Misuse):
        await backends.connect(f"{node.url}?sslmode=nonsense")
    with pytest.raises(Misuse):
        await backends.connect(f"{node.url}?target_session_attrs=nonsense")


# Making a store ---------------------------------------------------------------------------------------------------


async def test_first_use_makes_a_store() -> None:
    """An empty database becomes a store; opening it again changes nothing at all."""
    node = shared_node()
    with own_database() as url:
        database = url.rpartition("/")[2]
        first = await backends.connect(url, partitions=PartitionCounts(flow=8))
        assert (await first.capabilities()).partitions == PartitionCounts(flow=8)
        await first.close()
        before = node.call(
            "SELECT oid, xmin::text FROM pg_proc WHERE pronamespace = 'ff'::regnamespace", database=database
        )
        changes = (
            "SELECT m.xmin::text, f.xmin::text, s.xmin::text "
            "FROM ff.migration AS m, ff.function_set AS f, ff.store AS s"
        )
        rows = node.call(changes, database=database)
        again = await backends.connect(url)
        assert (await again.capabilities()).partitions == PartitionCounts(flow=8)
        await again.close()
        assert node.call(changes, database=database) == rows
        assert (
            node.call(
                "SELECT oid, xmin::text FROM pg_proc WHERE pronamespace = 'ff'::regnamespace",
                database=database,
            )
            == before
        )


async def test_partition_counts_are_fixed() -> None:
    """Counts that differ from those the store was made with are refused."""
    with own_database() as url:
        await (await backends.connect(url, partitions=PartitionCounts(flow=8))).close()
        with pytest.raises(Misuse, match="8/32/32") as refused:
            await backends.connect(url, partitions=PartitionCounts(flow=9))
        assert "9/32/32" in refused.value.message


async def test_two_that_start_at_once_agree() -> None:
    """Of many processes that find no store one makes it; who asked for other counts is refused."""
    with own_database() as url:
        found = await asyncio.gather(
            *(backends.connect(url, partitions=PartitionCounts(flow=8 + at % 2)) for at in range(6)),
            return_exceptions=True,
        )
        opened = [backend for backend in found if not isinstance(backend, BaseException)]
        refused = [error for error in found if isinstance(error, BaseException)]
        flows = {(await backend.capabilities()).partitions.flow for backend in opened}
        for backend in opened:
            await backend.close()
        assert len(opened) == 3 and len(flows) == 1
        assert all(isinstance(error, Misuse) for error in refused)


async def test_stores_in_several_schemas() -> None:
    """Two schemas of one database are two stores that know nothing of each other."""
    with own_database() as url:
        one, two = await backends.connect(url), await backends.connect(f"{url}?schema=other")
        try:
            mine = await over(one).create()
            assert await over(one).listed() == [mine]
            assert await over(two).listed() == []
        finally:
            await one.close()
            await two.close()
        names = functions_of(shared_node(), url.rpartition("/")[2])
        assert not [name for name, text in names.items() if "other." in text]


async def test_schema_of_somebody_else() -> None:
    """A schema that holds something of another application is refused and left alone."""
    node = shared_node()
    with own_database() as url:
        database = url.rpartition("/")[2]
        node.call("CREATE SCHEMA ff", database=database)
        node.call("CREATE FUNCTION ff.theirs() RETURNS int LANGUAGE sql AS 'SELECT 1'", database=database)
        with pytest.raises(Misuse, match="not FlowFabric's"):
            await backends.connect(url)
        assert node.one("SELECT ff.theirs()", database=database) == 1
        node.call("DROP FUNCTION ff.theirs()", database=database)
        await (await backends.connect(url)).close()


# Roles ------------------------------------------------------------------------------------------------------------


def as_role(url: str, role: str) -> str:
    """Return the URL for a role with its own name as password."""
    return f"postgresql://{role}:{role}@{url.partition('@')[2]}"


async def test_role_without_rights_cannot_make_a_store() -> None:
    """A role that may create nothing is told who has to, and what to run."""
    node = shared_node()
    with own_database() as url:
        node.call("CREATE ROLE weak LOGIN PASSWORD 'weak'")
        try:
            with pytest.raises(Misuse, match="flowfabric migrate"):
                await backends.connect(as_role(url, "weak"))
            with pytest.raises(Misuse, match="may not"):
                await backends.migrate(as_role(url, "weak"))
        finally:
            node.call("DROP ROLE weak")


async def test_role_without_rights_can_use_a_store() -> None:
    """What `migrate --grant` gives is enough to run everything, and not enough to change a table or a row by hand."""
    node = shared_node()
    with own_database() as url:
        database = url.rpartition("/")[2]
        node.call("CREATE ROLE app LOGIN PASSWORD 'app'")
        try:
            report = await backends.migrate(url, grant=["app"])
            assert report.granted == ("app",)
            backend = await backends.connect(as_role(url, "app"))
            world = over(backend)
            try:
                lease = await world.leased()
                await world.execution.complete(lease)
                assert await world.state(lease.execution_id) is PublicState.COMPLETED
                assert not (await backend.maintenance.fsck()).findings
                await backend.timers.sweep()
            finally:
                await backend.close()
            rights = node.call(
                "SELECT has_schema_privilege('app', 'ff', 'CREATE'), has_table_privilege('app', 'ff.execution', "
                "'INSERT, UPDATE, DELETE'), has_function_privilege('public', 'ff.now_ms()', 'EXECUTE')",
                database=database,
            )
            assert rights == [(False, False, False)]
        finally:
            node.call("DROP OWNED BY app", database=database)
            node.call("DROP ROLE app")


async def test_role_that_owns_its_schema() -> None:
    """A role that may create in a schema made for it makes its store there."""
    node = shared_node()
    with own_database() as url:
        database = url.rpartition("/")[2]
        node.call("CREATE ROLE tenant LOGIN PASSWORD 'tenant'")
        try:
            node.call("CREATE SCHEMA mine AUTHORIZATION tenant", database=database)
            mine = f"{as_role(url, 'tenant')}?schema=mine"
            backend = await backends.connect(mine)
            await over(backend).create()
            await backend.close()
            await (await backends.connect(mine)).close()
        finally:
            node.call("DROP OWNED BY tenant CASCADE", database=database)
            node.call("DROP ROLE tenant")


# Several loops ----------------------------------------------------------------------------------------------------


async def test_another_event_loop(node: Node) -> None:
    """A store that is opened again for another event loop works there, and closing it leaves the first one be."""
    backend = await backends.connect(node.url)
    world = over(backend)
    created = await world.create()

    def elsewhere() -> PublicState:
        async def run() -> PublicState:
            other = await backend.another()
            try:
                return await over(other).state(created)
            finally:
                await other.close()

        return asyncio.run(run())

    try:
        assert await asyncio.to_thread(elsewhere) is PublicState.WAITING
        assert await world.state(created) is PublicState.WAITING
    finally:
        await backend.close()


async def test_closing_ends_what_waits(node: Node) -> None:
    """A claim that waits for work ends with Unavailable when its store is closed; closing again does nothing."""
    backend = await backends.connect(node.url)
    waiting = asyncio.create_task(over(backend).claim(wait_ms=20_000))
    await asyncio.sleep(0.2)  # sleeps: until the claim waits; either way it must end
    await backend.close()
    await backend.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await backend.ping()


async def test_socket(tmp_path: Path) -> None:
    """A folder of sockets is named by `?host=`; nothing of it is needed in the authority."""
    target = opening.parse(f"postgresql:///d?host={tmp_path}&schema=x")
    assert "host=" in target.where.dsn and target.public_url == "postgresql:///d"
