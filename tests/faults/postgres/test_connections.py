"""Connections that are ended, cut in the middle of calls, or used up: callers are told what is so, and go on."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg
import pytest

from flowfabric import backends
from flowfabric.backends.postgres import batching
from flowfabric.contract.errors import ExecutionNotFound, OutcomeUnknown, ResourceExhausted, Unavailable
from flowfabric.contract.execution import (
    ExecutionComplete,
    ExecutionCreate,
    ExecutionReadState,
)
from flowfabric.contract.ids import Kind, Lane, WorkerId, WorkerInstance, mint_execution_id
from flowfabric.contract.lease import LeaseClaim
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import PublicState
from tests.faults.judging import judge
from tests.faults.load import FEW, PATIENCE_S, loading
from tests.faults.postgres.scenes import LISTENERS, OURS, drop_connections
from tests.faults.scenes import KILLS, SEED
from tests.postgres.servers import Node
from tests.proxy import Proxy, proxied

CREATE = ExecutionCreate(kind=Kind("k"), lane=Lane("l"), input=Payload(b"1"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that share statements are given up sooner than usual."""
    monkeypatch.setattr(batching, "DEADLINE_S", 2.0)


def through(proxy: Proxy, node: Node, options: str = "") -> str:
    """Return the URL of a server behind a proxy."""
    return node.url.replace(f":{node.port}/", f":{proxy.port}/") + options


async def test_connections_are_ended_all_the_time(server: Node) -> None:
    """Connections that the server ends again and again, also those that listen, cost repetitions and nothing else."""
    async with loading(server.url) as load:
        await load.progress()
        for _ in range(2 * KILLS):
            await load.progress(2)
            assert await drop_connections(server)
            await asyncio.sleep(0.02)  # sleeps: the moment of the cut is the point
        await load.progress()
        await judge(load.backend, await load.finish())


