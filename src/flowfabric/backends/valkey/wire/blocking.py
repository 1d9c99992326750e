"""A connection of one's own for commands that wait on the server (BLPOP, XREAD BLOCK).

It belongs to one caller, follows its slot, and connects when it is used. A call that is cancelled or runs out of time
drops the connection at once, so that the server stops waiting on our behalf: an element popped for a reply that is
already under way is lost, nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from flowfabric.backends.valkey.wire.address import Endpoint
from flowfabric.backends.valkey.wire.commands import ASKING, Command, encode
from flowfabric.backends.valkey.wire.connection import Connection, ConnectionLost, Group
from flowfabric.backends.valkey.wire.dialing import Dialer
from flowfabric.backends.valkey.wire.replies import Answer, ServerError
from flowfabric.backends.valkey.wire.retrying import NOT_EXECUTED, WAIT_FOR_NEWS_S
from flowfabric.backends.valkey.wire.topology import Topology
from flowfabric.backends.valkey.wire.view import read_redirect
from flowfabric.backends.valkey.wire.waiting import Backoff
from flowfabric.contract.errors import Misuse, OutcomeUnknown, Unavailable

_ELSEWHERE: Final = NOT_EXECUTED | {"UNBLOCKED"}
"""Answers after which the same command is sent again, to whoever serves the slot by then."""


class BlockingConnection:
    """Waits on the server for one caller. Close it when done; the client closes what is left."""

    def __init__(
        self,
        topology: Topology,
        dialer: Dialer,
        slot: int,
        on_close: Callable[[BlockingConnection], None],
    ) -> None:
        self._topology: Topology = topology
        self._dialer: Dialer = dialer
        self._slot: int = slot
        self._on_close: Callable[[BlockingConnection], None] = on_close
        self._connection: Connection | None = None
        self._endpoint: Endpoint | None = None
        self._ask: Endpoint | None = None
        self._is_busy: bool = False
        self._is_closed: bool = False
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._reason: str = "no server serves this slot"

    async def call(self, command: Command, timeout_s: float) -> Answer:
        """Send one command and wait for its reply, connecting first when need be; one call at a time.

        `timeout_s` covers everything: give it a few seconds more than the command itself may wait on the server.
        Raises: Unavailable when the command was not sent, OutcomeUnknown when it was and no reply came, Misuse.
        """
        if self._is_busy or self._is_closed:
            raise Misuse("a blocking connection takes one call at a time, until it is closed")
        deadline = self._loop.time() + timeout_s
        self._is_busy = True
        backoff = Backoff()
        try:
            while True:
                reply = await self._attempt(command, deadline)
                if not (isinstance(reply, ServerError) and reply.code in _ELSEWHERE):
                    return reply
                self._redirected(reply)
                await asyncio.sleep(max(0.0, min(backoff.next_s(), deadline - self._loop.time())))
        except BaseException as error:
            self._drop()
            if isinstance(error, ConnectionLost):
                if error.is_written:
                    raise OutcomeUnknown(f"{error.reason}; the call had been sent") from error
                raise Unavailable(f"{error.reason}; the call had not been sent") from error
            raise
        finally:
            self._is_busy = False

    async def close(self) -> None:
        """Drop the connection. Idempotent; a call under way ends with an error."""
        self._is_closed = True
        connection = self._connection
        self._drop()
        if connection is not None:
            await connection.closed
        self._on_close(self)

    # Private -----------------------------------------------------------------------------------------------------

    async def _attempt(self, command: Command, deadline: float) -> Answer:
        connection = await self._connected(deadline)
        is_asking, self._ask = self._ask is not None, None
        data = encode([ASKING, command] if is_asking else [command])
        group = Group(data, 2 if is_asking else 1, deadline, self._loop.create_future())
        connection.send(group)
        return (await group.future)[-1]

    async def _connected(self, deadline: float) -> Connection:
        backoff = Backoff()
        while True:
            remaining = deadline - self._loop.time()
            if remaining <= 0 or self._is_closed or self._topology.is_closed:
                raise Unavailable(f"the call was not sent: {self._reason}")
            node = self._topology.by_slot[self._slot]
            endpoint = self._ask or (node.endpoint if node is not None else None)
            if endpoint is None:
                self._topology.request_refresh()
                await self._topology.news.wait(min(WAIT_FOR_NEWS_S, remaining))
                continue
            if self._connection is not None and self._connection.is_open and endpoint == self._endpoint:
                return self._connection
            self._drop()
            try:
                async with asyncio.timeout(remaining):
                    connection, _ = await self._dialer.dial(endpoint)
            except TimeoutError:
                continue
            except (Unavailable, Misuse) as error:
                self._reason = error.message
                self._ask = None
                self._topology.request_refresh()
                await asyncio.sleep(min(backoff.next_s(), max(0.0, deadline - self._loop.time())))
                continue
            self._connection, self._endpoint = connection, endpoint
            if self._is_closed:
                self._drop()

    def _redirected(self, error: ServerError) -> None:
        assert self._endpoint is not None
        self._reason = f"{self._endpoint.name} answered {error.message}"
        redirect = read_redirect(error, self._endpoint) if error.code in {"MOVED", "ASK"} else None
        if redirect is None:
            self._topology.request_refresh()
            if error.code in {"READONLY", "MASTERDOWN"}:
                self._drop()
        elif error.code == "MOVED":
            self._topology.moved(*redirect)
        else:
            self._ask = redirect[1]

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort("the blocking call was given up")
