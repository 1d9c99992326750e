"""Reads: a few threads, each with a connection of its own that cannot write.

A read is a function of a `Snapshot` and sees one committed state; it is stopped when it takes too long. A store in
memory has one connection only, so its reads run on the writer's thread, between its operations.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from flowfabric.backends import assets
from flowfabric.backends.bells import hop
from flowfabric.backends.sqlite import faults, opening
from flowfabric.backends.sqlite.opening import Target
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.backends.sqlite.writer import CLOSED, QUEUE_MAX, Writer
from flowfabric.contract.errors import Unavailable

T = TypeVar("T")

THREADS_MAX: Final = 3
READ_PATIENCE_S: Final = 5.0
_STEPS_BETWEEN_LOOKS: Final = 20_000

_SQL: Final = assets.named(opening.PACKAGE, "sql/readers.sql")
_BEGIN: Final = _SQL["begin"]
_END: Final = _SQL["end"]


class _Read:
    __slots__ = ("error", "future", "loop", "patience_s", "reply", "run")

    def __init__(
        self, run: Callable[[Snapshot], Any], loop: asyncio.AbstractEventLoop, patience_s: float
    ) -> None:
        self.run = run
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.patience_s = patience_s
        self.reply: Any = None
        self.error: Exception | None = None

    def answer(self) -> None:
        """Hand the outcome to the caller; runs on its loop."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.reply)


class Readers:
    """The reading threads, started when they are first needed."""

    def __init__(self, target: Target, writer: Writer) -> None:
        self._target = target
        self._writer = writer
        self._queue: queue.SimpleQueue[_Read | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._busy = 0
        self._closing = False

    async def read(self, run: Callable[[Snapshot], T], *, patience_s: float = READ_PATIENCE_S) -> T:
        """Run a read and return its answer."""
        if self._target.path is None:
            return await self._writer.write(run)
        job = _Read(run, asyncio.get_running_loop(), patience_s)
        with self._lock:
            if self._closing:
                raise Unavailable(CLOSED)
            if self._queue.qsize() >= QUEUE_MAX:
                raise Unavailable("too many reads are waiting for the store: try again shortly")
            self._queue.put(job)
            self._busy += 1
            if self._busy > len(self._threads) and len(self._threads) < THREADS_MAX:
                name = f"flowfabric-reader-{len(self._threads)}"
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return await job.future

    async def close(self) -> None:
        """Finish what is queued, then let go of the connections."""
        with self._lock:
            self._closing = True
            threads = list(self._threads)
            for _ in threads:
                self._queue.put(None)
        loop = asyncio.get_running_loop()
        for thread in threads:
            await loop.run_in_executor(None, thread.join)

    def _serve(self) -> None:
        connection: sqlite3.Connection | None = None
        while (job := self._queue.get()) is not None:
            if not job.future.cancelled():
                try:
                    if connection is None:
                        connection = opening.connect(self._target, read_only=True)
                    job.reply = self._run(connection, job)
                except sqlite3.Error as error:
                    job.error = faults.translate(error)
                    if connection is not None and not faults.is_interrupted(error):
                        connection.close()
                        connection = None
                except Exception as error:  # what a read raises is its caller's
                    job.error = error
            with self._lock:
                self._busy -= 1
            hop(job.loop, [job.answer])
            del job
        if connection is not None:
            connection.close()

    def _run(self, connection: sqlite3.Connection, job: _Read) -> Any:
        deadline = time.monotonic() + job.patience_s
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
        connection.execute(_BEGIN)
        try:
            return job.run(Snapshot(connection, self._writer.now_ms()))
        finally:
            connection.set_progress_handler(None, 0)
            if connection.in_transaction:
                connection.execute(_END)
