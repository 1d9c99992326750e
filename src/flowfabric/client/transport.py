"""One HTTP exchange at a time: connections, deadlines, bounds, and what a failure says about the request's fate.

This module never sends anything twice: it reports whether a failed request may have been carried out, and
`flowfabric.client.resend` decides. Redirects are not followed, proxies of the environment are ignored unless asked
for, replies are read up to a bound and never decompressed.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from flowfabric.client.endpoint import Endpoint
from flowfabric.contract.errors import FlowFabricError, Misuse, OutcomeUnknown, Unavailable

CONNECTIONS_MAX: Final = 128
"""Requests under way at once, long waits not counted; more wait their turn."""
KEEPALIVE_S: Final = 10.0
"""Shorter than servers keep idle connections, so that a request is seldom sent into one that is being closed."""
CONNECT_TIMEOUT_S: Final = 5.0
REPLY_BYTES_MAX: Final = 256 * 1024 * 1024
CLOCK_SKEW_TOLERATED_MS: Final = 2_000
_READ_BYTES: Final = 256 * 1024
_BYTES_AT_ONCE: Final = 512 * 1024
"""Larger bodies are written piece by piece, so that the event loop is not held up."""


class Trouble(Exception):
    """A request that got no answer to act on, or one that says to try again."""

    def __init__(self, error: FlowFabricError, *, sent: bool, retry_after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error: FlowFabricError = error
        self.sent: bool = sent
        """The server may have seen it."""
        self.retry_after_s: float | None = retry_after_s


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to send."""

    method: str
    path: str
    query: str = ""
    """Percent-encoded, as the path is."""
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    long: bool = False
    """It may be held by the server for a while."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back."""

    status: int
    content_type: str
    retry_after_s: float | None
    body: bytes


