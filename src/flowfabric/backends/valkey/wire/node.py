"""One server: the connections calls share, kept up, and opened again when they die.

A node keeps one connection open and opens more, up to its share, when the first has many calls in flight. It tries
for as long as it lives: at once after a loss, then with growing, jittered pauses. It never decides what becomes of a
call: it hands out connections and fires `news` when another attempt has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from flowfabric.backends.valkey.wire.address import Endpoint
from flowfabric.backends.valkey.wire.connection import Connection
from flowfabric.backends.valkey.wire.dialing import Dialer, Greeting
from flowfabric.backends.valkey.wire.waiting import Backoff, Signal
from flowfabric.contract.errors import FlowFabricError

STEADY_S: Final = 1.0
"""A connection that lived this long ends a series of failures."""

SPREAD_FROM: Final = 128
"""Calls in flight on the first connection from which on another one is worth its extra writes."""


class Node:
    """A server of the deployment, with at most `connections_max` shared connections.

    `on_lost` is called when a connection died or could not be opened, `on_restart` when the server behind the name is
    not the process it was (or cannot be told from another), `on_quiet` when it owes replies and says nothing.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        dialer: Dialer,
        *,
        connections_max: int,
        news: Signal,
        on_lost: Callable[[], None],
        on_restart: Callable[[], None],
        on_quiet: Callable[[], None],
        first: tuple[Connection, Greeting] | None = None,
    ) -> None:
        self.endpoint: Endpoint = endpoint
        self.name: str = endpoint.name
        self.ready: list[Connection] = []
        self.trouble: str = ""
        """Why there is no connection, in a sentence; empty while nothing went wrong."""
        self._dialer: Dialer = dialer
        self._connections_max: int = connections_max
        self._wanted: int = 1
        self._news: Signal = news
        self._on_lost: Callable[[], None] = on_lost
        self._on_restart: Callable[[], None] = on_restart
        self._on_quiet: Callable[[], None] = on_quiet
        self._run_id: str | None = None
        self._short: asyncio.Event = asyncio.Event()
        self._leaving: set[Connection] = set()
        self._is_closed: bool = False
        self._is_flapping: bool = False
        self._backoff: Backoff = Backoff()
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        if first is not None:
            self._adopt(*first)
        self._task: asyncio.Task[None] = asyncio.create_task(self._keep_connected())

    def pick(self) -> Connection | None:
        """Return the connection for the next call; None when none is open or all have too much to write."""
        ready = self.ready
        if not ready:
            return None
        best = ready[0]
        load = len(best.pending) + len(best.unsent)
        if load < SPREAD_FROM:
            return best
        if len(ready) < self._connections_max:
            self._wanted = min(len(ready) + 1, self._connections_max)
            self._short.set()
        for connection in ready:
            mine = len(connection.pending) + len(connection.unsent)
            if mine < load:
                best, load = connection, mine
        return None if best.is_full() else best

    @property
    def is_gone(self) -> bool:
        """Say whether a retired node has nothing left to wait for."""
        return self._is_closed and not self.ready and not self._leaving and self._task.done()

    def renew(self, reason: str) -> None:
        """Give up the present connections for new ones; what was written is still waited for."""
        for connection in tuple(self.ready):
            connection.retire(reason)

    def retire(self) -> None:
        """Begin to close: no new calls, what was written is still waited for."""
        self._is_closed = True
        self._task.cancel()
        for connection in tuple(self.ready):
            connection.retire(f"{self.name} does not serve this any more")

    async def close(self, reason: str) -> None:
        """Drop every connection and wait until all is gone. Idempotent."""
        self._is_closed = True
        self._task.cancel()
        await asyncio.wait((self._task,))
        connections = {*self.ready, *self._leaving}
        for connection in connections:
            connection.abort(reason)
        for connection in connections:
            await connection.closed

    # Private -----------------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        while True:
            if len(self.ready) >= self._wanted:
                self._short.clear()
                await self._short.wait()
                continue
            if self._is_flapping:
                # A server that takes connections and drops them at once must not be hammered.
                self._is_flapping = False
                await asyncio.sleep(self._backoff.next_s())
            if not await self._open_one():
                await asyncio.sleep(self._backoff.next_s())

    async def _open_one(self) -> bool:
        try:
            connection, greeting = await self._dialer.dial(self.endpoint)
        except FlowFabricError as error:
            self.trouble = error.message
            self._on_lost()
            self._news.fire()
            return False
        self._adopt(connection, greeting)
        return True

    def _adopt(self, connection: Connection, greeting: Greeting) -> None:
        self.trouble = ""
        connection.on_end = self._ended
        connection.on_quiet = self._on_quiet
        self.ready.append(connection)
        known, self._run_id = self._run_id, greeting.run_id
        is_other = greeting.run_id != known if greeting.run_id else len(self.ready) == 1
        self._news.fire()
        if known is not None and is_other:
            self._on_restart()

    def _ended(self, connection: Connection) -> None:
        if connection in self.ready:
            self.ready.remove(connection)
        if not connection.closed.done():
            self._leaving.add(connection)
            connection.closed.add_done_callback(lambda _: self._leaving.discard(connection))
        if self._loop.time() - connection.opened_at >= STEADY_S:
            self._backoff.reset()
        else:
            self._is_flapping = True
        if not self._is_closed:
            self._short.set()
            self._on_lost()
            self._news.fire()
