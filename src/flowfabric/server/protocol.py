"""The HTTP protocol with deadlines of its own: silent and trickling sockets are closed, connections are counted.

uvicorn waits for ever for the rest of a request. Here headers must be complete within 10 s, a body within 30 s, and a
client that does not read its answer is dropped after 30 s. A request and its answer are an `Exchange`; the rest of a
connection, and the way to stop, are uvicorn's. What must stay true: whatever is answered in place of the application is
a problem body, and no connection outlives its deadlines.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    FlowFabricError,
    HeadersTooLarge,
    InvalidInput,
    PayloadTooLarge,
    RequestTimeout,
    ResourceExhausted,
)
from flowfabric.server.answers import of_error
from flowfabric.server.exchange import LOG, WHOLE, Exchange, Outlet, written
from flowfabric.server.requests import HEADER_BYTES_MAX, Scope
from flowfabric.server.waiting import Load

HEADER_SLACK_BYTES: Final = 4 * 1024
REQUEST_BYTES_MAX: Final = 2 * limits.BODY_BATCH_MAX
"""What may follow the headers of one request, chunk framing and trailers included."""
LINGERING_MAX: Final = 256
PROGRESS_BYTES_MIN: Final = 64 * 1024
"""What a slow reader must take of its answer within the time for a stalled write, to go on."""
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long a connection may take for each part of a request, in seconds."""

    headers_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 15.0
    """Between two requests."""
    write_stall_s: float = 30.0
    """Without the client reading any of its answer."""
    linger_s: float = 1.0
    """Between an answer that ends the connection early and its end, so that the client can read it."""


