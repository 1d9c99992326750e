"""What callers see of conflicts, deadlocks, timeouts and connections that are gone: nothing, or the truth."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from flowfabric.backends.postgres import errors
from flowfabric.backends.postgres.errors import Verdict
from flowfabric.contract.errors import (
    Corrupt,
    ExecutionNotFound,
    InvalidInput,
    OutcomeUnknown,
    Unavailable,
)
from tests.backends.postgres.gated import Gated, gated, own_gated
from tests.postgres.servers import single_node
from tests.postgres.session import own_database, shared_node
from tests.proxy import proxied, until


@pytest.fixture
async def store() -> AsyncIterator[Gated]:
    async with own_gated() as found:
        yield found


def is_certain(error: BaseException) -> bool:
    """Say whether an error promises that nothing was executed."""
    return type(error) is Unavailable and "nothing was executed" in error.message


# Conflicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_conflicts_are_never_seen(store: Gated, state: str) -> None:
    """A call that met a serialization failure or a deadlock is made again until it succeeds, and happens once."""
    assert await store.calls.call("t_fail", 4, state) == [5]
    assert store.done() == ["5"]


async def test_a_real_deadlock(store: Gated) -> None:
    """Two calls that lock two rows in opposite orders both succeed."""
    await asyncio.gather(store.calls.call("t_both", 1, 2), store.calls.call("t_both", 2, 1))
    assert store.call("SELECT n FROM ff.t_rows ORDER BY id") == [(2,), (2,)]


async def test_conflicts_that_do_not_end(store: Gated) -> None:
    """A conflict that lasts longer than the caller's patience is Unavailable, and nothing was executed."""
    with pytest.raises(Unavailable) as unavailable:
        await store.calls.call("t_fail", 1_000_000, "40001", timeout_s=0.8)
    assert is_certain(unavailable.value)
    assert store.done() == []


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", Unavailable),  # the disk is full
        ("53200", Unavailable),  # no memory
        ("42501", Unavailable),  # no right
        ("42883", Unavailable),  # a function of another version
        ("22021", InvalidInput),  # text that cannot be kept
        ("XX000", Corrupt),
        ("23505", Corrupt),
    ],
)
async def test_errors_that_repeating_does_not_help(store: Gated, state: str, kind: type[Exception]) -> None:
    """Other errors are told at once, by what they mean; nothing was executed, and it was tried once."""
    with pytest.raises(kind) as told:
        await store.calls.call("t_fail", 10, state)
    assert type(told.value) is kind
    assert store.done() == []
    assert store.call("SELECT last_value FROM ff.t_tries") == [(1,)]


async def test_refusals(store: Gated) -> None:
    """A code that a function returns is raised as the contract's refusal, with message and details."""
    with pytest.raises(ExecutionNotFound, match="because") as refused:
        await store.calls.call("t_refuse", "execution_not_found")
    assert refused.value.details == {"a": 1, "b": ["c"], "d": None}
    with pytest.raises(Corrupt, match="nonsense"):
        await store.calls.call("t_refuse", "nonsense")
    with pytest.raises(InvalidInput):
        await store.calls.call("t_fail", "not a number", "40001")


# Time -------------------------------------------------------------------------------------------------------------


async def test_a_lock_that_is_not_let_go() -> None:
    """A call that waits for a row too long is Unavailable: the server rolled it back, and that is certain."""
    async with own_gated("?lock_timeout=100ms") as store:
        with store.transaction() as line:
            line.execute("SELECT FROM ff.t_rows WHERE id = 1 FOR UPDATE")
            with pytest.raises(Unavailable) as unavailable:
                await store.calls.call("t_both", 1, 2)
        assert is_certain(unavailable.value)
        assert "lock timeout" in unavailable.value.message
        assert store.call("SELECT n FROM ff.t_rows ORDER BY id") == [(0,), (0,)]


