"""Connections to Postgres: never too many, lent in turn, replaced when gone, set up as the engine needs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flowfabric import backends
from flowfabric.backends.postgres import opening, pool
from flowfabric.backends.postgres.pool import Link, Pool, StatementFailed, decode_uuid, encode_uuid
from flowfabric.contract import ids
from flowfabric.contract.errors import ResourceExhausted, Unavailable
from tests.postgres.servers import Node, single_node
from tests.postgres.session import shared_node
from tests.proxy import until

SIZE = 3
PID = "SELECT pg_backend_pid()"


@pytest.fixture
async def connections(node: Node) -> AsyncIterator[Pool]:
    found = Pool(opening.parse(node.url).where, SIZE)
    yield found
    await found.close()


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


async def pid_of(link: Link) -> int:
    return (await link.fetch(PID, (), 5.0))[0][0]


async def test_never_more_than_the_bound(connections: Pool, node: Node) -> None:
    """Connections are opened as they are needed, up to the bound; then callers wait, in turn."""
    first = await connections.acquire(soon())
    connections.release(first)
    assert await connections.acquire(soon()) is first
    lent = [first, await connections.acquire(soon()), await connections.acquire(soon())]
    assert connections.open_count == SIZE
    order: list[int] = []

    async def wait(number: int) -> Link:
        link = await connections.acquire(soon())
        order.append(number)
        return link

    waiting = []
    for number in range(4):
        waiting.append(asyncio.create_task(wait(number)))
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    for link in lent:
        connections.release(link)
    found = [await task for task in waiting[:SIZE]]
    assert order == [0, 1, 2]
    assert not waiting[3].done()
    connections.release(found[0])
    assert await waiting[3] is found[0]
    assert connections.open_count == SIZE == len(node.backends(application=pool.APPLICATION))


async def test_what_nobody_needs_is_closed(
    connections: Pool, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that were needed together and no longer are make room for others, but for the one used last."""
    monkeypatch.setattr(pool, "IDLE_S", 0.05)
    lent = [await connections.acquire(soon()) for _ in range(SIZE)]
    connections.release(lent[0])
    await until(lambda: connections.open_count == SIZE - 1, "closed")
    for link in lent[1:]:
        connections.release(link)
    await until(lambda: len(node.backends(application=pool.APPLICATION)) == 1, "closed")
    kept = await connections.acquire(soon())
    assert kept is lent[-1]
    connections.release(kept)
    await asyncio.gather(*(connections.acquire(soon()) for _ in range(SIZE)))
    assert connections.open_count == SIZE


async def test_nothing_free(connections: Pool) -> None:
    """Who finds every connection lent is told so when the time is up, and takes nobody's turn afterwards."""
    lent = [await connections.acquire(soon()) for _ in range(SIZE)]
    with pytest.raises(ResourceExhausted, match="all 3 connections") as refused:
        await connections.acquire(soon(0.02))
    assert refused.value.details["retry_after_ms"]
    with pytest.raises(ResourceExhausted):
        await connections.acquire(soon(-1))
    connections.release(lent[0])
    assert await connections.acquire(soon(0.02)) is lent[0]


