"""One request and its answer, between the connection and the application.

It speaks ASGI, and offers as an extension of it what nearly every answer needs: head and body in one write. The
headers of such an answer are checked and written once for all answers that have the same. What must stay true:
nothing is written after the answer, nor to a client that is gone, and no answer has another length than it says.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from flowfabric.server.requests import Message, Scope

LOG: Final = logging.getLogger("flowfabric.http")
LOG.setLevel(logging.ERROR)

WHOLE: Final = "flowfabric.answer"
"""The name of the extension: `await scope["extensions"][WHOLE](status, headers, trusted, body, head=...)`."""
BODY_APART_BYTES: Final = 64 * 1024
"""Larger bodies are not copied behind their heads."""
_BODILESS: Final = (204, 304)
_NAME: Final = re.compile(b'[\x00-\x1f\x7f()<>@,;:\\[\\]={} \t\\\\"]')
_VALUE: Final = re.compile(b"[\x00-\x08\x0a-\x1f\x7f]")

HeaderPair = tuple[bytes, bytes]


class Outlet:
    """The transport as one request's answer sees it: closing it waits until the client could read the answer."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write: Callable[[bytes], None] = transport.write
        self.is_closing: Callable[[], bool] = transport.is_closing
        self.close: Callable[[], None] = close


class Connection(Protocol):
    """What an exchange asks of the connection it belongs to."""

    flow: FlowControl
    outlet: Outlet

    def common_headers(self) -> bytes:
        """Return the headers of every answer, written."""
        ...

    def on_response_complete(self) -> None:
        """Go on with what follows an answer."""
        ...


def written(headers: tuple[HeaderPair, ...]) -> bytes:
    """Return headers as they are sent.

    Raises: RuntimeError for what would not be one header.
    """
    for name, value in headers:
        if _NAME.search(name) or _VALUE.search(value):
            raise RuntimeError("Invalid HTTP header.")
    return b"".join(b"%b: %b\r\n" % (name.lower(), value) for name, value in headers)


_written_before: Final = lru_cache(maxsize=256)(written)


def _says_close(headers: tuple[HeaderPair, ...]) -> bool:
    return any(name.lower() == b"connection" and b"close" in value.lower() for name, value in headers)


