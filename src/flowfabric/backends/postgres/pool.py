"""Connections: a bounded number of them, opened when they are needed, each lent to one statement at a time.

A statement finds its prepared form on the connection it gets, so that a call is one round trip; behind a proxy that
lends a server's connection for one transaction only, nothing is prepared. What must stay true: never more connections
than the bound; who waits for one gets it in turn, or is told in time that there is none; a connection whose state is in
doubt is closed, never lent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.postgres import driver
from flowfabric.backends.postgres.driver import Connection, Record, Statement
from flowfabric.backends.postgres.errors import Trouble, Verdict, is_other_result, understand
from flowfabric.contract.errors import ResourceExhausted, Unavailable

SIZE_DEFAULT: Final = 10
SIZE_MAX: Final = 1_000
PATIENCE_S: Final = 5.0
"""How long a call waits for a connection at most."""
CONNECT_TIMEOUT_S: Final = 10.0
SETTLE_S: Final = 5.0
"""How long a statement that was given up may take to end before its connection is dropped."""
IDLE_S: Final = 5.0
"""After how long a connection that nobody needed is closed, but for one: other processes may want its place."""
STATEMENT_TIMEOUT_MS: Final = 30_000
LOCK_TIMEOUT_MS: Final = 5_000
"""Below what a call may take, so that the server says that nothing was done before the caller gives up."""
IDLE_IN_TRANSACTION_MS: Final = 60_000
APPLICATION: Final = "flowfabric"
_HEX: Final = bytes.fromhex
CLOSED: Final = "the store was closed"


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """How to connect."""

    dsn: str
    """For the driver: with credentials, without this engine's own options."""
    address: str
    """For people: no credentials."""
    is_pooled: bool
    """Through a proxy that lends connections for one transaction."""
    target: str | None = None
    """`target_session_attrs`; None: whatever the URL says."""
    given: frozenset[str] = frozenset()
    """Names of the URL's other options, settings of the server among them: they beat ours."""


class StatementFailed(Exception):
    """A statement ended in an error that has been understood."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.reason)
        self.trouble = trouble


def encode_uuid(value: str) -> bytes:
    """Return the sixteen bytes of a UUID's text."""
    return _HEX(value.replace("-", ""))


def decode_uuid(value: bytes) -> str:
    """Return the text of a UUID's sixteen bytes."""
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def server_settings(application: str, *, is_pooled: bool) -> dict[str, str]:
    """Return what a connection asks for when it is opened; a proxy takes nothing but the name.

    `synchronous_commit` is never touched: the server's setting, or the role's, decides about durability. Without
    sequential scans the plan of a prepared statement is still fit for a table that has grown since.
    """
    if is_pooled:
        return {"application_name": application}
    return {
        "application_name": application,
        "statement_timeout": str(STATEMENT_TIMEOUT_MS),
        "lock_timeout": str(LOCK_TIMEOUT_MS),
        "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS),
        "default_transaction_isolation": "read committed",
        "jit": "off",
        "enable_seqscan": "off",
    }


async def open_connection(
    where: Where, *, timeout_s: float = CONNECT_TIMEOUT_S, application: str = APPLICATION
) -> Connection:
    """Open one connection outside of any pool; the caller closes it. Raises: what the driver raises."""
    connection = await driver.open_connection(
        where.dsn,
        timeout_s=timeout_s,
        target=where.target,
        settings={
            name: value
            for name, value in server_settings(application, is_pooled=where.is_pooled).items()
            if name not in where.given
        },
    )
    # Whatever is said from here on has no deadline of its own, and a proxy may let in without a server to lend.
    watching = asyncio.get_running_loop().call_later(timeout_s, connection.terminate)
    try:
        await connection.set_type_codec(
            "uuid", schema="pg_catalog", encoder=encode_uuid, decoder=decode_uuid, format="binary"
        )
        if where.is_pooled:
            # The driver's look at the array type is compiled for seconds on servers that compile, unless told not to.
            async with connection.transaction():
                await connection.execute("SET LOCAL jit = off")
                await connection.prepare("SELECT $1::uuid[]")
    except BaseException:
        connection.terminate()
        raise
    finally:
        watching.cancel()
    return connection


