"""The listener and its locks: writers tell exactly where somebody sleeps, and no sleeper misses a commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from structlog.testing import capture_logs

from flowfabric.backends.postgres import listen, timers, wakes
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.backends.postgres.wakes import change_bucket, work_bucket
from flowfabric.contract import ids
from flowfabric.contract.execution import ExecutionReadResult, ResultCancelled
from flowfabric.contract.ids import ExecutionId, execution_uuid
from tests.backends.postgres.work import asleep, covered, listener_of, opened, store_of
from tests.backends.working import PATIENCE_S, WAIT_MS, claim, complete, create, gone, served, until, waiting
from tests.postgres.servers import Node, single_node
from tests.proxy import Proxy

CANCEL: Final = (
    "SELECT code FROM ff.execution_cancel($1, $2, NULL, NULL, NULL, NULL, NULL, true, 'r', 'operator', NULL)"
)
LOCKS: Final = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid IN "
    "(SELECT pid FROM pg_stat_activity WHERE application_name = 'flowfabric listener')"
)


pytestmark = pytest.mark.usefixtures("told_only")


@pytest.fixture
async def store(place: str) -> AsyncIterator[PostgresBackend]:
    """A store that listens."""
    async with opened(place) as (backend,):
        assert await backend._wakes.is_push()
        yield backend


@pytest.fixture
async def raw(store: PostgresBackend, place: str) -> AsyncIterator[Any]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(place)
    yield connection
    await connection.close()


class Told:
    """What is told to everybody, since it was last asked for."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._found: list[str] = []
        self._ended = asyncio.Event()

    async def listen(self) -> None:
        """Begin to hear."""
        await self._connection.add_listener("ff", lambda *event: self._found.append(event[3]))
        await self._connection.add_listener("ff_told", lambda *_: self._ended.set())

    async def until_now(self) -> list[str]:
        """Return what all transactions committed by now have told: commits are told in their order."""
        self._ended.clear()
        await self._connection.execute("NOTIFY ff_told")
        await asyncio.wait_for(self._ended.wait(), PATIENCE_S)
        found, self._found = self._found, []
        return found


@pytest.fixture
async def told(store: PostgresBackend, place: str) -> AsyncIterator[Told]:
    """A listener beside the store's."""
    connection = await asyncpg.connect(place)
    heard = Told(connection)
    await heard.listen()
    yield heard
    await connection.close()


def reading(store: PostgresBackend, execution_id: ExecutionId) -> asyncio.Task[Any]:
    """Start to wait for a result."""
    return asyncio.create_task(
        store.execution.read_result(ExecutionReadResult(execution_id=execution_id, wait_ms=WAIT_MS))
    )


async def cancel(raw: Any, execution_id: ExecutionId) -> None:
    """Cancel an execution on a connection."""
    partition = int(execution_id.partition(":")[2].partition("}")[0])
    assert await raw.fetchval(CANCEL, partition, execution_uuid(execution_id)) is None


async def is_heard(raw: Any, kind: str, bucket: int) -> bool:
    """Ask as a writer would whether somebody sleeps."""
    found: bool = await raw.fetchval("SELECT ff._is_heard($1, $2)", kind, bucket)
    return found


def key_of(execution_id: ExecutionId) -> tuple[str, int]:
    """Return what is slept for by who waits for an execution."""
    return wakes.CHANGE, change_bucket(execution_uuid(execution_id))


# Writers and sleepers ---------------------------------------------------------------------------------------------


async def test_both_sides_mean_the_same_buckets(raw: Any) -> None:
    """Buckets are worked out alike in Python and in SQL."""
    for namespace, lane in (("default", "default"), ("a", "b"), ("ä\\n", "ß'\"$$"), ("n" * 200, "l" * 200)):
        assert await raw.fetchval("SELECT ff._work_bucket($1, $2)", namespace, lane) == work_bucket(
            namespace, lane
        )
    for _ in range(20):
        uuid = ids.mint_uuid()
        assert await raw.fetchval("SELECT ff._change_bucket($1)", uuid) == change_bucket(uuid)


@pytest.mark.parametrize("path", [listen.QUERIES, timers.QUERIES])
async def test_statements_are_sound(store: PostgresBackend, raw: Any, path: str) -> None:
    """Every statement about waiting and timers can be prepared."""
    for statement in store_of(store).sql(path).values():
        if not statement.startswith("SET"):
            await raw.prepare(statement)


async def test_a_sleeper_sees_what_a_writer_commits_that_could_not_know_of_it(
    store: PostgresBackend, raw: Any, told: Told
) -> None:
    """A writer that looked for sleepers before one came tells nobody; the sleeper looks once it has committed."""
    execution_id = await create(store)
    writing = raw.transaction()
    await writing.start()
    await cancel(raw, execution_id)
    task = reading(store, execution_id)
    listener = listener_of(store)
    await until(lambda: key_of(execution_id) in listener._held)
    assert key_of(execution_id) not in listener._covered
    await writing.commit()
    async with asyncio.timeout(PATIENCE_S):
        assert isinstance(await task, ResultCancelled)
    assert f"x {execution_uuid(execution_id)}" not in await told.until_now()


