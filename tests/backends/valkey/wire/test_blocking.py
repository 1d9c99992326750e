"""Connections that wait on the server."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.backends.valkey.wire import Client
from flowfabric.contract.errors import Misuse, OutcomeUnknown, Unavailable
from tests.backends.valkey.wire.between import proxied, until
from tests.backends.valkey.wire.conftest import Connects
from tests.backends.valkey.wire.servers import Server


async def test_a_blocking_call_waits_apart_from_the_others(server: Server, client: Client) -> None:
    """BLPOP waits on its own connection: other calls are served meanwhile, and wake it."""
    waiting = await client.blocking(0)
    call = asyncio.create_task(waiting.call(("BLPOP", "bell", 5), 6))
    await until(lambda: _blocked(server) == 1, "the call waits on the server")
    assert await client.execute(0, [("RPUSH", "bell", "token")]) == [1]
    assert await call == [b"bell", b"token"]
    assert await waiting.call(("BLPOP", "bell", 0.02), 6) is None


async def test_a_cancelled_wait_pops_nothing(server: Server, client: Client) -> None:
    """After a cancelled BLPOP nobody waits on the server, and what is pushed later stays; the next call works."""
    waiting = await client.blocking(0)
    call = asyncio.create_task(waiting.call(("BLPOP", "bell", 5), 6))
    await until(lambda: _blocked(server) == 1, "the call waits on the server")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: _blocked(server) == 0, "the server noticed")
    await client.execute(0, [("RPUSH", "bell", "token")])
    assert server.call("LLEN", "bell") == 1
    assert await waiting.call(("BLPOP", "bell", 5), 6) == [b"bell", b"token"]


async def test_a_wait_past_its_deadline_pops_nothing(server: Server, client: Client) -> None:
    """A call that outlives its own deadline is dropped on the server, too."""
    waiting = await client.blocking(0)
    with pytest.raises(OutcomeUnknown):
        await waiting.call(("BLPOP", "bell", 5), 0.05)
    await until(lambda: _blocked(server) == 0, "the server noticed")
    await client.execute(0, [("RPUSH", "bell", "token")])
    assert server.call("LLEN", "bell") == 1


async def test_a_killed_wait_is_reported_and_the_next_call_reconnects(server: Server, client: Client) -> None:
    """A connection that dies while waiting gives `OutcomeUnknown`; the next call opens another."""
    waiting = await client.blocking(0)
    call = asyncio.create_task(waiting.call(("BLPOP", "bell", 5), 6))
    await until(lambda: _blocked(server) == 1, "the call waits on the server")
    server.call("CLIENT", "KILL", "TYPE", "NORMAL")
    with pytest.raises(OutcomeUnknown):
        await call
    server.call("RPUSH", "bell", "token")
    assert await waiting.call(("BLPOP", "bell", 5), 6) == [b"bell", b"token"]


async def test_a_wait_without_a_server_is_unavailable(server: Server, connects: Connects) -> None:
    """When no connection can be made by the deadline the call says that it was not sent; later it works."""
    async with proxied(server.port) as proxy:
        client = await connects(proxy.url)
        waiting = await client.blocking(0)
        await proxy.shut()
        with pytest.raises(Unavailable, match="not sent"):
            await waiting.call(("BLPOP", "bell", 5), 0.2)
        await proxy.open()
        server.call("RPUSH", "bell", "token")
        assert await waiting.call(("BLPOP", "bell", 5), 6) == [b"bell", b"token"]


async def test_one_call_at_a_time(server: Server, client: Client) -> None:
    """A second call while one waits is `Misuse`, as is any call after close."""
    waiting = await client.blocking(0)
    call = asyncio.create_task(waiting.call(("BLPOP", "bell", 5), 6))
    await until(lambda: _blocked(server) == 1, "the call waits on the server")
    with pytest.raises(Misuse):
        await waiting.call(("PING",), 1)
    await waiting.close()
    with pytest.raises((OutcomeUnknown, Unavailable)):
        await call
    with pytest.raises(Misuse):
        await waiting.call(("PING",), 1)


async def test_a_demoted_server_ends_no_wait(connects: Connects) -> None:
    """A wait interrupted because its server became a replica goes on once there is a primary again."""
    with Server() as other, Server() as server:
        client = await connects(server.url)
        waiting = await client.blocking(0)
        call = asyncio.create_task(waiting.call(("BLPOP", "bell", 5), 6))
        await until(lambda: _blocked(server) == 1, "the call waits on the server")
        server.call("REPLICAOF", "127.0.0.1", other.port)
        await asyncio.sleep(0.1)
        assert not call.done()
        server.call("REPLICAOF", "NO", "ONE")
        server.call("RPUSH", "bell", "token")
        assert await call == [b"bell", b"token"]


def _blocked(server: Server) -> int:
    for line in server.call("INFO", "clients").splitlines():
        if line.startswith(b"blocked_clients:"):
            return int(line.partition(b":")[2])
    raise AssertionError("no such statistic")