class Link:
    """One connection of a pool and the statements prepared on it."""

    def __init__(self, raw: Connection, *, is_pooled: bool) -> None:
        self.raw: Final = raw
        self.idle_since = 0.0
        self._is_pooled = is_pooled
        self._prepared: Final[dict[str, Statement]] = {}
        self._names: Final = itertools.count(1)

    async def fetch(self, statement: str, arguments: Sequence[Any], timeout_s: float) -> list[Record]:
        """Execute one statement.

        Raises: StatementFailed.
        """
        sent = False
        try:
            if self._is_pooled:
                sent = not self.raw.is_closed()
                return await self.raw.fetch(statement, *arguments, timeout=timeout_s)
            prepared = self._prepared.get(statement)
            if prepared is None:
                # Without a name it would be parsed again every time.
                prepared = await self.raw.prepare(statement, name=f"ff{next(self._names)}", timeout=timeout_s)
                self._prepared[statement] = prepared
            sent = not self.raw.is_closed()
            return await prepared.fetch(*arguments, timeout=timeout_s)
        except Exception as error:
            if is_other_result(error):
                # What it returns has changed since it was prepared.
                self._prepared.clear()
            raise StatementFailed(understand(error, sent=sent)) from error


class Pool:
    """The connections of one store in one process. Belongs to the event loop that it is used from."""

    def __init__(self, where: Where, size: int) -> None:
        self.where: Final = where
        self.size: Final = size
        self._free: Final[list[Link]] = []
        self._waiting: Final[deque[asyncio.Future[Link | None]]] = deque()
        self._open = 0
        self._settling: Final[set[asyncio.Task[None]]] = set()
        self._links: Final[set[Link]] = set()
        self._closing_idle: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def open_count(self) -> int:
        """How many connections there are, those being opened among them."""
        return self._open

    async def acquire(self, deadline: float) -> Link:
        """Lend a connection; `release` gives it back.

        Raises: ResourceExhausted when all are lent until the deadline or for `PATIENCE_S`, StatementFailed when one
            had to be opened and could not, Unavailable when the pool was closed.
        """
        patient_until = min(deadline, time.monotonic() + PATIENCE_S)
        while True:
            if self._closed:
                raise Unavailable(CLOSED)
            while self._free:
                link = self._free.pop()
                if not link.raw.is_closed():
                    return link
                self._forget(link)
            if self._open < self.size:
                return await self._connect(deadline)
            link = await self._wait(patient_until)
            if link is not None:
                return link

    def release(self, link: Link, *, is_doubtful: bool = False) -> None:
        """Take a connection back; one that is `is_doubtful` may still be executing what it was given."""
        if link.raw.is_closed() or self._closed:
            link.raw.terminate()
            self._forget(link)
        elif is_doubtful:
            self._spawn(self._settle(link))
        else:
            self._hand_on(link)

    def give_up(self, link: Link) -> None:
        """Take a connection back whose transaction was not finished: it is rolled back, and the connection closed."""
        self._spawn(self._roll_back(link))

    def drop(self, link: Link) -> None:
        """Close a connection that is no good."""
        link.raw.terminate()
        self._forget(link)

    async def close(self) -> None:
        """Close every connection; whoever waits for one is told."""
        self._closed = True
        if self._closing_idle is not None:
            self._closing_idle.cancel()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
        for task in list(self._settling):
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        free, self._free[:] = list(self._free), []
        for link in free:
            await _close(link)
        for link in list(self._links):
            # Lent while the store is closed: its borrower sees it gone.
            link.raw.terminate()
        self._links.clear()

    def _hand_on(self, link: Link) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(link)
                return
        link.idle_since = time.monotonic()
        self._free.append(link)
        if self._closing_idle is None and self._open > 1:
            self._close_idle_in(IDLE_S)

    def _close_idle_in(self, wait_s: float) -> None:
        self._closing_idle = asyncio.get_running_loop().call_later(wait_s, self._close_idle)

    def _close_idle(self) -> None:
        """Close what has not been needed for a while, which comes first: what was used last is lent first."""
        self._closing_idle = None
        until = time.monotonic() - IDLE_S
        kept = self._open - 1
        while self._free and kept > 0 and self._free[0].idle_since <= until:
            kept -= 1
            self._spawn(self._retire(self._free.pop(0)))
        if self._free and kept > 0:
            self._close_idle_in(max(self._free[0].idle_since - until, IDLE_S / 10))

    async def _retire(self, link: Link) -> None:
        await _close(link)
        self._forget(link)

    def _forget(self, link: Link) -> None:
        if link in self._links:
            self._links.discard(link)
            self._vacate()

    def _vacate(self) -> None:
        """Note that there is room for one more connection, and let the next one who waits open it."""
        self._open -= 1
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _wait(self, until: float) -> Link | None:
        waiter: asyncio.Future[Link | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(max(until - time.monotonic(), 0.0)):
                return await waiter
        except TimeoutError:
            self._give_back(waiter)
            raise ResourceExhausted(
                f"all {self.size} connections to the store are in use (FF_POSTGRES_POOL_SIZE or ?pool_size= allows "
                "more)",
                retry_after_ms=100,
            ) from None
        except asyncio.CancelledError:
            self._give_back(waiter)
            raise

    def _give_back(self, waiter: asyncio.Future[Link | None]) -> None:
        """Hand on what was handed to somebody who no longer wants it."""
        if waiter.done() and not waiter.cancelled():
            link = waiter.result()
            if link is not None:
                self.release(link)
            else:
                # The room that was offered goes to the next one.
                self._open += 1
                self._vacate()
        else:
            waiter.cancel()

    async def _connect(self, deadline: float) -> Link:
        self._open += 1
        try:
            timeout_s = max(min(deadline - time.monotonic(), CONNECT_TIMEOUT_S), 0.001)
            raw = await open_connection(self.where, timeout_s=timeout_s)
        except Exception as error:
            self._vacate()
            raise StatementFailed(understand(error, sent=False)) from error
        except BaseException:
            self._vacate()
            raise
        link = Link(raw, is_pooled=self.where.is_pooled)
        self._links.add(link)
        if self._closed:
            self.drop(link)
            raise Unavailable(CLOSED)
        return link

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _roll_back(self, link: Link) -> None:
        """End a transaction and its connection; a statement under way in it, which was given up, is ended first."""
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await _ended(link, "ROLLBACK")
        self.drop(link)

    async def _settle(self, link: Link) -> None:
        """Wait until a statement that was given up has ended, then lend its connection again."""
        try:
            await _ended(link, "SELECT 1")
        except (Exception, asyncio.CancelledError):
            self.drop(link)
        else:
            self.release(link)


def ran_out_of_time(error: BaseException) -> bool:
    """Say whether a call failed because what it needed was held for too long: it was rolled back."""
    cause = error.__cause__
    return isinstance(cause, StatementFailed) and cause.trouble.verdict is Verdict.OUT_OF_TIME


async def _ended(link: Link, statement: str) -> None:
    """Execute what waits until a statement that was given up has ended: older drivers wait for that without a bound."""
    async with asyncio.timeout(SETTLE_S):
        await link.raw.execute(statement, timeout=SETTLE_S)


async def _close(link: Link) -> None:
    try:
        await link.raw.close(timeout=1.0)
    except (Exception, asyncio.CancelledError):
        link.raw.terminate()