class Exchange:
    """One request, its answer, and how far both are."""

    __slots__ = (
        "_awaited",
        "_body",
        "_body_bytes",
        "_chunked",
        "_connection",
        "_has_news",
        "_is_head",
        "_left",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "task",
        "waiting_for_100_continue",
    )

    def __init__(self, connection: Connection, scope: Scope, *, keep_alive: bool, expects: bool) -> None:
        self._connection: Connection = connection
        self.scope: Scope | None = scope
        """The request, until the application has it."""
        self.task: asyncio.Task[None] | None = None
        self.keep_alive: bool = keep_alive
        self.waiting_for_100_continue: bool = expects
        """The client sends its body only when told to go on."""
        self.disconnected: bool = False
        self.more_body: bool = True
        """The request is not complete."""
        self.response_started: bool = False
        self.response_complete: bool = False
        self._body: list[bytes] = []
        self._body_bytes: int = 0
        self._has_news: bool = False
        self._awaited: asyncio.Event | None = None
        self._is_head: bool = scope["method"] == "HEAD"
        self._chunked: bool = False
        self._left: int = 0

    # What the connection reports -----------------------------------------------------------------------------------

    def tell(self) -> None:
        """Let the application look again: part of a body, the end of the request, or the client has gone."""
        self._has_news = True
        if self._awaited is not None:
            self._awaited.set()

    def add(self, body: bytes) -> None:
        """Take part of the request's body."""
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > HIGH_WATER_LIMIT:
            self._connection.flow.pause_reading()
        self.tell()

    # What the application is given ---------------------------------------------------------------------------------

    async def run(self, application: Any, tasks: set[asyncio.Task[Any]]) -> None:
        """Let the application answer; whatever goes wrong in it, the client is not left waiting."""
        scope, self.scope = self.scope, None
        try:
            await application(scope, self.receive, self.send)
        except BaseException as error:  # also of cancellation: an answer that has begun cannot be finished
            LOG.exception("the application failed", exc_info=error)
            await self._give_up()
        else:
            if not self.response_complete and not self.disconnected:
                LOG.error("the application did not finish its answer")
                await self._give_up()
        finally:
            if self.task is not None:
                tasks.discard(self.task)
                self.task = None

    async def receive(self) -> Message:
        """Return the next part of the request's body, then that the client has gone, when it has."""
        connection = self._connection
        if self.waiting_for_100_continue and not connection.outlet.is_closing():
            connection.outlet.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            connection.flow.resume_reading()
            if not self._has_news:
                if self._awaited is None:
                    self._awaited = asyncio.Event()
                await self._awaited.wait()
            if self._awaited is not None:
                self._awaited.clear()
            self._has_news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._body = []
        self._body_bytes = 0
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def answer(
        self,
        status: int,
        headers: tuple[HeaderPair, ...],
        trusted: bytes,
        body: bytes,
        *,
        head: bool = False,
    ) -> None:
        """Send a whole answer. `trusted`: further headers, written already. `head`: say the length, send no body."""
        connection = self._connection
        if connection.flow.write_paused and not self.disconnected:
            await connection.flow.drain()
        if self.disconnected:
            return
        if self.response_started:
            raise RuntimeError("this request was answered before")
        is_bodiless = status in _BODILESS
        more = trusted if is_bodiless else b"%bcontent-length: %d\r\n" % (trusted, len(body))
        start = self._head(status, headers, _written_before(headers), more)
        if is_bodiless:
            body = b""
        if head or self._is_head:
            connection.outlet.write(start)
        elif len(body) > BODY_APART_BYTES:
            connection.outlet.write(start)
            connection.outlet.write(body)
        else:
            connection.outlet.write(start + body)
        self._complete(connection)

    async def send(self, message: Message) -> None:
        """Send the start of an answer, or a part of its body; without a length it goes in chunks."""
        connection = self._connection
        if connection.flow.write_paused and not self.disconnected:
            await connection.flow.drain()
        if self.disconnected:
            return
        if self.response_complete:
            raise RuntimeError("this request was answered before")
        if not self.response_started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"an answer begins with its start, not with {message['type']}")
            self._start(connection, message["status"], tuple(map(tuple, message.get("headers", ()))))  # pyright: ignore[reportArgumentType] -- pairs
            return
        if message["type"] != "http.response.body":
            raise RuntimeError(f"an answer goes on with its body, not with {message['type']}")
        more: bool = message.get("more_body", False)
        self._go_on(connection, message.get("body", b""), more=more)
        if not more:
            if self._left != 0:
                raise RuntimeError("the answer is shorter than it says")
            self._complete(connection)

    # ---------------------------------------------------------------------------------------------------------------

    def _start(self, connection: Connection, status: int, headers: tuple[HeaderPair, ...]) -> None:
        fixed = written(headers)
        length = next((value for name, value in headers if name.lower() == b"content-length"), None)
        more = b""
        if length is not None:
            self._left = 0 if self._is_head else int(length)
        elif not self._is_head and status not in _BODILESS:
            self._chunked = True
            more = b"transfer-encoding: chunked\r\n"
        connection.outlet.write(self._head(status, headers, fixed, more))

    def _head(self, status: int, headers: tuple[HeaderPair, ...], fixed: bytes, more: bytes) -> bytes:
        """Begin the answer; return its head, of `headers` as `fixed` has them written, and `more` that are written."""
        self.response_started = True
        self.waiting_for_100_continue = False
        if b"connection" in fixed and _says_close(headers):
            self.keep_alive = False
        elif not self.keep_alive:
            more += b"connection: close\r\n"
        return b"%b%b%b%b\r\n" % (STATUS_LINE[status], self._connection.common_headers(), fixed, more)

    def _go_on(self, connection: Connection, body: bytes, *, more: bool) -> None:
        if self._is_head:
            return
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            connection.outlet.write(chunk if more else chunk + b"0\r\n\r\n")
            return
        if len(body) > self._left:
            raise RuntimeError("the answer is longer than it says")
        self._left -= len(body)
        connection.outlet.write(body)

    def _complete(self, connection: Connection) -> None:
        self.response_complete = True
        self.tell()
        if not self.keep_alive:
            connection.outlet.close()
        connection.on_response_complete()

    async def _give_up(self) -> None:
        """Say that the server failed, or end the connection in the middle of the answer."""
        connection = self._connection
        if self.response_complete or self.disconnected:
            return
        if self.response_started:
            connection.outlet.close()
            return
        headers = ((b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"))
        await self.answer(500, headers, b"", b"Internal Server Error")
