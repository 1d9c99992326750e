"""Proxies that lend a server's connection for one transaction: PgBouncer where there is one, and always a small one.

The small one is stricter than any real one: each transaction gets another connection than the one before, and what a
server tells a connection that is not lent is lost. It checks no passwords: the first clients log in through it, the
later ones are let in.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from flowfabric.provision.loopback import HOST, LoopbackServer, is_free
from flowfabric.provision.processes import BoundProcess
from flowfabric.provision.unprivileged import server_user

PGBOUNCER: Final = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
SERVER_CONNECTIONS: Final = 3
_STARTUP: Final = 196_608
_REFUSED: Final = frozenset({80_877_103, 80_877_104})
"""Requests for encryption."""
_ASKS_CLIENT: Final = frozenset({3, 5, 10, 11})
"""Requests of a login that the client answers."""
_ENDS: Final = frozenset({b"Q", b"S", b"F"})
"""Messages of clients after which the server says that it is ready."""
_BETWEEN: Final = frozenset({b"P", b"B", b"D", b"E", b"C", b"H"})


class Pooler(Protocol):
    """A proxy."""

    @property
    def port(self) -> int:
        """Where it listens."""
        ...


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one message; return its type and all of it."""
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!I", head[1:])
    return head[:1], head + await reader.readexactly(length - 4)


class _Server:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.client: _Client | None = None


class _Client:
    """One client: the connection it has been lent, and how many answers it waits for."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.server: _Server | None = None
        self.unanswered = 0
        self.is_between = False


class SmallPooler:
    """A proxy of our own, in this event loop."""

    def __init__(self, port: int) -> None:
        self.port: int = 0
        self.lost: Final[list[bytes]] = []
        """Notifications that came for nobody."""
        self._target = port
        self._greeting = b""
        self._logins = 0
        self._free: Final[deque[_Server]] = deque()
        self._waiting: Final[deque[asyncio.Future[_Server]]] = deque()
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._writers: Final[set[asyncio.StreamWriter]] = set()

    async def open(self) -> None:
        """Listen."""
        self._listener = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Drop every connection."""
        self._listener.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        client = _Client(writer)
        try:
            if await self._login(reader, writer):
                await self._serve(client, reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            if client.server is not None:
                # In the middle of something: its connection is of no use to others.
                client.server.writer.transport.abort()
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _login(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            length, code = struct.unpack("!II", await reader.readexactly(8))
            rest = await reader.readexactly(length - 8)
            if code not in _REFUSED:
                break
            writer.write(b"N")
        if code != _STARTUP:
            return False
        self._logins += 1
        if self._logins > SERVER_CONNECTIONS:
            while not self._greeting:  # noqa: ASYNC110 (only while the first clients log in)
                await asyncio.sleep(0.001)
            writer.write(self._greeting)
            return True
        up_reader, up_writer = await asyncio.open_connection(HOST, self._target)
        self._writers.add(up_writer)
        up_writer.write(struct.pack("!II", length, code) + rest)
        greeting = b""
        while True:
            kind, message = await _message(up_reader)
            writer.write(message)
            if kind == b"R":
                (request,) = struct.unpack("!I", message[5:9])
                if request in _ASKS_CLIENT:
                    up_writer.write((await _message(reader))[1])
                elif request == 0:
                    greeting = message
                continue
            if kind == b"E":
                await writer.drain()
                return False
            greeting += message
            if kind == b"Z":
                break
        self._greeting = greeting
        server = _Server(up_reader, up_writer)
        task = asyncio.create_task(self._answer(server))
        self._tasks.add(task)
        self._give(server)
        return True

    async def _serve(self, client: _Client, reader: asyncio.StreamReader) -> None:
        """Pass on what a client sends."""
        while True:
            kind, message = await _message(reader)
            if kind == b"X" and client.server is None:
                return
            if client.server is None:
                server = await self._take()
                client.server, server.client = server, client
            if kind in _ENDS:
                client.unanswered += 1
                client.is_between = False
            elif kind in _BETWEEN:
                client.is_between = True
            client.server.writer.write(message)

    async def _answer(self, server: _Server) -> None:
        """Pass on what a server sends, to whom it is lent to."""
        try:
            while True:
                kind, message = await _message(server.reader)
                client = server.client
                if client is None:
                    if kind == b"A":
                        self.lost.append(message)
                    continue
                client.writer.write(message)
                if kind == b"Z":
                    client.unanswered -= 1
                    if message[5:6] == b"I" and client.unanswered == 0 and not client.is_between:
                        client.server, server.client = None, None
                        self._give(server)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if server.client is not None:
                server.client.writer.transport.abort()

    async def _take(self) -> _Server:
        if self._free:
            return self._free.popleft()
        waiter: asyncio.Future[_Server] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return await waiter

    def _give(self, server: _Server) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(server)
                return
        self._free.append(server)


class PgBouncer(LoopbackServer):
    """The real one, with a handful of connections to a server."""

    program = "pgbouncer"
    log_name = "pgbouncer.log"

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder, port=None, options={})
        self._server = urlsplit(url)

    @property
    def url(self) -> str:
        return f"postgresql://{self._server.username}@{HOST}:{self.port}/postgres"

    def command(self) -> list[str]:
        assert PGBOUNCER is not None
        return [PGBOUNCER, str(self.folder / "pgbouncer.ini")]

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        users = self.folder / "users.txt"
        users.write_text(f'"{self._server.username}" "{self._server.password}"\n')
        options: Mapping[str, object] = {
            "listen_addr": HOST,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
            "pool_mode": "transaction",
            "default_pool_size": SERVER_CONNECTIONS,
            "max_client_conn": 200,
            "server_round_robin": 1,
        }
        (self.folder / "pgbouncer.ini").write_text(
            f"[databases]\npostgres = host={HOST} port={self._server.port} dbname=postgres\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in options.items())
        )
        self.folder.chmod(0o755)
        for file in self.folder.iterdir():
            file.chmod(0o644)

    def launch(self) -> BoundProcess:
        return BoundProcess(
            self.command(),
            output=self.folder / self.log_name,
            environment=dict(os.environ),
            user=server_user(),
        )

    def serves(self) -> bool:
        return not is_free(self.port)


@asynccontextmanager
async def small_pooler(port: int) -> AsyncIterator[SmallPooler]:
    """Run a proxy of our own in front of a server."""
    pooler = SmallPooler(port)
    await pooler.open()
    try:
        yield pooler
    finally:
        await pooler.close()


@asynccontextmanager
async def pgbouncer(url: str) -> AsyncIterator[PgBouncer]:
    """Run PgBouncer in front of a server."""
    # Root's runs as somebody else, who has to pass through.
    folder = Path(tempfile.mkdtemp(prefix="flowfabric-tests-"))
    folder.chmod(0o755)
    pooler = PgBouncer(folder / "pgbouncer", url)
    try:
        await asyncio.to_thread(pooler.start)
        yield pooler
    finally:
        await asyncio.to_thread(pooler.kill)
        shutil.rmtree(folder)
