"""Waiting on behalf of clients: bounded, ended by the client's leaving or the server's shutdown, holding no thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from flowfabric.contract.errors import ResourceExhausted, Unavailable
from flowfabric.server.requests import ClientGone, Receive

T = TypeVar("T")

WAITS_MAX: Final = 4_096
DRAINING: Final = "the server is shutting down"


class Load:
    """How busy the server is: connections, stream reads, long waits, and whether it is draining."""

    def __init__(self, stream_operations: int) -> None:
        self._stream_operations = stream_operations
        self._reading = 0
        self.connections = 0
        """Open connections, those that wait included."""
        self.waits = 0
        """Long waits in progress; their connections are not counted against the connection limit."""
        self.draining = asyncio.Event()
        self._waiting: set[asyncio.Future[None]] = set()

    def drain(self) -> None:
        """End all long waits."""
        self.draining.set()
        for ended in self._waiting:
            _settle(ended)

    @asynccontextmanager
    async def stream_read(self) -> AsyncGenerator[None]:
        """Take part in the bounded number of concurrent stream reads."""
        if self._reading >= self._stream_operations:
            raise ResourceExhausted(
                "too many stream reads at once",
                pool="stream_ops",
                max=self._stream_operations,
                retry_after_ms=100,
            )
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    async def wait_for(
        self,
        call: Coroutine[Any, Any, T],
        receive: Receive,
        abandoned: Callable[[T], Awaitable[None]] | None = None,
    ) -> T:
        """Await a store call that may wait long; cancel it when the client leaves or the server drains.

        `abandoned` is given what the call returned when the client had left by then.

        Raises: `ClientGone`, `Unavailable` when draining, `ResourceExhausted` when too many wait.
        """
        if self.waits >= WAITS_MAX:
            call.close()
            raise ResourceExhausted(
                "too many requests wait at once", pool="waits", max=WAITS_MAX, retry_after_ms=1_000
            )
        self.waits += 1
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        self._waiting.add(ended)
        working, leaving = loop.create_task(call), loop.create_task(_gone(receive))
        for task in (working, leaving):
            task.add_done_callback(lambda _: _settle(ended))
        if self.draining.is_set():
            _settle(ended)
        try:
            await ended
            if not working.done():
                working.cancel()
                await asyncio.wait((working,))
            if leaving.done():
                if abandoned is not None and not working.cancelled() and working.exception() is None:
                    await abandoned(working.result())
                raise ClientGone
            if working.cancelled():
                raise Unavailable(DRAINING)
            return working.result()
        finally:
            self.waits -= 1
            self._waiting.discard(ended)
            left = [task for task in (working, leaving) if not task.done()]
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
            for task in (working, leaving):
                if not task.cancelled():
                    task.exception()  # looked at, also where it is not what is told


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


async def _gone(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