async def test_patience_has_a_bound(connections: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the deadline is, a caller waits for a connection only so long."""
    monkeypatch.setattr(pool, "PATIENCE_S", 0.02)
    for _ in range(SIZE):
        await connections.acquire(soon())
    with pytest.raises(ResourceExhausted):
        await connections.acquire(soon(60))


async def test_who_gives_up_waiting(connections: Pool) -> None:
    """A cancelled caller leaves the others their turn, also when a connection had just been handed to it."""
    lent = [await connections.acquire(soon()) for _ in range(SIZE)]
    leaver, stayer = (asyncio.create_task(connections.acquire(soon())) for _ in range(2))
    await asyncio.sleep(0)
    connections.release(lent[0])
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert await stayer is lent[0]
    assert connections.open_count == SIZE


async def test_a_connection_that_is_gone_is_replaced(connections: Pool, node: Node) -> None:
    """A connection that the server ended while it was free is not lent again; its place is free at once."""
    link = await connections.acquire(soon())
    connections.release(link)
    node.drop_connections(application=pool.APPLICATION)
    await until(link.raw.is_closed, "the connection is gone")
    again = await connections.acquire(soon())
    assert again is not link
    assert connections.open_count == 1
    lent = [again, *[await connections.acquire(soon()) for _ in range(SIZE - 1)]]
    waiting = asyncio.create_task(connections.acquire(soon()))
    await asyncio.sleep(0)
    connections.drop(lent[1])
    assert await waiting not in lent
    assert connections.open_count == SIZE


async def test_a_statement_that_is_given_up(connections: Pool, node: Node) -> None:
    """A cancelled statement is ended on the server, and its connection is lent again when that is done."""
    link = await connections.acquire(soon())
    pid = await pid_of(link)
    running = asyncio.create_task(link.fetch("SELECT pg_sleep(60)", (), 60.0))
    await until(
        lambda: node.one("SELECT state FROM pg_stat_activity WHERE pid = %s", pid) == "active", "it runs"
    )
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    connections.release(link, is_doubtful=True)
    for _ in range(SIZE):
        lent = await asyncio.wait_for(connections.acquire(soon()), 10)
        if lent is link:
            break
    else:
        lent = await asyncio.wait_for(connections.acquire(soon()), 10)
    assert lent is link
    assert await pid_of(link) == pid


async def test_opening_fails(tmp_path: Path) -> None:
    """A connection that cannot be opened takes no place, and says that nothing was executed."""
    where = opening.parse("postgresql://u:p@127.0.0.1:1/d").where
    connections = Pool(where, 1)
    for _ in range(3):
        with pytest.raises(StatementFailed):
            await connections.acquire(soon(5))
    assert connections.open_count == 0
    await connections.close()
    with pytest.raises(Unavailable):
        await connections.acquire(soon())


async def test_how_connections_are_set_up(connections: Pool, node: Node) -> None:
    """Timeouts are in force, just-in-time compilation is off, and synchronous_commit is as the server has it."""
    link = await connections.acquire(soon())
    found = await link.fetch(
        "SELECT name, setting FROM pg_settings WHERE name = ANY($1)",
        (
            [
                "statement_timeout",
                "lock_timeout",
                "idle_in_transaction_session_timeout",
                "jit",
                "synchronous_commit",
                "default_transaction_isolation",
                "application_name",
            ],
        ),
        5.0,
    )
    assert {row["name"]: row["setting"] for row in found} == {
        "statement_timeout": "30000",
        "lock_timeout": "5000",
        "idle_in_transaction_session_timeout": "60000",
        "jit": "off",
        "synchronous_commit": node.setting("synchronous_commit"),
        "default_transaction_isolation": "read committed",
        "application_name": "flowfabric",
    }


async def test_a_proxy_is_asked_for_nothing(node: Node) -> None:
    """Behind a proxy that pools transactions a connection asks for no settings and prepares no statements."""
    connections = Pool(opening.parse(f"{node.url}?pooler=transaction").where, 1)
    link = await connections.acquire(soon())
    assert (await link.fetch("SELECT $1::int + 1", (1,), 5.0))[0][0] == 2
    assert (await link.fetch("SELECT count(*) FROM pg_prepared_statements", (), 5.0))[0][0] == 0
    assert (await link.fetch("SHOW statement_timeout", (), 5.0))[0][0] == "0"
    await connections.close()
    assert pool.server_settings("x", is_pooled=True) == {"application_name": "x"}


async def test_uuids_are_text(connections: Pool) -> None:
    """UUIDs go in and come out as text, alone and in arrays."""
    link = await connections.acquire(soon())
    uuid = ids.mint_uuid()
    assert decode_uuid(encode_uuid(uuid)) == uuid
    (row,) = await link.fetch("SELECT $1::uuid, $2::uuid[], $1::text", (uuid, [uuid, None]), 5.0)
    assert list(row) == [uuid, [uuid, None], uuid]


async def test_a_server_with_few_connections(tmp_path: Path) -> None:
    """When the server itself has no connection left, calls wait for one of their own pool and none fails."""
    tmp_path.chmod(0o711)
    with single_node(tmp_path / "node", max_connections=8) as node:
        backend = await backends.connect(f"{node.url}?pool_size=20")
        try:
            await asyncio.gather(*(backend.ping() for _ in range(20)))
        finally:
            await backend.close()


async def test_a_small_pool_serves_many(node: Node) -> None:
    """A pool of one serves everybody, one after the other."""
    backend = await backends.connect(f"{node.url}?pool_size=1")
    try:
        await asyncio.gather(*(backend.ping() for _ in range(50)))
    finally:
        await backend.close()
    assert shared_node() is node