async def test_a_sleeper_waits_for_long_writers_without_being_in_anybodys_way(
    store: PostgresBackend, raw: Any, place: str
) -> None:
    """While one writer takes its time, others write and are heard of, and everything else is heard of too."""
    execution_id, other_id = await create(store), await create(store)
    writing = raw.transaction()
    await writing.start()
    assert not await is_heard(raw, *key_of(execution_id))
    task, other = reading(store, execution_id), reading(store, other_id)
    listener = listener_of(store)
    await until(lambda: key_of(execution_id) in listener._held)
    await covered_but(store, execution_id)
    second = await asyncpg.connect(place)
    try:
        await cancel(second, other_id)
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance(await other, ResultCancelled)
        await cancel(second, execution_id)
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance(await task, ResultCancelled)
        await writing.rollback()
    finally:
        await second.close()


async def covered_but(store: PostgresBackend, execution_id: ExecutionId) -> None:
    """Wait until everything that is slept for is covered but for one thing."""
    listener = listener_of(store)
    await until(lambda: listener._wanted.keys() - listener._covered == {key_of(execution_id)})


async def test_writers_tell_only_where_somebody_sleeps(store: PostgresBackend, told: Told) -> None:
    """Work, changes and instants are told to sleepers; without any, only that there is a new route."""
    execution_id = await create(store, delay_until_ms=await store.now_ms() + 3_000)
    await create(store)
    (lease,) = await claim(store)
    await complete(store, lease)
    assert await told.until_now() == ["c"]
    task = waiting(store)
    await asleep(store, count=1)
    await create(store)
    await served(task)
    task = reading(store, execution_id)
    await covered(store, key_of(execution_id))
    connection = await asyncpg.connect(store_of(store).pool.where.dsn)
    await cancel(connection, execution_id)
    await connection.close()
    await task
    assert [text.split()[0] for text in await told.until_now()] == ["w", "x"]


async def test_writers_are_not_in_each_others_way(raw: Any, place: str) -> None:
    """Writers whose transactions overlap do not take each other for sleepers."""
    second = await asyncpg.connect(place)
    try:
        async with raw.transaction(), second.transaction():
            for connection in (raw, second, raw, second):
                assert not await is_heard(connection, "work", 7)
    finally:
        await second.close()


async def test_a_transaction_of_somebody_else_is_waited_for_by_nobody(
    store: PostgresBackend, raw: Any
) -> None:
    """A transaction that says so always tells, and sleepers need not wait for its end."""
    execution_id = await create(store)
    async with raw.transaction():
        await raw.execute("SET LOCAL flowfabric.announce = 'always'")
        await cancel(raw, execution_id)
        task = reading(store, execution_id)
        await covered(store, key_of(execution_id))
    async with asyncio.timeout(PATIENCE_S):
        assert isinstance(await task, ResultCancelled)


async def test_a_writer_that_rolls_back_leaves_nothing(store: PostgresBackend, raw: Any) -> None:
    """What was rolled back is neither told nor in the way of those who sleep."""
    execution_id = await create(store)
    writing = raw.transaction()
    await writing.start()
    await cancel(raw, execution_id)
    task = reading(store, execution_id)
    await writing.rollback()
    await covered(store, key_of(execution_id))
    await asyncio.sleep(0.02)  # sleeps: so that a wrong answer would show
    assert not task.done()
    await gone(task)


async def test_statements_that_are_cancelled_leave_no_lock(store: PostgresBackend, raw: Any) -> None:
    """However often a statement is cut off that looks for sleepers, its session keeps no lock."""
    await raw.execute("SET statement_timeout = 15")
    for _ in range(20):
        with pytest.raises(asyncpg.QueryCanceledError):
            await raw.execute(
                "DO $$ BEGIN LOOP PERFORM ff._announce_change(gen_random_uuid()); END LOOP; END $$"
            )
    await raw.execute("SET statement_timeout = 0")
    count = await raw.fetchval(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    )
    assert count == 0


# Locks --------------------------------------------------------------------------------------------------------------


async def test_locks_are_bounded(store: PostgresBackend, node: Node) -> None:
    """However many executions are waited for, a process holds a lock per bucket at most."""
    created = [await create(store, lane=f"l{number}") for number in range(300)]
    tasks = [reading(store, created[number % 300]) for number in range(600)]
    await until(lambda: store_of(store).bells.waiting == 600)
    await covered(store)
    assert 1 <= node.one(LOCKS) <= 256
    await gone(*tasks)