class Transport:
    """Connections to one server, kept alive and shared by all calls on one event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        token: str | None,
        user_agent: str,
        trust_environment: bool = False,
        reply_bytes_max: int = REPLY_BYTES_MAX,
    ) -> None:
        if token is not None and not (token and token.isascii() and token.isprintable()):
            raise Misuse("a token is printable ASCII and not empty")
        self.endpoint: Final = endpoint
        self.has_token: Final = token is not None
        self.reached: bool = False
        """Something answered here before."""
        self._headers: dict[str, str] = {"User-Agent": user_agent, "Accept-Encoding": "identity"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._trust_environment: bool = trust_environment
        self._reply_bytes_max: int = reply_bytes_max
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns: asyncio.Semaphore | None = None
        self._skew_ms: int = 0
        self._date: str = ""
        self.closed: bool = False

    def now_ms(self) -> int:
        """Return the server's clock, to within a second or two: ours, corrected when theirs clearly differs."""
        return time.time_ns() // 1_000_000 + self._skew_ms

    async def close(self) -> None:
        """Close every connection. Calls under way end with `Unavailable`."""
        self.closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def exchange(self, request: Request, timeout_s: float) -> Answer:
        """Send one request and read its whole reply.

        Raises: `Trouble` when there is none, saying whether the request may have been carried out.
        """
        self._open()
        turn = None if request.long else self._turns
        sent = False
        try:
            async with asyncio.timeout(timeout_s):
                if turn is not None:
                    await turn.acquire()
                try:
                    sent = True
                    async with self._send(request) as response:
                        return await self._read(request, response)
                finally:
                    if turn is not None:
                        turn.release()
        except TimeoutError as error:
            raise self._trouble(error, request, sent=sent, seconds=timeout_s) from error

    @asynccontextmanager
    async def opened(self, request: Request, timeout_s: float) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send one request and hand out its reply as soon as its headers are there; closing it drops the rest.

        Raises: `Trouble` when no reply starts within the timeout or while it is being read.
        """
        self._open()
        try:
            async with asyncio.timeout(timeout_s) as deadline, self._send(request) as response:
                deadline.reschedule(None)
                yield response
        except TimeoutError as error:
            raise self._trouble(error, request, sent=True, seconds=timeout_s) from error

    async def answer_of(self, request: Request, response: aiohttp.ClientResponse) -> Answer:
        """Read the whole of a reply that was opened."""
        return await self._read(request, response)

    def _open(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self.closed:
            raise Trouble(Unavailable("this client is closed"), sent=False)
        if self._session is None:
            self._loop = loop
            self._turns = asyncio.Semaphore(CONNECTIONS_MAX)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                auto_decompress=False,
                trust_env=self._trust_environment,
                headers=self._headers,
                skip_auto_headers=("Content-Type",),
            )
        elif self._loop is not loop:
            raise Misuse("this client belongs to another event loop: open one client per loop")
        return self._session

    @asynccontextmanager
    async def _send(self, request: Request) -> AsyncGenerator[aiohttp.ClientResponse]:
        session = self._open()
        url = URL(self.endpoint.url(request.path, request.query), encoded=True)
        headers = dict(request.headers)
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with session.request(
                request.method, url, data=_data(request.body), headers=headers, allow_redirects=False
            ) as response:
                self._note(response)
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise self._trouble(error, request, sent=False) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise self._trouble(error, request, sent=True) from error
        except RuntimeError as error:
            if not self.closed:
                raise
            raise self._trouble(error, request, sent=True) from error

    async def _read(self, request: Request, response: aiohttp.ClientResponse) -> Answer:
        body = await self._body(request, response)
        self.reached = True
        return Answer(
            status=response.status,
            content_type=response.content_type,
            retry_after_s=_seconds(response.headers.get("Retry-After")),
            body=body,
        )

    async def _body(self, request: Request, response: aiohttp.ClientResponse) -> bytes:
        limit = self._reply_bytes_max
        if response.content_length is not None and response.content_length <= limit:
            return await response.read()
        body = bytearray()
        async for piece in response.content.iter_chunked(_READ_BYTES):
            body += piece
            if len(body) > limit:
                raise Misuse(
                    f"the reply to {request.method} {request.path} is larger than {limit} bytes: ask for smaller "
                    "pages or fewer tasks at once",
                    limit_bytes=limit,
                )
        return bytes(body)

    def _note(self, response: aiohttp.ClientResponse) -> None:
        date = response.headers.get("Date")
        if date is None or date == self._date:
            return
        self._date = date
        try:
            theirs_ms = int(parsedate_to_datetime(date).timestamp() * 1_000) + 500
        except (ValueError, OverflowError):
            return
        skew_ms = theirs_ms - time.time_ns() // 1_000_000
        self._skew_ms = skew_ms if abs(skew_ms) > CLOCK_SKEW_TOLERATED_MS else 0

    def _trouble(
        self, error: Exception, request: Request, *, sent: bool, seconds: float | None = None
    ) -> Trouble:
        base = self.endpoint.base
        if self.closed:
            kind = OutcomeUnknown if sent and request.method != "GET" else Unavailable
            return Trouble(kind("the client was closed during the call"), sent=sent)
        if sent:
            how = f"no reply within {seconds:.3g} s" if seconds is not None else _reason(error)
            message = f"{request.method} {request.path} was sent to {base} but not answered ({how})"
            if request.method == "GET":
                return Trouble(Unavailable(f"{message}: try again", url=base), sent=True)
            message += ": it may or may not have happened; look, or repeat the call with the same ids"
            return Trouble(OutcomeUnknown(message, url=base), sent=True)
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
            message = f"cannot make a secure connection to {base} ({_reason(error)}): check its certificate"
        elif seconds is not None or isinstance(error, aiohttp.ConnectionTimeoutError):
            message = f"{base} cannot be reached in time: check the address and the network"
        elif isinstance(error, aiohttp.ClientConnectorDNSError):
            message = f"the host of {base} is not known: check the address"
        else:
            message = (
                f"no server answers at {base} ({_reason(error)}): start one with `flowfabric serve`, or "
                "`flowfabric dev app.py` while developing, or give another URL"
            )
        return Trouble(Unavailable(message, url=base), sent=False)


def _data(body: bytes | None) -> bytes | io.BytesIO | None:
    if body is None or len(body) <= _BYTES_AT_ONCE:
        return body
    return io.BytesIO(body)


def _reason(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return text.strip() or type(cause).__name__


def _seconds(text: str | None) -> float | None:
    if text is None or not text.isascii():
        return None
    if text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