async def test_connections_are_cut_all_the_time(server: Node) -> None:
    """Connections that break in the middle of whatever they carry leave outcomes unknown, which are safe to repeat."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    async with proxied(server.port) as proxy, loading(through(proxy, server)) as load:
        await load.progress()
        for _ in range(2 * KILLS):
            await load.progress(2)
            if chance.random() < 0.5:
                # The next replies are cut short.
                proxy.reply_budget = chance.randrange(1, 2_000)
            else:
                proxy.cut()
            await asyncio.sleep(0.02)  # sleeps: the moment of the cut is the point
        proxy.reply_budget = None
        await load.progress()
        seen = await load.finish()
        assert load.unavailable, "nobody noticed anything"
        await judge(load.backend, seen)


async def test_a_lost_answer_is_an_unknown_outcome(server: Node) -> None:
    """A mutation whose answer is lost is reported as unknown and safe to repeat; a read is just repeated."""
    async with proxied(server.port) as proxy:
        backend = await backends.connect(through(proxy, server, "?pool_size=1"), partitions=FEW)
        try:
            create = ExecutionCreate(
                kind=Kind("k"), lane=Lane("l"), execution_id=mint_execution_id(FEW), input=Payload(b"1")
            )
            assert create.execution_id is not None
            await backend.execution.create(CREATE)
            proxy.pass_replies.clear()
            creating = asyncio.create_task(backend.execution.create(create))
            async with asyncio.timeout(PATIENCE_S):
                while server.one("SELECT count(*) FROM ff.execution") < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # sleeps: until it is carried out
            proxy.cut()
            proxy.pass_replies.set()
            with pytest.raises(OutcomeUnknown):
                await creating
            again = await backend.execution.create(create)
            assert again.execution_id == create.execution_id
            read = ExecutionReadState(execution_id=create.execution_id)
            proxy.pass_replies.clear()
            reading = asyncio.create_task(backend.execution.read_state(read))
            await asyncio.sleep(0.1)  # sleeps: until the read is under way
            proxy.cut()
            proxy.pass_replies.set()
            assert (await reading).public_state is PublicState.WAITING
        finally:
            await backend.close()


async def test_nothing_sent_is_nothing_done(server: Node, impatient: None) -> None:
    """While no connection can be made calls say that nothing was executed; when one can be, they go on."""
    async with proxied(server.port) as proxy:
        backend = await backends.connect(through(proxy, server), partitions=FEW)
        try:
            await backend.execution.create(CREATE)
            await proxy.shut()
            await asyncio.sleep(0.1)  # sleeps: until it is noticed that the connections are gone
            with pytest.raises(Unavailable, match="nothing was executed") as caught:
                await backend.execution.create(CREATE)
            assert not isinstance(caught.value, OutcomeUnknown)
            await proxy.open()
            await backend.execution.create(CREATE)
        finally:
            await backend.close()


async def test_a_listener_that_is_lost_comes_back(server: Node) -> None:
    """Claims that wait are served while the connection that listens is ended again and again."""
    one = await backends.connect(server.url, partitions=FEW)
    other = await backends.connect(server.url)
    claim = LeaseClaim(
        worker_id=WorkerId("w"), worker_instance=WorkerInstance("w"), lanes=(Lane("l"),), wait_ms=20_000
    )
    try:
        for _ in range(2 * KILLS):
            claiming = asyncio.create_task(other.lease.claim(claim))
            await asyncio.sleep(0.02)  # sleeps: until the claim is asleep, mostly
            await drop_connections(server, application=LISTENERS)
            created = await one.execution.create(CREATE)
            async with asyncio.timeout(PATIENCE_S):
                (lease,) = (await claiming).leases
            assert lease.execution_id == created.execution_id
            await other.execution.complete(
                ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence)
            )
    finally:
        await one.close()
        await other.close()


async def test_no_connection_is_left(narrow: Node, impatient: None) -> None:
    """When the server has no connection to spare callers are told so; when it has, the same calls are carried out."""
    backend = await backends.connect(f"{narrow.url}?pool_size=4", partitions=FEW)
    others: list[psycopg.Connection[Any]] = []
    try:
        await backend.execution.create(CREATE)
        await drop_connections(narrow)
        with pytest.raises(psycopg.OperationalError, match="connection"):
            while True:
                others.append(psycopg.connect(narrow.url))
        with pytest.raises(Unavailable) as caught:
            await backend.execution.create(CREATE)
        assert not isinstance(caught.value, OutcomeUnknown)
        for line in others:
            line.close()
        await asyncio.gather(*(backend.execution.create(CREATE) for _ in range(100)))
    finally:
        for line in others:
            line.close()
        await backend.close()


async def test_more_connections_are_wanted_than_there_are(narrow: Node) -> None:
    """Processes whose pools could be larger than what the server takes share what there is, and go on."""
    async with loading(narrow.url, holders=4) as load:
        await load.progress(8 * KILLS, within_s=60)
        seen = await load.finish()
        await judge(load.backend, seen)


async def test_a_small_pool_serves_many(server: Node) -> None:
    """Very many calls at once share a few connections."""
    backend = await backends.connect(f"{server.url}?pool_size=2", partitions=FEW)
    try:
        await asyncio.gather(*(backend.execution.create(CREATE) for _ in range(2_000)))
        assert len(server.backends(application=OURS)) <= 3
        assert server.one("SELECT count(*) FROM ff.execution") == 2_000
    finally:
        await backend.close()


async def test_an_empty_pool_says_so(server: Node) -> None:
    """When every connection is held up by something slow, further calls are refused in time as `resource_exhausted`."""
    backend = await backends.connect(f"{server.url}?pool_size=2", partitions=FEW)
    read = ExecutionReadState(execution_id=mint_execution_id(FEW))
    try:
        await backend.execution.create(CREATE)
        server.call("BEGIN")
        server.call("LOCK TABLE ff.execution IN ACCESS EXCLUSIVE MODE")
        try:
            reading = [asyncio.create_task(backend.execution.read_state(read)) for _ in range(4)]
            results = await asyncio.gather(*reading, return_exceptions=True)
        finally:
            server.call("ROLLBACK")
        assert {type(result) for result in results} == {Unavailable, ResourceExhausted}, results
        with pytest.raises(ExecutionNotFound):
            await backend.execution.read_state(read)
    finally:
        await backend.close()