async def test_locks_outlive_sleepers_for_a_while(
    store: PostgresBackend, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who falls asleep again soon finds its lock; later it is gone, and writers tell nothing any more."""
    await create(store)
    await served(waiting(store))
    task = waiting(store)
    await asleep(store, count=1)
    await gone(task)
    assert node.one(LOCKS) == 1
    assert listener_of(store)._covered
    monkeypatch.setattr(listen, "KEEP_S", 0.05)
    task = waiting(store, lanes=("other",))
    await asleep(store, count=1)
    await until(lambda: node.one(LOCKS) == 1 and len(listener_of(store)._covered) == 1)
    await gone(task)
    await until(lambda: node.one(LOCKS) == 0)


async def test_nobody_listens_for_nobody(place: str, node: Node) -> None:
    """A process that never waits has no listener's connection."""
    async with opened(place) as (one,):
        await create(one)
        await claim(one)
        assert node.backends(application="flowfabric listener") == []
        task = waiting(one)
        await asleep(one, count=1)
        assert len(node.backends(application="flowfabric listener")) == 1
        await gone(task)
    await until(lambda: node.backends(application="flowfabric listener") == [])


async def test_one_process_leads_at_a_time(place: str) -> None:
    """What one process leads in no other does, until its connection is gone."""
    async with opened(place, 3) as (one, other, third):
        for backend in (one, other, third):
            assert await backend._wakes.is_push()
        assert [await listener_of(backend).lead("it") for backend in (one, other, third)] == [
            True,
            False,
            False,
        ]
        assert await listener_of(other).lead("something else")
        await one.close()
        async with asyncio.timeout(PATIENCE_S):
            while not await listener_of(other).lead("it"):  # noqa: ASYNC110 -- nobody announces it
                await asyncio.sleep(0.005)  # sleeps: until the server has noticed that the connection is gone
        assert await listener_of(other).lead("it")
        assert not await listener_of(third).lead("it")


# Losing the connection ----------------------------------------------------------------------------------------------


async def test_a_lost_connection_is_made_up_for(place: str, node: Node) -> None:
    """What was committed while nobody listened is found as soon as the connection is back, or before."""
    async with opened(place, 2) as (one, other):
        execution_id = await create(one, lane="other")
        task = waiting(other)
        watching = reading(other, execution_id)
        await asleep(other, count=1)
        await covered(other, key_of(execution_id))
        connection = await asyncpg.connect(place)
        for _ in range(5):
            node.drop_connections(application="flowfabric listener")
        await cancel(connection, execution_id)
        await connection.close()
        created = await create(one)
        assert [lease.execution_id for lease in await served(task)] == [created]
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance(await watching, ResultCancelled)
        await until(lambda: listener_of(other).is_listening)


async def test_an_outage_is_said_once_and_looked_through(
    place: str, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the listener cannot connect, calls look by themselves; that is said once, and when it is over."""
    monkeypatch.setattr(wakes, "POLL_CLAIMS_S", 0.05)
    monkeypatch.setattr(wakes, "POLL_CHANGES_S", 0.05)
    proxy = Proxy(node.port)
    await proxy.open()
    try:
        async with opened(f"{place}?listener=127.0.0.1:{proxy.port}", 2) as (one, other):
            await create(one)
            await claim(one)
            task = waiting(other)
            await asleep(other, count=1)
            with capture_logs() as logs:
                await proxy.shut()
                await until(lambda: not listener_of(other).is_listening)
                assert not (await other.capabilities()).push
                created = await create(one)
                assert [lease.execution_id for lease in await served(task)] == [created]
                watching = reading(other, created)
                await until(lambda: store_of(other).bells.waiting == 1)
                connection = await asyncpg.connect(place)
                await cancel(connection, created)
                await connection.close()
                async with asyncio.timeout(PATIENCE_S):
                    assert isinstance(await watching, ResultCancelled)
                await proxy.open()
                await until(lambda: listener_of(other).is_listening)
                assert (await other.capabilities()).push
            assert [entry["event"] for entry in logs] == ["no_push", "push"]
    finally:
        await proxy.close()


async def test_a_silent_connection_is_noticed(
    place: str, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection over which nothing comes any more is found out and replaced."""
    for name, seconds in (("KEEP_S", 0.1), ("CHECK_S", 0.1), ("ANSWER_TIMEOUT_S", 0.3)):
        monkeypatch.setattr(listen, name, seconds)
    proxy = Proxy(node.port)
    await proxy.open()
    try:
        async with opened(f"{place}?listener=127.0.0.1:{proxy.port}", 2) as (one, other):
            task = waiting(other)
            await asleep(other, count=1)
            proxy.pass_replies.clear()
            created = await create(one)
            await until(lambda: not listener_of(other).is_listening)
            assert [lease.execution_id for lease in await served(task)] == [created]
            proxy.cut()
            proxy.pass_replies.set()
            await until(lambda: listener_of(other).is_listening)
    finally:
        await proxy.close()


async def test_a_server_that_comes_back_is_listened_to_again(tmp_path: Path) -> None:
    """After a crash of the server whoever waits is told again."""
    tmp_path.chmod(0o711)
    with single_node(tmp_path / "postgres") as node:
        async with opened(node.url, 2) as (one, other):
            assert await other._wakes.is_push()
            node.kill()
            await until(lambda: not listener_of(other).is_listening)
            await asyncio.to_thread(node.start)
            await until(lambda: listener_of(other).is_listening)
            task = waiting(other)
            await asleep(other, count=1)
            execution_id = await create(one)
            assert [lease.execution_id for lease in await served(task)] == [execution_id]
