"""Calls that go well: values, order, pipelining, size, and every way to be let in."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.backends.valkey.wire import Client, ServerError, connect, parse_url
from flowfabric.contract.errors import Misuse, Unavailable
from tests.backends.valkey.wire.between import proxied
from tests.backends.valkey.wire.conftest import Connects
from tests.backends.valkey.wire.servers import Cluster, Server, free_port


async def test_replies_are_python_values(client: Client) -> None:
    """Strings are bytes, maps dicts, sets lists, null None, and an error is a value among the others."""
    replies = await client.execute(
        0,
        [
            ("SET", "text", b"\x00\xff\r\n"),
            ("GET", "text"),
            ("GET", "absent"),
            ("INCRBY", "number", 2**40),
            ("ZADD", "scores", 1.5, "member"),
            ("ZSCORE", "scores", "member"),
            ("HSET", "map", "field", "value"),
            ("HGETALL", "map"),
            ("SADD", "set", "a"),
            ("SMEMBERS", "set"),
            ("LPUSH", "text", "x"),
            ("EVAL", "return {1, {ok='fine'}, {err='OOPS not now'}, true}", 0),
            ("INFO", "server"),
        ],
    )
    assert replies[:10] == [b"OK", b"\x00\xff\r\n", None, 2**40, 1, 1.5, 1, {b"field": b"value"}, 1, [b"a"]]
    assert isinstance(replies[10], ServerError)
    assert replies[10].code == "WRONGTYPE"
    assert isinstance(replies[11], list)
    assert replies[11][:2] == [1, b"fine"]
    assert isinstance(replies[11][2], ServerError)
    assert isinstance(replies[12], bytes)


async def test_ten_thousand_calls_at_once_each_get_their_own_reply(client: Client) -> None:
    """Replies are matched to callers under 10,000 concurrent calls of one to three commands."""

    async def call(number: int) -> None:
        commands = [("ECHO", f"{number}.{position}") for position in range(number % 3 + 1)]
        replies = await client.execute(number % 16_384, commands)
        assert replies == [f"{number}.{position}".encode() for position in range(number % 3 + 1)]

    await asyncio.gather(*(call(number) for number in range(10_000)))


async def test_calls_of_one_turn_are_one_write(server: Server, client: Client) -> None:
    """A hundred callers in one turn of the event loop cost the server a handful of reads, not a hundred."""
    before = _reads(server)
    await asyncio.gather(*(client.execute(0, [("SET", f"k{number}", number)]) for number in range(100)))
    assert _reads(server) - before <= 6  # one of them is the question itself


async def test_a_group_runs_in_order_on_one_connection(client: Client) -> None:
    """The commands of one call are executed one after the other on the same connection."""
    replies = await client.execute(0, [("CLIENT", "ID"), ("SET", "a", 1), ("INCR", "a"), ("CLIENT", "ID")])
    assert replies[0] == replies[3]
    assert replies[2] == 2


async def test_the_decisive_command_need_not_be_the_last(server: Server, connects: Connects) -> None:
    """A group is sent again for its decisive command's sake only; "not now" elsewhere is an answer like any other."""
    with Server("--replicaof", f"127.0.0.1 {server.port}") as replica:
        client = await connects(replica.url)
        replies = await client.execute(0, [("PING",), ("SET", "a", 1)], decisive=0)
        assert replies[0] == b"PONG"
        assert isinstance(replies[1], ServerError)
        assert replies[1].code == "READONLY"
        with pytest.raises(Unavailable, match="READONLY"):
            await client.execute(0, [("SET", "a", 1), ("PING",)], decisive=0, timeout_s=0.2)
        assert (await client.execute(0, [("SET", "a", 1), ("PING",)]))[1] == b"PONG"


async def test_huge_and_tiny_replies_mix(client: Client) -> None:
    """A reply of 64 MiB and a thousand small ones arrive whole, side by side."""
    size = 64 * 1024 * 1024
    assert await client.execute(0, [("SETRANGE", "huge", size - 1, "x")]) == [size]

    async def read_huge() -> None:
        (reply,) = await client.execute(0, [("GET", "huge")])
        assert isinstance(reply, bytes)
        assert len(reply) == size

    async def read_tiny(number: int) -> None:
        assert await client.execute(0, [("ECHO", number)]) == [b"%d" % number]

    await asyncio.gather(read_huge(), *(read_tiny(number) for number in range(1_000)))
    await client.execute(0, [("DEL", "huge")])


async def test_huge_requests_are_written_as_fast_as_they_are_read(client: Client) -> None:
    """Sixteen values of 4 MiB written at once arrive whole."""
    value = b"v" * (4 * 1024 * 1024)
    written = await asyncio.gather(*(client.execute(0, [("SET", f"k{i}", value)]) for i in range(16)))
    assert written == [[b"OK"]] * 16
    assert await client.execute(0, [("STRLEN", f"k{i}") for i in range(16)]) == [len(value)] * 16


async def test_a_reply_of_many_parts(client: Client) -> None:
    """A list of 100,000 elements is read."""
    script = "local out = {} for i = 1, 100000 do out[i] = tostring(i) end return out"
    (reply,) = await client.execute(0, [("EVAL", script, 0)])
    assert isinstance(reply, list)
    assert reply[-1] == b"100000"


async def test_load_spreads_over_two_connections(server: Server, client: Client) -> None:
    """With many calls in flight a node's second connection is opened and used; never a third."""
    for _ in range(3):
        await asyncio.gather(*(client.execute(0, [("PING",)]) for _ in range(2_000)))
    assert _connections(server) == 2


async def test_one_connection_is_enough_for_little(server: Server, client: Client) -> None:
    """A client that makes few calls keeps one connection."""
    for _ in range(10):
        await asyncio.gather(*(client.execute(0, [("PING",)]) for _ in range(8)))
    assert _connections(server) == 1


