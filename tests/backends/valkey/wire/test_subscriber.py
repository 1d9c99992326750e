"""Sharded publish and subscribe on one server: callbacks, acknowledgement, and every kind of loss."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.backends.valkey.wire import Client, Subscriber, connect, parse_url
from flowfabric.backends.valkey.wire.dialing import Dialer
from flowfabric.backends.valkey.wire.topology import Topology
from flowfabric.contract.errors import Misuse, Unavailable
from tests.backends.valkey.wire.between import proxied, until
from tests.backends.valkey.wire.conftest import Connects
from tests.backends.valkey.wire.servers import Server


async def test_messages_reach_every_callback(server: Server, client: Client) -> None:
    """Every callback of a channel gets each message once, in order; other channels' messages do not come."""
    subscriber = client.subscriber()
    one: list[bytes] = []
    two: list[bytes] = []
    await subscriber.add(b"a", 0, one.append)
    await subscriber.add(b"a", 0, two.append)
    assert server.call("PUBSUB", "SHARDNUMSUB", "a") == [b"a", 1]
    await client.execute(0, [("SPUBLISH", "b", "other"), *(("SPUBLISH", "a", n) for n in range(100))])
    await until(lambda: len(two) == 100, "all messages came")
    assert one == two == [b"%d" % n for n in range(100)]


async def test_a_confirmed_subscription_misses_nothing(server: Server, client: Client) -> None:
    """What is published after `add` returned arrives, for 2,000 channels added at once."""
    got: dict[int, list[bytes]] = {number: [] for number in range(2_000)}
    subscriber = client.subscriber()

    async def listen(number: int) -> None:
        await subscriber.add(b"ch%d" % number, number, got[number].append)
        assert await client.execute(0, [("SPUBLISH", f"ch{number}", "now")]) == [1]

    await asyncio.gather(*(listen(number) for number in range(2_000)))
    await until(lambda: all(messages == [b"now"] for messages in got.values()), "all messages came")


async def test_the_last_callback_takes_the_subscription_with_it(server: Server, client: Client) -> None:
    """The server is told when nobody listens any more, and not before; adding again works."""
    subscriber = client.subscriber()
    got: list[bytes] = []

    def other(message: bytes) -> None:
        got.append(message)

    await subscriber.add(b"a", 0, got.append)
    await subscriber.add(b"a", 0, other)
    subscriber.remove(b"a", got.append)
    assert server.call("PUBSUB", "SHARDNUMSUB", "a") == [b"a", 1]
    subscriber.remove(b"a", other)
    subscriber.remove(b"a", other)
    subscriber.remove(b"never", other)
    await until(lambda: server.call("PUBSUB", "SHARDNUMSUB", "a") == [b"a", 0], "the server was told")
    for _ in range(20):
        await subscriber.add(b"a", 0, got.append)
        subscriber.remove(b"a", got.append)
    await subscriber.add(b"a", 0, got.append)
    await client.execute(0, [("SPUBLISH", "a", "last")])
    await until(lambda: got == [b"last"], "the message came")


async def test_a_lost_connection_is_replaced_and_told(server: Server, client: Client) -> None:
    """After a loss channels are subscribed to again, and each callback gets b"" because something may be missing."""
    got: dict[bytes, list[bytes]] = {b"a": [], b"b": []}
    subscriber = client.subscriber()
    for channel, messages in got.items():
        await subscriber.add(channel, 0, messages.append)
    for rounds in range(1, 4):
        server.call("CLIENT", "KILL", "TYPE", "PUBSUB")
        await until(lambda: all(m.count(b"") == rounds for m in got.values()), "told")  # noqa: B023
        await client.execute(0, [("SPUBLISH", "a", rounds), ("SPUBLISH", "b", rounds)], repeatable=True)
        await until(lambda: all(m[-1] == b"%d" % rounds for m in got.values()), "came")  # noqa: B023