async def test_a_statement_that_takes_too_long() -> None:
    """A statement that the server ended in time is Unavailable, and nothing was executed."""
    async with own_gated("?statement_timeout=100ms") as store:
        with store.shut(), pytest.raises(Unavailable) as unavailable:
            await store.calls.call("t_cold", "slow")
        assert is_certain(unavailable.value)
        assert store.done() == []


async def test_a_deadline_that_passes(store: Gated) -> None:
    """A change that was sent and not answered by the deadline is in doubt; a read is merely not available."""
    with store.shut():
        with pytest.raises(OutcomeUnknown):
            await store.calls.call("t_cold", "slow", timeout_s=0.2)
        with pytest.raises(Unavailable) as unavailable:
            await store.calls.rows("SELECT pg_advisory_xact_lock_shared(42)", timeout_s=0.2)
        assert not isinstance(unavailable.value, OutcomeUnknown)
    # The connections are free again once the server has ended what was given up.
    await asyncio.gather(*(store.calls.value("SELECT 1") for _ in range(20)))


# Connections ------------------------------------------------------------------------------------------------------


async def test_a_connection_that_is_ended_while_idle(store: Gated) -> None:
    """Connections that the server ended while nothing ran on them are replaced without anybody noticing."""
    for _ in range(3):
        store.node.drop_connections(store.name)
        assert await store.calls.call("t_cold", "x") == ["x"]
        store.node.drop_connections(store.name)
        assert await store.calls.value("SELECT 1") == 1


async def test_a_connection_that_is_ended_while_it_works(store: Gated) -> None:
    """When the server ends a connection and says so, the call was rolled back: it is made again, and happens once."""
    with store.shut():
        task = asyncio.create_task(store.calls.call("t_cold", "once"))
        (pid,) = await store.until_waiting(1)
        store.call("SELECT pg_terminate_backend(%s, 5000)", pid)
        await store.until_waiting(1)
    assert await task == ["once"]
    assert store.done() == ["once"]


async def test_a_connection_that_is_cut() -> None:
    """A change whose connection was cut is in doubt and not sent again; a read is simply made again."""
    with own_database() as url:
        node = shared_node()
        async with (
            proxied(node.port) as proxy,
            gated(node, url.replace(f":{node.port}/", f":{proxy.port}/")) as store,
        ):
            with store.shut():
                task = asyncio.create_task(store.calls.call("t_cold", "cut"))
                await store.until_waiting(1)
                proxy.cut()
                with pytest.raises(OutcomeUnknown):
                    await task
                read = asyncio.create_task(
                    store.calls.value("SELECT 7 FROM (SELECT pg_advisory_xact_lock_shared(42)) AS x")
                )
                await until(lambda: len(store.waiting()) >= 1, "the read is held up")
                proxy.cut()
            assert await read == 7
            assert store.done().count("cut") <= 1


async def test_nobody_there_for_a_while() -> None:
    """Calls that are made while the server cannot be reached wait for it, until their deadline."""
    with own_database() as url:
        node = shared_node()
        async with (
            proxied(node.port) as proxy,
            gated(node, url.replace(f":{node.port}/", f":{proxy.port}/")) as store,
        ):
            await proxy.shut()
            with pytest.raises(Unavailable) as unavailable:
                await store.calls.call("t_cold", "never", timeout_s=0.3)
            assert is_certain(unavailable.value)
            task = asyncio.create_task(store.calls.call("t_cold", "later"))
            await asyncio.sleep(0.05)  # sleeps: until the call has failed once or twice
            await proxy.open()
            assert await task == ["later"]
            assert store.done() == ["later"]


