"""Connections that hang, calls that are given up twice, stores closed at a bad moment: nothing is left over."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from flowfabric.backends.postgres import errors, opening, pool
from flowfabric.backends.postgres.batching import Batch
from flowfabric.backends.postgres.errors import Verdict
from flowfabric.backends.postgres.pool import Pool, StatementFailed
from flowfabric.contract.errors import Misuse, OutcomeUnknown, Unavailable
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import Kind
from tests.backends.postgres.gated import Gated, gated, own_gated
from tests.backends.postgres.pooler import PGBOUNCER, PgBouncer
from tests.backends.postgres.work import listener_of, opened, store_of
from tests.backends.working import until, waiting
from tests.postgres.servers import Node
from tests.postgres.session import own_database, shared_node
from tests.proxy import proxied

needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="there is no PgBouncer")
ECHO = Batch(function="t_echo", types=("text", "text"), columns=("value", "statement"))


@pytest.fixture
async def store() -> AsyncIterator[Gated]:
    async with own_gated() as found:
        yield found


# Transactions -----------------------------------------------------------------------------------------------------


async def test_a_transaction_that_is_given_up_twice() -> None:
    """A transaction given up while it is being given up is over; its connection is never lent with it under way."""
    async with own_gated("?pool_size=1") as store:
        await give_up_twice(store)


async def give_up_twice(store: Gated) -> None:
    begun = asyncio.Event()

    async def hold() -> None:
        async with store.calls.transaction() as connection:
            await connection.execute("INSERT INTO ff.t_done (value) VALUES ('lost')")
            begun.set()
            # Given up, this ends well nevertheless.
            await connection.execute(
                "DO $$ BEGIN PERFORM pg_sleep(20); EXCEPTION WHEN query_canceled THEN NULL; END $$"
            )

    task = asyncio.create_task(hold())
    await begun.wait()
    await until(lambda: sleeping(store) == 1)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: sleeping(store) == 0)
    for at in range(20):
        await store.calls.call("t_cold", str(at))
    assert store.done() == [str(at) for at in range(20)]


def sleeping(store: Gated) -> int:
    """Return how many statements sleep on the server."""
    return len(
        store.call("SELECT FROM pg_stat_activity WHERE datname = %s AND wait_event = 'PgSleep'", store.name)
    )


# Batches ----------------------------------------------------------------------------------------------------------


async def test_closing_while_a_batch_is_taken_apart(store: Gated) -> None:
    """Whoever waits for a batch whose commands are sent one by one is told when the store is closed."""

    def start(value: str) -> asyncio.Task[Any]:
        return asyncio.create_task(store.calls.hot(ECHO, (None, value), None))

    with store.shut():
        first = [start("0")]
        await store.until_waiting(1)
        first.append(start("1"))
        await store.until_waiting(2)
        tasks = [start(value) for value in ("nul\x00", *"abcdefghijklmnop")]
        await asyncio.sleep(0)
        for pid in store.waiting():
            store.call("SELECT pg_cancel_backend(%s)", pid)
        await asyncio.gather(*first, return_exceptions=True)
        # The batch was refused as a whole; its commands are held up now, one by one.
        await until(lambda: len(store.waiting()) > 0)
        await asyncio.sleep(0.1)  # sleeps: until no more of them is sent
        await store.store.close()
        async with asyncio.timeout(5):
            found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, Exception) for outcome in found)
    assert sum(isinstance(outcome, Unavailable) for outcome in found) >= len(found) - 1


# Connecting -------------------------------------------------------------------------------------------------------


class Steered(PgBouncer):
    """A PgBouncer that can be told what to do while it runs."""

    def prepare(self) -> None:
        super().prepare()
        with (self.folder / "pgbouncer.ini").open("a") as file:
            file.write("admin_users = postgres\n")

    def tell(self, command: str) -> None:
        """Execute a command on its console."""
        console = psycopg.connect(
            self.url.rpartition("/")[0] + "/pgbouncer", autocommit=True, cursor_factory=psycopg.ClientCursor
        )
        console.execute(command.encode())
        console.close()


@pytest.fixture
async def proxy(node: Node) -> AsyncIterator[Steered]:
    # Root's runs as somebody else, who has to pass through.
    folder = Path(tempfile.mkdtemp(prefix="flowfabric-tests-"))
    folder.chmod(0o755)
    found = Steered(folder / "pgbouncer", node.url)
    try:
        await asyncio.to_thread(found.start)
        yield found
    finally:
        await asyncio.to_thread(found.kill)
        shutil.rmtree(folder)


@needs_pgbouncer
async def test_a_proxy_without_a_server(proxy: Steered) -> None:
    """A proxy that lets in and then has no server to lend is given up at the deadline; nothing was executed."""
    where = opening.parse(f"{proxy.url}?pooler=transaction").where
    first = Pool(where, 1)
    first.release(await first.acquire(time.monotonic() + 10))
    await first.close()
    await asyncio.to_thread(proxy.tell, "PAUSE")
    connections = Pool(where, 1)
    try:
        async with asyncio.timeout(10):
            began = time.monotonic()
            with pytest.raises(StatementFailed) as failed:
                await connections.acquire(time.monotonic() + 0.5)
        assert time.monotonic() - began < 5
        assert failed.value.trouble.verdict is Verdict.ELSEWHERE
        assert connections.open_count == 0
    finally:
        await asyncio.to_thread(proxy.tell, "RESUME")
    connections.release(await connections.acquire(time.monotonic() + 10))
    await connections.close()


def test_what_happens_before_anything_is_sent_is_certain() -> None:
    """Whatever a server or a proxy says while nothing has been sent yet, nothing was executed."""
    for kind in (asyncpg.ProtocolViolationError, asyncpg.CrashShutdownError, asyncpg.PostgresConnectionError):
        error = kind("no more connections allowed (max_client_conn)")
        assert errors.understand(error, sent=False).verdict is Verdict.ELSEWHERE
        assert errors.understand(error, sent=True).verdict is Verdict.LOST


@needs_pgbouncer
async def test_a_proxy_that_is_full(proxy: Steered) -> None:
    """A change that a proxy did not let in was not executed, and is not reported as in doubt."""
    async with opened(f"{proxy.url}?pooler=transaction&pool_size=1") as (backend,):
        store = store_of(backend)
        assert await store.calls.value("SELECT 1") == 1
        store.pool.drop(await store.pool.acquire(time.monotonic() + 5))
        await asyncio.to_thread(proxy.tell, "SET max_client_conn = 1")
        with psycopg.connect(proxy.url), pytest.raises(Unavailable) as unavailable:
            await store.calls.change("SELECT 1", timeout_s=1.0)
        assert not isinstance(unavailable.value, OutcomeUnknown), unavailable.value


# URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:gehexyz/word@127.0.0.1:1/db",
        "postgresql://user:gehexyz@/db?host=a,b&port=gehexyz",
        "postgresql://user:gehexyz@127.0.0.1:54x32/db",
        "postgresql://user:gehe[xyz@127.0.0.1/db",
    ],
)
async def test_urls_that_cannot_be_read_keep_their_secrets(url: str) -> None:
    """A URL that cannot be used is a mistake that is told at once, without anything that may be a password."""
    with pytest.raises(Misuse) as told:
        await opening.connect(opening.parse(url).where)
    assert "xyz" not in "".join(traceback.format_exception(told.value))


# Closing ----------------------------------------------------------------------------------------------------------


async def test_who_leads_is_asked_while_the_store_is_closed(node: Node) -> None:
    """Who asks a store that is being closed is not cancelled by it."""
    async with opened(node.url) as (backend,):
        assert await backend._wakes.is_push()
        listener = listener_of(backend)
        async with listener._using:
            asking = asyncio.create_task(listener.lead("x"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await backend.close()
        await asyncio.wait([asking], timeout=5)
        assert asking.done() and not asking.cancelled()


async def test_a_claim_under_way_when_the_store_is_closed() -> None:
    """A claim that was sent when its store was closed is in doubt: it may have leased something."""
    with own_database() as url:
        node = shared_node()
        async with proxied(node.port) as proxy, opened(url) as (direct,):
            await direct.execution.create(ExecutionCreate(kind=Kind("k")))
            async with opened(url.replace(f":{node.port}/", f":{proxy.port}/")) as (backend,):
                warm = waiting(backend, kinds=(Kind("none"),))
                await until(lambda: store_of(backend).bells.claims_sleeping == 1)
                proxy.pass_replies.clear()
                task = waiting(backend)
                name = url.rpartition("/")[2]
                await until(
                    lambda: bool(
                        node.one(
                            "SELECT count(*) FROM ff.execution WHERE lease_id IS NOT NULL", database=name
                        )
                    )
                )
                await backend.close()
                proxy.pass_replies.set()
                with pytest.raises(OutcomeUnknown):
                    await task
                with pytest.raises(Unavailable):
                    await warm


async def test_a_store_is_usable_after_all_that() -> None:
    """What the tests above share is what others use."""
    with own_database() as url:
        async with gated(shared_node(), url) as store:
            assert await store.calls.call("t_cold", "x") == ["x"]


# Opening ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_falls_silent_while_a_store_is_opened(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a store at a server that lets in and then says nothing more is given up, as if it were not there."""
    monkeypatch.setattr(opening, "ANSWER_TIMEOUT_S", 0.3)
    async with proxied(node.port) as proxy:

        def fall_silent(request: bytes) -> None:
            if b"server_version_num" in request:
                proxy.pass_replies.clear()

        proxy.on_request = fall_silent
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable, match="cannot be reached"):
                await opening.prepare(
                    opening.parse(node.url.replace(f":{node.port}/", f":{proxy.port}/")),
                    clock=None,
                    partitions=None,
                )
        proxy.pass_replies.set()


async def test_a_connection_that_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of a connection whose server's process answers nothing any more is free again after a while."""
    monkeypatch.setattr(pool, "SETTLE_S", 0.3)
    async with own_gated("?pool_size=1") as store:
        for _ in range(2):
            pid = await store.calls.value("SELECT pg_backend_pid()")
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(OutcomeUnknown):
                    await store.calls.change("SELECT pg_backend_pid()", timeout_s=0.3)
                assert await store.calls.value("SELECT 1") == 1
            finally:
                os.kill(pid, signal.SIGCONT)
