"""Threads for plain functions: daemons, so that one that never returns cannot hold up the end of the process.

At most `size` functions run at once; the worker never hands in more than it has slots. Context variables travel along.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

_Job = tuple[contextvars.Context, Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Outcome]"]


class Outcome:
    """What a function in a thread came to: a value, or what it raised."""

    __slots__ = ("error", "value")

    def __init__(self, value: Any, error: BaseException | None) -> None:
        self.value: Any = value
        self.error: BaseException | None = error


class HandlerThreads:
    """A bounded set of daemon threads, started when they are first needed."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = 0
        self._idle = 0
        self._lock = threading.Lock()

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Outcome]:
        """Run a function in a thread; the future gives its outcome in the calling event loop."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Outcome] = loop.create_future()
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif self._started < self._size:
                self._started += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        self._jobs.put((contextvars.copy_context(), function, loop, done))
        return done

    def close(self) -> None:
        """Let the threads end once they have nothing left to do."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            context, function, loop, done = job
            try:
                outcome = Outcome(context.run(function), None)
            except BaseException as error:  # noqa: BLE001, RUF100 -- everything belongs to the caller
                outcome = Outcome(None, error)
            with self._lock:
                self._idle += 1
            try:
                loop.call_soon_threadsafe(_deliver, done, outcome)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del job, context, function, loop, done, outcome


def _deliver(done: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not done.done():
        done.set_result(outcome)
