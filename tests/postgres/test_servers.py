"""The servers that other tests rely on do what they are told: they are emptied, killed and paused, and hang up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from tests.postgres import session
from tests.postgres.servers import FEW, Node, server_version, single_node
from tests.valkey.servers import eventually


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A server that the tests of this module may do anything to, one after the other."""
    with single_node(tmp_path_factory.mktemp("own") / "node", max_connections=20) as node:
        yield node


@pytest.fixture
def node(own: Node) -> Node:
    """It runs."""
    own.start()
    return own


def count(node: Node, table: str) -> int:
    return node.one(f"SELECT count(*) FROM {table}")


def test_a_node(tmp_path: Path) -> None:
    """It is as old as its version says, takes options, keeps what it acknowledged, and leaves nothing behind."""
    with single_node(tmp_path / "node", max_connections=17) as node:
        assert node.setting("server_version").startswith(f"{server_version()[0]}.{server_version()[1]}")
        assert node.setting("max_connections") == "17"
        assert (node.setting("fsync"), node.setting("synchronous_commit")) == ("on", "on")
        with pytest.raises(psycopg.errors.UndefinedTable):
            node.call("SELECT * FROM nothing")
        assert node.call("SELECT %s::int, 'x'", 7) == [(7, "x")]
        data = node.data
        assert data.exists()
    assert not (tmp_path / "node").exists() and not data.exists()


async def test_it_is_emptied(node: Node) -> None:
    """Rows are gone and numbers start again, the schema stays, and nobody else is connected; others' things go."""
    store = await backends.connect(node.url, partitions=FEW)
    before = await store.capabilities()
    await store.close()
    node.call("INSERT INTO ff.lane VALUES ('a', 'active', 0, 0)")
    assert node.one("SELECT nextval('ff.execution_seq')") == 1
    node.call("CREATE SCHEMA other; CREATE TABLE other.thing (); CREATE TABLE application ()")
    with psycopg.connect(node.url, autocommit=True) as other:
        node.empty()
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT 1")
    assert count(node, "ff.lane") == 0 and node.one("SELECT nextval('ff.execution_seq')") == 1
    assert node.call("SELECT to_regclass('other.thing'), to_regclass('application')") == [(None, None)]
    files = node.call("SELECT relfilenode FROM pg_class WHERE relname = 'execution'")
    node.call(
        "INSERT INTO ff.lane SELECT repeat('x', 1000) || g, 'active', 0, 0 FROM generate_series(1, 2000) g"
    )
    node.empty()
    assert count(node, "ff.lane") == 0 == node.one("SELECT pg_relation_size('ff.lane')")
    store = await backends.connect(node.url, partitions=FEW)
    after = await store.capabilities()
    await store.close()
    assert after.partitions == before.partitions == FEW
    assert node.call("SELECT relfilenode FROM pg_class WHERE relname = 'execution'") == files


async def test_its_clock_is_the_one_that_was_asked_for(node: Node) -> None:
    """A store that is emptied for tests that move the clock has such a clock, any other the host's, at once."""
    store = await backends.connect(node.url, partitions=FEW)
    await store.close()
    for manual in (True, False, True):
        node.empty(manual_clock=manual)
        applied = node.one("SELECT applied_at_ms FROM ff.function_set")
        store = await backends.connect(node.url, clock=ManualClock(start_ms=7) if manual else None)
        await store.close()
        assert node.one("SELECT applied_at_ms FROM ff.function_set") == applied
        assert (node.one("SELECT ff.now_ms()") < 1_000) is manual


def test_a_killed_one_keeps_what_was_committed(node: Node) -> None:
    """A kill takes all its processes; started again it has what was committed and nothing else."""
    node.call("CREATE TABLE kept (n integer)")
    node.call("INSERT INTO kept VALUES (1)")
    with psycopg.connect(node.url) as other:
        other.execute("INSERT INTO kept VALUES (2)")
        node.kill()
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        node.call("SELECT 1")
    node.start()
    assert node.call("SELECT n FROM kept") == [(1,)]


def test_a_paused_one_answers_nothing(node: Node) -> None:
    """It stops in its tracks, connections and all, and goes on where it was; one that is paused can be stopped."""
    with psycopg.connect(node.url, autocommit=True) as other:
        node.pause()
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(node.url, connect_timeout=1)
        node.resume()
        assert other.execute("SELECT 1").fetchone() == (1,)
    node.pause()
    node.stop()
    assert not node.is_running


def test_connections_are_ended(node: Node) -> None:
    """Those of one application alone, or all; the node's own stays."""
    node.call("SELECT 1")
    with (
        psycopg.connect(node.url, application_name="one", autocommit=True) as one,
        psycopg.connect(node.url, application_name="two", autocommit=True) as two,
    ):
        assert len(node.backends()) == 2
        assert node.drop_connections(application="one") == 1
        with pytest.raises(psycopg.OperationalError):
            one.execute("SELECT 1")
        two.execute("SELECT 1")
        assert node.drop_connections() == 1
        assert node.backends() == []


def test_a_killed_connection_takes_all_along(node: Node) -> None:
    """When the process of one connection is killed, the server ends the others, recovers, and serves again."""
    pid = node.pid
    with psycopg.connect(node.url, autocommit=True) as one, psycopg.connect(node.url) as two:
        node.kill_backend(one.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            two.execute("SELECT pg_sleep(10)")

    def serves() -> bool:
        try:
            return node.one("SELECT true")
        except psycopg.OperationalError:
            return False

    eventually(serves, "the server has recovered")
    assert node.pid == pid


def test_databases_of_ones_own() -> None:
    """The session's server is one; a database of one's own is empty, and gone afterwards."""
    assert session.shared_node() is session.shared_node()
    with session.own_database() as first, session.own_database() as second:
        assert first != second
        with psycopg.connect(first, autocommit=True) as line:
            line.execute("CREATE TABLE thing ()")
            with psycopg.connect(second) as other, pytest.raises(psycopg.errors.UndefinedTable):
                other.execute("SELECT * FROM thing")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(first)


def test_it_ignores_what_a_shell_ignores(node: Node) -> None:
    """It hears the signal that stops it also when this process was started without ears for it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        node.restart()
        node.stop(timeout_s=15)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "database system is shut down" in (node.folder / node.log_name).read_text()