async def test_a_server_that_is_restarted_and_killed(tmp_path: Path) -> None:
    """Restarts in good order are not noticed; a change that a crash interrupted is in doubt, and everything goes on."""
    tmp_path.chmod(0o711)
    with single_node(tmp_path / "node") as node:
        async with gated(node, node.url) as store:
            await asyncio.to_thread(node.stop)
            task = asyncio.create_task(store.calls.call("t_cold", "restart"))
            await asyncio.to_thread(node.start)
            assert await task == ["restart"]

            # The crash ends the transaction that keeps the gate shut, too.
            with contextlib.suppress(psycopg.OperationalError), store.shut():
                task = asyncio.create_task(store.calls.call("t_cold", "crash"))
                (pid,) = await store.until_waiting(1)
                node.kill_backend(pid)
                with pytest.raises(OutcomeUnknown):
                    await task
            # The server is recovering now: what is called meanwhile waits for it.
            node.hang_up()
            assert await store.calls.value("SELECT 1") == 1
            assert await store.calls.call("t_cold", "after") == ["after"]
            assert [value for value in store.done() if value != "crash"] == ["restart", "after"]


async def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    """A server that neither answers nor goes away is given up at the deadline."""
    tmp_path.chmod(0o711)
    with single_node(tmp_path / "node") as node:
        async with gated(node, node.url, "?pool_size=1") as store:
            assert await store.calls.call("t_cold", "heard") == ["heard"]
            node.pause()
            try:
                with pytest.raises(OutcomeUnknown):
                    await store.calls.call("t_cold", "silent", timeout_s=0.3)
            finally:
                node.resume()
            assert await store.calls.value("SELECT 1") == 1


# Transactions -----------------------------------------------------------------------------------------------------


async def test_transactions(store: Gated) -> None:
    """A block is one transaction: committed when it ends, rolled back when that happens with an exception."""
    async with store.calls.transaction() as connection:
        await connection.execute("INSERT INTO ff.t_done (value) VALUES ('kept')")
        assert store.done() == []
    with pytest.raises(LookupError):
        async with store.calls.transaction() as connection:
            await connection.execute("INSERT INTO ff.t_done (value) VALUES ('lost')")
            raise LookupError
    with pytest.raises(Corrupt, match="division"):
        async with store.calls.transaction() as connection:
            await connection.execute("SELECT 1 / 0")
    assert store.done() == ["kept"]
    store.node.drop_connections(store.name)
    async with store.calls.transaction() as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_snapshots(store: Gated) -> None:
    """A snapshot reads one state however long it takes, and writes nothing."""
    async with store.calls.transaction(snapshot=True) as connection:
        assert await connection.fetchval("SELECT count(*) FROM ff.t_done") == 0
        store.call("INSERT INTO ff.t_done (value) VALUES ('later')")
        assert await connection.fetchval("SELECT count(*) FROM ff.t_done") == 0
    with pytest.raises(Unavailable):
        async with store.calls.transaction(snapshot=True) as connection:
            await connection.execute("DELETE FROM ff.t_done")
    assert store.done() == ["later"]


async def test_a_result_that_changes_its_shape(store: Gated) -> None:
    """A statement that was prepared before a table or function changed is prepared again; nobody notices."""
    question = "SELECT * FROM ff.t_rows WHERE id = 1"
    for _ in range(12):
        assert len(await store.calls.rows(question)) == 1
    store.call("ALTER TABLE ff.t_rows ADD COLUMN more text")
    row = await store.calls.row(question)
    assert row is not None and list(row.keys()) == ["id", "n", "more"]


# What errors mean -------------------------------------------------------------------------------------------------


def test_a_lost_connection_is_in_doubt_only_when_something_was_sent() -> None:
    """The same error before and after sending means different things."""
    for error in (ConnectionResetError(), TimeoutError(), EOFError()):
        assert errors.understand(error, sent=False).verdict is Verdict.ELSEWHERE
        assert errors.understand(error, sent=True).verdict is Verdict.LOST
    assert errors.understand(ValueError("x"), sent=True).verdict is Verdict.REFUSED
    lost = errors.understand(ConnectionResetError(), sent=True)
    assert isinstance(errors.gave_up(lost, changes=True), OutcomeUnknown)
    assert type(errors.gave_up(lost, changes=False)) is Unavailable
