"""What stands between client and server in these tests: a proxy that misbehaves on command, and a peer made of lies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from tests import proxy
from tests.proxy import settled, until

__all__ = ["Proxy", "peer", "proxied", "until"]


class Proxy(proxy.Proxy):
    """A proxy before a Valkey server."""

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"


@contextlib.asynccontextmanager
async def proxied(port: int) -> AsyncIterator[Proxy]:
    """Open a proxy before the server at `port`."""
    found = Proxy(port)
    await found.open()
    try:
        yield found
    finally:
        await found.close()


HELLO: Final = (
    b"%5\r\n$6\r\nserver\r\n$6\r\nvalkey\r\n$7\r\nversion\r\n$5\r\n9.1.2\r\n$5\r\nproto\r\n:3\r\n"
    b"$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
)
INFO: Final = b"run_id:0123456789\r\n"
WELCOME: Final = HELLO + b"+OK\r\n" + b"$%d\r\n%b\r\n" % (len(INFO), INFO)

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def peer(talk: Talk, *, welcomes: bool = True) -> AsyncIterator[str]:
    """Listen as something that is no Valkey: after a proper handshake (or at once) `talk` decides; give the URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            if welcomes:
                await reader.readuntil(b"INFO\r\n$6\r\nserver\r\n")
                writer.write(WELCOME)
            await talk(reader, writer)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"valkey://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await settled()
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()
        await settled()