async def test_a_single_server_is_its_only_primary(server: Server, client: Client) -> None:
    """One server owns every slot and is the only primary."""
    assert client.primaries() == (server.name,)
    assert client.node_of(0) == client.node_of(16_383) == server.name
    assert not client.is_cluster
    assert await client.on_primaries([("PING",), ("ECHO", 1)]) == {server.name: [b"PONG", b"1"]}
    assert await client.on_node(server.name, [("PING",)]) == [b"PONG"]


async def test_a_server_that_is_no_primary_takes_no_calls(client: Client) -> None:
    """A call to a server that is not among the primaries fails at once."""
    with pytest.raises(Unavailable, match="not a primary"):
        await client.on_node("127.0.0.1:1", [("PING",)])


async def test_unix_socket(server: Server, connects: Connects) -> None:
    """A client reaches the server by its socket's path, in the database asked for."""
    client = await connects(f"valkey+unix://{server.path}?db=3")
    await client.execute(0, [("SET", "here", 3)])
    assert client.primaries() == (server.path,)
    assert server.call("GET", "here") is None


async def test_database_number(server: Server, connects: Connects) -> None:
    """Keys are in the database of the URL."""
    third, first = await connects(f"{server.url[:-1]}3"), await connects(server.url)
    await third.execute(0, [("SET", "here", 3)])
    assert await third.execute(0, [("GET", "here")]) == [b"3"]
    assert await first.execute(0, [("GET", "here")]) == [None]


async def test_database_that_is_not_there(server: Server) -> None:
    """A database number beyond the server's is explained when connecting."""
    with pytest.raises(Misuse, match="no database 99"):
        await connect(parse_url(f"{server.url[:-1]}99"))


async def test_acl_user(server: Server, connects: Connects) -> None:
    """A user with few rights is let in; what the ACL forbids is an error reply, not a broken connection."""
    server.call("ACL", "SETUSER", "app", "on", ">s3cr:t/", "~mine:*", "+get", "+set")
    try:
        client = await connects(f"valkey://app:s3cr%3At%2F@{server.name}")
        set_mine, get_other, get_mine = await client.execute(
            0, [("SET", "mine:a", 1), ("GET", "other"), ("GET", "mine:a")]
        )
        assert (set_mine, get_mine) == (b"OK", b"1")
        assert isinstance(get_other, ServerError)
        assert get_other.code == "NOPERM"
    finally:
        server.call("ACL", "DELUSER", "app")


@pytest.mark.parametrize("credentials", ["app:wrong@", "nobody:s3cret@", ":wrong@"])
async def test_wrong_password(server: Server, credentials: str) -> None:
    """A wrong user or password is explained at once, without repeating it."""
    server.call("ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+@all")
    if credentials.startswith(":"):
        server.call("CONFIG", "SET", "requirepass", "right")
    try:
        with pytest.raises(Misuse, match="user or password") as refused:
            await connect(parse_url(f"valkey://{credentials}{server.name}"))
        assert "wrong" not in refused.value.message.replace("WRONGPASS", "").replace("wrong password", "")
    finally:
        server.call("CONFIG", "SET", "requirepass", "")
        server.call("ACL", "DELUSER", "app")


async def test_missing_password(server: Server) -> None:
    """A server that asks for a password is told apart from one that is down."""
    server.call("CONFIG", "SET", "requirepass", "right")
    try:
        with pytest.raises(Misuse, match="asks for a password"):
            await connect(parse_url(server.url))
    finally:
        server.call("CONFIG", "SET", "requirepass", "")


async def test_nobody_there() -> None:
    """Connecting to a port nobody listens on is tried until the deadline, then says which address and why."""
    port = free_port()
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        await connect(parse_url(f"valkey://me:hunter2@127.0.0.1:{port}"), timeout_s=0.2)


async def test_a_server_that_starts_late(connects: Connects) -> None:
    """Connecting waits for a server that comes up before the deadline."""
    with Server() as server:
        server.kill()
        connecting = asyncio.create_task(connects(server.url, timeout_s=10))
        await asyncio.to_thread(server.start)
        assert await (await connecting).execute(0, [("PING",)]) == [b"PONG"]


async def test_cluster_and_single_server_are_not_mixed_up(server: Server, one_cluster: Cluster) -> None:
    """A URL of the wrong kind is refused with the kind to use."""
    with pytest.raises(Misuse, match=r"valkey\+cluster://"):
        await connect(parse_url(one_cluster.nodes[0].url))
    with pytest.raises(Misuse, match="single server"):
        await connect(parse_url(f"valkey+cluster://{server.name}"))


async def test_a_closed_client_takes_no_calls(server: Server) -> None:
    """After close every call is `Misuse`, and closing again does nothing."""
    client = await connect(parse_url(server.url))
    await client.close()
    await client.close()
    with pytest.raises(Misuse):
        await client.execute(0, [("PING",)])
    with pytest.raises(Misuse):
        await client.on_primaries([("PING",)])


async def test_closing_ends_calls_under_way(server: Server) -> None:
    """A call that waits when the client is closed ends with an error, not with silence."""
    async with proxied(server.port) as proxy:
        client = await connect(parse_url(proxy.url))
        proxy.pass_replies.clear()
        call = asyncio.create_task(client.execute(0, [("PING",)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(Unavailable, match="client was closed"):
            await call


def _reads(server: Server) -> int:
    for line in server.call("INFO", "stats").splitlines():
        name, _, value = line.partition(b":")
        if name == b"total_reads_processed":
            return int(value)
    raise AssertionError("no such statistic")


def _connections(server: Server) -> int:
    return server.call("CLIENT", "LIST").count(b"lib-name=flowfabric ")
