"""A background thread with its own event loop, for calling coroutines from ordinary threads.

Callers block until their coroutine is done; the loop never blocks on them, so callers on other event loops cannot
deadlock with it. A call from the portal's own thread could, and is refused.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import suppress
from typing import Any, Final, TypeVar

from flowfabric.contract.errors import Misuse

STOP_TIMEOUT_S: Final = 10.0

Result = TypeVar("Result")


class Portal:
    """One thread running one event loop until `stop`."""

    def __init__(self, name: str = "flowfabric-client") -> None:
        self._loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self._stopped: bool = False
        # Whatever is scheduled under it before `stop` is seen, and cancelled, by the loop's last round.
        # Reentrant, because the garbage collector may close an iteration while this thread holds it.
        self._scheduling: threading.RLock = threading.RLock()
        self.pid: Final = os.getpid()
        # A daemon, so that a program that forgets to close its client can still end.
        self._thread: threading.Thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._finish()

    def _finish(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the portal's loop and return its result, or raise what it raised.

        An interrupt of the waiting thread cancels the coroutine. Raises: `Misuse` from the portal's own thread.
        """
        future = self._schedule(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise Misuse("this client was closed during the call") from error
        except BaseException:
            future.cancel()
            raise

    def _schedule(self, work: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        problem = self._problem()
        if problem is None:
            with self._scheduling:
                problem = self._problem()
                if problem is None:
                    return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise Misuse(problem)

    def _problem(self) -> str | None:
        if self.pid != os.getpid():
            return "this client was opened before the process forked: open one after the fork"
        if threading.get_ident() == self._thread.ident:
            return "a blocking call from the client's own event loop would wait for itself: use the async client there"
        return "this client is closed" if self._stopped else None

    def iterate(self, items: AsyncGenerator[Result]) -> Generator[Result]:
        """Yield what an asynchronous generator yields, blocking for each; closing this one closes that one."""
        try:
            while True:
                try:
                    item = self.call(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if self._problem() is None:
                with suppress(Misuse):
                    self.call(items.aclose())

    def stop(self) -> None:
        """Cancel what is running, end the loop and its thread. Stopping twice is stopping once."""
        with self._scheduling:
            if self._stopped or self.pid != os.getpid():
                return
            self._stopped = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.get_ident() != self._thread.ident:
            self._thread.join(STOP_TIMEOUT_S)


async def _next(items: AsyncGenerator[Result]) -> Result:
    return await anext(items)