class Connections:
    """The connections of one server, and how many there may be beside those that wait long."""

    def __init__(self, load: Load, most: int, deadlines: Deadlines | None = None) -> None:
        self.load = load
        self.most = most
        self.deadlines = deadlines if deadlines is not None else Deadlines()
        self.lingering = 0
        self._headers: list[tuple[bytes, bytes]] | None = None
        self._written = b""

    def is_full(self) -> bool:
        """Say whether another connection would be one too many."""
        return self.load.connections - self.load.waits >= self.most

    def written(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the headers of every answer as they are sent; uvicorn makes a new list of them each second."""
        if headers is not self._headers:
            self._written = written(tuple(headers))
            self._headers = headers
        return self._written


def protocol_for(connections: Connections) -> type[HttpToolsProtocol]:
    """Return the protocol class for one server."""

    class Protocol(_DeadlineProtocol):
        shared = connections

    return Protocol


class _DeadlineProtocol(HttpToolsProtocol):
    shared: Connections
    app: Any
    cycle: Any
    """The exchange of the request that came last."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = LOG
        self._deadline_at: float | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._idle = False
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._header_bytes = 0
        self._body_bytes = 0
        self._in_headers = True
        self._request_unfinished = False
        self._lingering = False
        self._counted = False

    # What the transport reports ------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.outlet = Outlet(transport, self._end)
        if self.shared.is_full():
            self._request_unfinished = True
            self._refuse(
                ResourceExhausted("the server has as many connections as it takes", retry_after_ms=1_000)
            )
            return
        self.shared.load.connections += 1
        self._counted = True
        self._expect(self.shared.deadlines.headers_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._counted:
            self.shared.load.connections -= 1
            self._counted = False
        if self._lingering:
            self.shared.lingering -= 1
        for timer in (self._deadline_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._deadline_timer = self._stall_timer = None
        exchange: Exchange | None = self.cycle
        if exchange is not None:
            exchange.disconnected = not exchange.response_complete
            exchange.tell()
        self.connections.discard(self)
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # pyright: ignore[reportAttributeAccessIssue] -- nothing is read any more

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._body_bytes += len(data)
            if self._body_bytes > REQUEST_BYTES_MAX:
                self._close()
            return
        if self._in_headers:
            if self._header_bytes == 0:
                self._expect(self.shared.deadlines.headers_s)
            self._header_bytes += len(data)
        else:
            self._body_bytes += len(data)
        super().data_received(data)
        if self._in_headers:
            if self._header_bytes > HEADER_BYTES_MAX + HEADER_SLACK_BYTES:
                self._refuse(HeadersTooLarge())
        elif self._body_bytes > REQUEST_BYTES_MAX:
            self._refuse(PayloadTooLarge(limit_bytes=REQUEST_BYTES_MAX))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None and not self.transport.is_closing():
            self._stall_timer.cancel()
            self._stall_timer = None

    def shutdown(self) -> None:
        """Close an idle connection; let a request that is under way end with the connection."""
        exchange: Exchange | None = self.cycle
        if exchange is None or exchange.response_complete:
            self._end()
        else:
            exchange.keep_alive = False

    # What the parser reports ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._request_unfinished = True
        if self._deadline_at is None or self._idle:
            self._expect(self.shared.deadlines.headers_s)
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # what follows the body are trailers, which nobody reads
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._header_bytes = self._body_bytes = 0
        self._expect(self.shared.deadlines.body_s)
        parser: Any = self.parser
        http_version = parser.get_http_version()
        url = self.url
        if url.startswith(b"/") and b"?" not in url and b"#" not in url:
            raw_path, query = url, b""
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path, parsed.query or b""
        path = raw_path.decode("ascii")
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": http_version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": parser.get_method().decode("ascii"),
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
        }
        exchange = Exchange(
            self,
            scope,
            keep_alive=http_version != "1.0" and parser.should_keep_alive(),
            expects=self.expect_100_continue,
        )
        scope["extensions"] = {WHOLE: exchange.answer}
        former: Exchange | None = self.cycle
        self.cycle = exchange
        if former is None or former.response_complete:
            self._begin(exchange)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # pyright: ignore[reportArgumentType] -- ours alone use it

    def _begin(self, exchange: Exchange) -> None:
        tasks = self.tasks
        task = exchange.task = self.loop.create_task(exchange.run(self.app, tasks))
        tasks.add(task)

    def on_body(self, body: bytes) -> None:
        exchange: Exchange = self.cycle
        if not exchange.response_complete:
            exchange.add(body)

    def on_message_complete(self) -> None:
        self._in_headers = True
        self._request_unfinished = False
        self._deadline_at = None
        exchange: Exchange = self.cycle
        if not exchange.response_complete:
            exchange.more_body = False
            exchange.tell()

    def common_headers(self) -> bytes:
        return self.shared.written(self.server_state.default_headers)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.cycle.response_complete and self.cycle.more_body:
            self._end()
        if self._lingering or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            exchange: Any = self.pipeline.pop()[0]
            self._begin(exchange)
        elif not self._request_unfinished:
            self._expect(self.shared.deadlines.idle_s, idle=True)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(InvalidInput("the request is not well-formed HTTP/1.1"))

    # Deadlines and endings -----------------------------------------------------------------------------------------

    def _expect(self, seconds: float, *, idle: bool = False) -> None:
        """Let the part of the request that is on its way, or the pause before the next, take this long.

        One timer serves all deadlines: it looks at the present one when it fires, and is set anew only to fire earlier.
        """
        self._idle = idle
        deadline_at = self._deadline_at = self.loop.time() + seconds
        timer = self._deadline_timer
        if timer is not None:
            if timer.when() <= deadline_at:
                return
            timer.cancel()
        self._deadline_timer = self.loop.call_at(deadline_at, self._look)

    def _look(self) -> None:
        self._deadline_timer = None
        if self._deadline_at is None or self._lingering or self.transport.is_closing():
            return
        left = self._deadline_at - self.loop.time()
        if left > 0:
            self._deadline_timer = self.loop.call_later(left, self._look)
        elif self._idle:
            self._end()
        else:
            self._refuse(RequestTimeout())

    def _refuse(self, error: FlowFabricError) -> None:
        """Answer in place of the application, if nothing is being answered, and end the connection."""
        if self.transport.is_closing() or self._lingering:
            return
        exchange: Exchange | None = self.cycle
        if exchange is None or exchange.response_complete or not exchange.response_started:
            answer = of_error(error)
            headers = written(tuple(pair for pair in answer.headers if pair[0] != b"connection"))
            self.transport.write(
                b"%s%scontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (STATUS_LINE[answer.status], headers, len(answer.body), answer.body)
            )
        if exchange is not None and not exchange.response_complete:
            exchange.disconnected = True
            exchange.waiting_for_100_continue = False
            exchange.tell()
        self._end()

    def _end(self) -> None:
        """End the connection: at once, or when a client that is still sending has had time to read its answer.

        Closing a socket with unread input resets it, and the reset may overtake the answer.
        """
        if self._lingering or self.transport.is_closing():
            return
        if self._request_unfinished and self.shared.lingering < LINGERING_MAX:
            self._lingering = True
            self._body_bytes = 0
            self.shared.lingering += 1
            self.loop.call_later(self.shared.deadlines.linger_s, self._close)
            self.flow.resume_reading()
            with suppress(OSError, RuntimeError):  # the client may be gone already
                self.transport.write_eof()
        else:
            self._close()

    def _close(self) -> None:
        self.transport.close()
        if self.transport.get_write_buffer_size() > 0:
            self._watch_reader()

    def _watch_reader(self) -> None:
        if self._stall_timer is None:
            self._unread = self.transport.get_write_buffer_size()
            self._stall_timer = self.loop.call_later(
                self.shared.deadlines.write_stall_s, self._look_at_reader
            )

    def _look_at_reader(self) -> None:
        """Drop a client that has read next to nothing of its answer since the last look."""
        self._stall_timer = None
        left = self.transport.get_write_buffer_size()
        if left == 0:
            return
        if self._unread - left < PROGRESS_BYTES_MIN:
            self.transport.abort()
        else:
            self._watch_reader()