async def test_a_restarted_server_is_subscribed_to_again(connects: Connects) -> None:
    """Subscriptions survive a restart of the server."""
    with Server() as server:
        client = await connects(server.url)
        got: list[bytes] = []
        await client.subscriber().add(b"a", 0, got.append)
        server.kill()
        await asyncio.sleep(0.1)
        await asyncio.to_thread(server.start)
        await until(lambda: got == [b""], "the loss was told")
        await client.execute(0, [("SPUBLISH", "a", "again")])
        await until(lambda: got == [b"", b"again"], "the message came")


async def test_a_dead_peer_is_noticed_by_pings(server: Server) -> None:
    """A peer that falls silent is given up after an unanswered ping, and its channels are subscribed to again."""
    async with proxied(server.port) as proxy:
        address = parse_url(proxy.url)
        client = await connect(address)
        dialer = Dialer(address)
        topology = Topology(dialer, address.seeds, connections_per_node=1)
        topology.start_single(*await dialer.dial(address.seeds[0]))
        subscriber = Subscriber(topology, dialer, ping_every_s=1.1)
        try:
            got: list[bytes] = []
            await subscriber.add(b"a", 0, got.append)
            accepted = proxy.accepted
            proxy.pass_requests.clear()
            await until(lambda: proxy.accepted > accepted, "another connection was tried")
            proxy.pass_requests.set()
            await until(lambda: got == [b""], "the loss was told")
        finally:
            await subscriber.close()
            await topology.close()
            await client.close()


async def test_without_a_server_adding_is_unavailable(server: Server, connects: Connects) -> None:
    """A subscription that is not confirmed by its deadline fails and leaves nothing behind."""
    async with proxied(server.port) as proxy:
        client = await connects(proxy.url)
        await proxy.shut()
        got: list[bytes] = []
        with pytest.raises(Unavailable, match="not confirmed"):
            await client.subscriber().add(b"a", 0, got.append, timeout_s=0.2)
        await proxy.open()
        await client.subscriber().add(b"b", 0, got.append)
        assert server.call("PUBSUB", "SHARDCHANNELS") == [b"b"]


async def test_a_cancelled_add_leaves_nothing_behind(server: Server, client: Client) -> None:
    """A caller cancelled while it waits for the confirmation is not subscribed."""
    subscriber = client.subscriber()
    got: list[bytes] = []
    adding = asyncio.create_task(subscriber.add(b"a", 0, got.append))
    await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    await subscriber.add(b"b", 0, got.append)
    await until(lambda: server.call("PUBSUB", "SHARDCHANNELS") == [b"b"], "only b is subscribed to")


async def test_a_forbidden_channel_is_explained(server: Server, connects: Connects) -> None:
    """A channel the ACL forbids is `Misuse`; allowed ones are not disturbed."""
    server.call("ACL", "SETUSER", "app", "on", ">secret", "+@all", "~*", "&mine:*")
    try:
        client = await connects(f"valkey://app:secret@{server.name}")
        got: list[bytes] = []
        await client.subscriber().add(b"mine:a", 0, got.append)
        with pytest.raises(Misuse, match="NOPERM"):
            await client.subscriber().add(b"other", 0, got.append)
        server.call("SPUBLISH", "mine:a", "fine")
        await until(lambda: got == [b"fine"], "the message came")
    finally:
        server.call("ACL", "DELUSER", "app")


async def test_a_callback_that_raises_disturbs_nobody(server: Server, client: Client) -> None:
    """One callback's bug is reported to the event loop; the others get their messages."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    got: list[bytes] = []

    def broken(message: bytes) -> None:
        raise IndexError(message)

    await client.subscriber().add(b"a", 0, broken)
    await client.subscriber().add(b"a", 0, got.append)
    await client.execute(0, [("SPUBLISH", "a", 1), ("SPUBLISH", "a", 2)])
    await until(lambda: got == [b"1", b"2"], "the messages came")
    assert [type(error) for error in reported] == [IndexError, IndexError]
