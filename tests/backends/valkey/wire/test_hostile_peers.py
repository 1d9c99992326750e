"""Peers that break the protocol: the connection dies, callers learn the truth, nobody gets another's reply."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re

import pytest

from flowfabric.backends.valkey.wire import connect, parse_url
from flowfabric.contract.errors import Misuse, OutcomeUnknown, Unavailable
from tests.backends.valkey.wire.between import WELCOME, peer
from tests.backends.valkey.wire.conftest import Connects
from tests.backends.valkey.wire.servers import Server

GARBAGE = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\x00\x01\x02\x03\r\n",
    b"$-7\r\n",
    b"*99999999999\r\n",
    b":12a\r\n",
    b",x\r\n",
    b"#maybe\r\n",
    b"%1\r\n*1\r\n:1\r\n:1\r\n",
    b"*1\r\n" * 2_000 + b"!\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: repr(garbage[:16]))
async def test_garbage_kills_the_connection(connects: Connects, garbage: bytes) -> None:
    """Bytes that are no reply end the connection; what had been sent is reported as unknown."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"+one\r\n" + garbage)
        await reader.read()

    async with peer(talk) as url:
        client = await connects(url)
        first, second = await asyncio.gather(
            client.execute(0, [("ECHO", "one")]), client.execute(0, [("ECHO", "two")]), return_exceptions=True
        )
        assert first == [b"one"]
        assert isinstance(second, OutcomeUnknown)


async def test_a_reply_nobody_asked_for_kills_the_connection(connects: Connects) -> None:
    """One reply too many makes every later one doubtful: none of them reaches a caller."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"+mine\r\n+whose?\r\n")
        while await reader.read(100):
            writer.write(b"+shifted\r\n")

    async with peer(talk) as url:
        client = await connects(url)
        assert await client.execute(0, [("ECHO", "mine")]) == [b"mine"]
        for _ in range(3):
            # Each new connection misbehaves in the same way; no caller ever sees a shifted reply.
            assert await client.execute(0, [("ECHO", "mine")]) == [b"mine"]


async def test_push_messages_are_not_replies(connects: Connects) -> None:
    """Push messages between, before and after replies are skipped."""
    push = b">2\r\n+invalidate\r\n*1\r\n+key\r\n"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            writer.write(push + b"+first\r\n" + push + push + b"+second\r\n" + push)

    async with peer(talk) as url:
        client = await connects(url)
        for _ in range(3):
            assert await client.execute(0, [("GET", "a"), ("GET", "b")]) == [b"first", b"second"]


async def test_subscribing_on_a_shared_connection_is_stopped(server: Server, connects: Connects) -> None:
    """A command answered by a push would shift all replies after it, so the connection is dropped."""
    client = await connects(server.url)
    with pytest.raises(OutcomeUnknown, match="subscription"):
        await client.execute(0, [("SUBSCRIBE", "channel")])
    assert await client.execute(0, [("ECHO", "mine")]) == [b"mine"]


async def test_a_server_that_unsubscribed_first(connects: Connects) -> None:
    """An unsubscription that crosses the server's own is refused by some versions: nobody else gets that refusal."""
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(10_000):
            for kind, name in re.findall(rb"(s(?:un)?subscribe)\r\n\$1\r\n(.)", data.lower()):
                asked.append(kind + b" " + name)
                writer.write(b">3\r\n$%d\r\n%s\r\n$1\r\n%s\r\n:0\r\n" % (len(kind), kind, name))
                if kind == b"sunsubscribe":
                    writer.write(b"-NOSUB 'sunsubscribe' command executed not in subscribed mode\r\n")

    async with peer(talk) as url:
        subscriber = (await connects(url)).subscriber()
        await subscriber.add(b"a", 0, asked.append)
        await subscriber.add(b"b", 0, asked.append)
        subscriber.remove(b"a", asked.append)
        await subscriber.add(b"c", 0, asked.append)
        assert asked[:3] == [b"ssubscribe a", b"ssubscribe b", b"sunsubscribe a"]
        assert b"ssubscribe c" in asked[3:]


async def test_replies_in_tiny_pieces(connects: Connects) -> None:
    """Replies that arrive byte by byte are put together."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            for byte in b"*2\r\n$3\r\none\r\n%1\r\n+k\r\n:2\r\n+OK\r\n":
                writer.write(bytes((byte,)))
                await asyncio.sleep(0)

    async with peer(talk) as url:
        client = await connects(url)
        assert await client.execute(0, [("A",), ("B",)]) == [[b"one", {b"k": 2}], b"OK"]


async def test_random_bytes_never_hang_a_caller(connects: Connects) -> None:
    """Whatever a peer answers, each caller gets an answer or an error by its deadline."""
    noise = random.Random(7)
    alphabet = b"+-:$*%~>#,_(=!|\r\n0123456789abc\xff"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            writer.write(bytes(noise.choice(alphabet) for _ in range(noise.randrange(1, 60))) + b"\r\n")

    async with peer(talk) as url:
        client = await connects(url)
        loop = asyncio.get_running_loop()
        for _ in range(25):
            begun = loop.time()
            with contextlib.suppress(Unavailable):
                await client.execute(0, [("PING",)], timeout_s=0.05)
            assert loop.time() - begun < 0.5


@pytest.mark.parametrize(
    ("says", "error", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Misuse, "does not speak"),
        (b"-ERR unknown command 'HELLO'\r\n" * 3, Misuse, "does not know HELLO"),
        (b"-NOPROTO unsupported protocol version\r\n" * 3, Misuse, "does not let us in"),
        (b"-DENIED protected mode\r\n" * 3, Misuse, "does not let us in"),
        (b"\x15\x03\x01\x00\x02\x02\x46", Misuse, "valkeys://"),
        (b"+OK\r\n" * 3, Misuse, "no Valkey does"),
        (b"-ERR max number of clients reached\r\n" * 3, Unavailable, "max number of clients"),
        (b"", Unavailable, "closed the connection"),
    ],
)
async def test_a_failed_handshake_is_explained(says: bytes, error: type[Unavailable], why: str) -> None:
    """What a person must put right is `Misuse` at once; what may pass is tried again until the deadline."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(says)
        await writer.drain()
        if says:
            await reader.read()
        else:
            writer.close()

    async with peer(talk, welcomes=False) as url:
        with pytest.raises(error, match=why):
            await connect(parse_url(url), timeout_s=0.2)


async def test_a_peer_that_hangs_up_at_once_is_not_hammered(connects: Connects) -> None:
    """A server that drops connections right after the handshake is retried with growing pauses."""
    times: list[float] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(asyncio.get_running_loop().time())

    async with peer(talk) as url:
        client = await connects(url)
        with pytest.raises(Unavailable):
            await client.execute(0, [("PING",)], timeout_s=0.6, repeatable=True)
        assert 3 <= len(times) <= 12


async def test_a_silent_peer_costs_the_deadline(connects: Connects) -> None:
    """A peer that accepts and says nothing makes connecting fail at the deadline, not hang."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await reader.read()

    async with peer(talk, welcomes=False) as url:
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await connect(parse_url(url), timeout_s=0.2)


def test_the_welcome_is_a_real_handshake() -> None:
    """The fake peer's greeting has the three replies the handshake asks for."""
    assert WELCOME.startswith(b"%5\r\n")
    assert WELCOME.count(b"+OK\r\n") == 1
