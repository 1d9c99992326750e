"""The one thread that writes: it commits what is queued as one group, then answers everybody in it.

Operations are functions of a `Transaction`. Those queued at the same time share one transaction and one sync to the
disk. A refusal is an answer and keeps its writes; any other error undoes the whole group, and each of its operations
then runs again in a transaction of its own, so that an operation leaves all or none of its writes and harms no other.
Operations must therefore have no effect outside the transaction. Nobody is answered before COMMIT has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from flowfabric.backends import assets
from flowfabric.backends.bells import Bells, Wake, hop
from flowfabric.backends.clock import Clock
from flowfabric.backends.sqlite import faults, opening
from flowfabric.backends.sqlite.catalog import Catalog
from flowfabric.backends.sqlite.news import News
from flowfabric.backends.sqlite.opening import Target
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.backends.sqlite.wake import Post
from flowfabric.backends.sqlite.wal import Log
from flowfabric.contract.errors import Refused, Unavailable

T = TypeVar("T")

GROUP_WEIGHT_MAX: Final = 256
QUEUE_MAX: Final = 20_000
BUSY_PATIENCE_S: Final = 5.0
IDLE_S: Final = 1.0
CLOSED: Final = "the store is closed"

_SQL: Final = assets.named(opening.PACKAGE, "sql/writer.sql")
_BEGIN: Final = _SQL["begin"]
_COMMIT: Final = _SQL["commit"]
_ROLLBACK: Final = _SQL["rollback"]
_DATA_VERSION: Final = _SQL["data_version"]
_READ_STORE: Final = _SQL["read_store"]
_WRITE_STORE: Final = _SQL["write_store"]
_LAST_SEQ: Final = _SQL["last_seq"]


class Transaction(Snapshot):
    """A state of the store that may be changed; what is announced with it is sent after the commit."""

    __slots__ = ("_last_seq", "bells", "catalog", "event_id", "foreign_version", "log", "news")

    def __init__(
        self,
        connection: sqlite3.Connection,
        now_ms: int,
        *,
        catalog: Catalog,
        bells: Bells,
        log: Log,
        event_id: int,
        foreign_version: int,
    ) -> None:
        super().__init__(connection, now_ms)
        self.catalog = catalog
        self.bells = bells
        self.news = News()
        self.event_id = event_id
        self.log = log
        self.foreign_version = foreign_version
        """Changes whenever another connection has written."""
        self._last_seq = -1

    def next_event_id(self) -> int:
        """Give out the next event id."""
        self.event_id += 1
        return self.event_id

    def next_seq(self) -> int:
        """Give out the row number of a new execution."""
        last: int = self._last_seq if self._last_seq >= 0 else self.execute(_LAST_SEQ).fetchone()[0] or 0
        self._last_seq = last + 1
        return self._last_seq


class _Job:
    __slots__ = ("abandoned", "alone", "error", "future", "loop", "reply", "run", "weight")

    def __init__(
        self,
        run: Callable[[Transaction], Any],
        loop: asyncio.AbstractEventLoop,
        weight: int,
        abandoned: Callable[[Any], None] | None,
        alone: Callable[[sqlite3.Connection], Any] | None = None,
    ) -> None:
        self.run = run
        self.alone = alone
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.weight = weight
        self.abandoned = abandoned
        self.reply: Any = None
        self.error: BaseException | None = None

    def answer(self) -> None:
        """Hand the outcome to the caller; runs on its loop."""
        if self.future.done():
            if self.abandoned is not None and self.error is None:
                self.abandoned(self.reply)
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.reply)


class Writer:
    """Owner of the connection that writes."""

    def __init__(
        self,
        target: Target,
        connection: sqlite3.Connection,
        clock: Clock,
        bells: Bells,
        post: Post | None,
        log: Log,
    ) -> None:
        self._target = target
        self._connection: sqlite3.Connection | None = connection
        self._clock = clock
        self._bells = bells
        self._post = post
        self._log = log
        self._catalog = Catalog()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._version = -1
        self._event_id = 0
        self._gate = threading.Lock()
        self._closing = False
        self.clock_ms: int = connection.execute(_READ_STORE).fetchone()[0]
        """The latest instant this process has seen stored."""
        self._thread = threading.Thread(target=self._serve, name="flowfabric-writer", daemon=True)
        self._thread.start()

    async def write(
        self,
        run: Callable[[Transaction], T],
        *,
        weight: int = 1,
        abandoned: Callable[[T], None] | None = None,
    ) -> T:
        """Run an operation in the next group and return its reply after the commit.

        `abandoned` is called with the reply when the caller had gone away before it could be handed over.
        """
        job = _Job(run, asyncio.get_running_loop(), weight, abandoned)
        self._submit(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            future = job.future
            if abandoned is not None and future.done() and not future.cancelled() and not future.exception():
                abandoned(future.result())
            raise

    async def alone(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run something with the connection that is not to be inside a transaction, between two groups."""
        job = _Job(_nothing, asyncio.get_running_loop(), GROUP_WEIGHT_MAX, None, run)
        self._submit(job)
        return await job.future

    def post(self, run: Callable[[Transaction], None]) -> None:
        """Run an operation in one of the next groups, for nobody in particular; a store that is closing skips it."""
        job = _Job(run, asyncio.get_running_loop(), 1, None)
        job.future.add_done_callback(_ignore)
        with contextlib.suppress(Unavailable):
            self._submit(job)

    def _submit(self, job: _Job) -> None:
        """Queue a job; none gets behind the end of the queue that `close` puts there."""
        with self._gate:
            if self._closing:
                raise Unavailable(CLOSED)
            if self._queue.qsize() >= QUEUE_MAX:
                raise Unavailable("too many changes are waiting for the store: try again shortly")
            self._queue.put(job)

    def now_ms(self) -> int:
        """Return the store's time: the clock's, but never less than what was stored."""
        return max(self._clock.now_ms(), self.clock_ms)

    async def close(self) -> None:
        """Finish what is queued, then let go of the connection."""
        with self._gate:
            if not self._closing:
                self._closing = True
                self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    # The thread ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        stopping = False
        while not stopping:
            job = self._next_job()
            if job is None:
                break
            group = [job]
            weight = job.weight
            while weight < GROUP_WEIGHT_MAX and not stopping:
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    stopping = True
                else:
                    group.append(job)
                    weight += job.weight
            try:
                self._group(group)
            except Exception as error:
                self._undo(reopen=True)
                self._fail(group, error)
            if self._connection is not None:
                self._log.tend(self._connection, idle=False)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _next_job(self) -> _Job | None:
        if not self._log.is_tidy:
            try:
                return self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                if self._connection is not None:
                    self._log.tend(self._connection, idle=True)
        return self._queue.get()

    def _group(self, jobs: list[_Job]) -> None:
        """Run jobs in one transaction; if that fails for more than a refusal, run each in its own."""
        jobs = [job for job in jobs if not job.future.cancelled()]
        if not jobs:
            return
        if any(job.alone is not None for job in jobs):
            jobs = self._without_transaction(jobs)
            if not jobs:
                return
        try:
            transaction = self._begin()
        except Exception as error:
            self._fail(jobs, error)
            return
        changes = transaction.connection.total_changes
        try:
            for job in jobs:
                try:
                    job.reply, job.error = job.run(transaction), None
                except (Refused, Unavailable) as refusal:
                    job.reply, job.error = None, refusal
            changed = transaction.connection.total_changes - changes
            if changed:
                transaction.execute(_WRITE_STORE, (transaction.now_ms, transaction.event_id))
        except Exception as error:
            self._undo()
            if len(jobs) > 1:
                for job in jobs:
                    self._group([job])
            else:
                self._fail(jobs, error)
            return
        try:
            transaction.execute(_COMMIT)
        except Exception as error:
            self._undo(reopen=True)
            self._fail(jobs, error, committing=True)
            return
        self.clock_ms = transaction.now_ms
        self._event_id = transaction.event_id
        self._log.wrote(changed)
        news = transaction.news
        self._answer(jobs, news.ring(self._bells) if news else [])
        if changed and news and self._post is not None and self._post.has_peers():
            self._post.send(news.encode())

    def _without_transaction(self, jobs: list[_Job]) -> list[_Job]:
        """Run the jobs that want no transaction; return the others."""
        alone = [job for job in jobs if job.alone is not None]
        for job in alone:
            try:
                if self._connection is None:
                    self._connection = opening.connect_writer(self._target)
                    self._version = -1
                assert job.alone is not None, "just looked at"
                job.reply = job.alone(self._connection)
                self._log.wrote(1)
            except Exception as error:
                job.error = _contract_error(error, committing=False)
        self._answer(alone, [])
        return [job for job in jobs if job.alone is None]

    def _begin(self) -> Transaction:
        if self._connection is None:
            self._connection = opening.connect_writer(self._target)
            self._version = -1
        connection = self._connection
        deadline = 0.0
        pause_s = 0.000_2
        while True:
            try:
                connection.execute(_BEGIN)
                break
            except sqlite3.Error as error:
                now = time.monotonic()
                deadline = deadline or now + BUSY_PATIENCE_S
                if not faults.is_busy(error) or now > deadline:
                    self._undo(reopen=not faults.is_busy(error))
                    raise
            time.sleep(pause_s * (0.5 + random.random()))  # noqa: S311 (jitter, no secret)
            pause_s = min(pause_s * 1.5, 0.005)
        try:
            version = connection.execute(_DATA_VERSION).fetchone()[0]
            if version != self._version:
                self._catalog.clear()
                clock_ms, self._event_id = connection.execute(_READ_STORE).fetchone()
                self.clock_ms = max(self.clock_ms, clock_ms)
                self._version = version
            self._catalog.trim()
        except BaseException:
            self._undo(reopen=True)
            raise
        return Transaction(
            connection,
            self.now_ms(),
            catalog=self._catalog,
            bells=self._bells,
            log=self._log,
            event_id=self._event_id,
            foreign_version=self._version,
        )

    def _undo(self, *, reopen: bool = False) -> None:
        """Roll back; with `reopen`, let go of a file's connection, so that the next group starts from scratch."""
        self._catalog.clear()
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute(_ROLLBACK)
        except sqlite3.Error:
            reopen = True
        if reopen and self._target.path is not None:
            self._connection = None
            connection.close()

    def _fail(self, jobs: list[_Job], error: Exception, *, committing: bool = False) -> None:
        for job in jobs:
            job.reply = None
            job.error = _contract_error(error, committing=committing)
        self._answer(jobs, [])

    def _answer(self, jobs: list[_Job], wakes: list[Wake]) -> None:
        """Tell every caller, and wake whom the group's news concerns, with one hop per event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        for job in jobs:
            by_loop.setdefault(job.loop, []).append(job.answer)
        for loop, wake in wakes:
            by_loop.setdefault(loop, []).append(wake)
        for loop, calls in by_loop.items():
            hop(loop, calls)


def _nothing(_: Transaction) -> None:
    """Do nothing."""


def _ignore(future: asyncio.Future[Any]) -> None:
    """Take note of the outcome, so that a failure is not reported as one that nobody looked at."""
    if not future.cancelled():
        future.exception()


def _contract_error(error: Exception, *, committing: bool) -> Exception:
    """Return the error for one of several callers: each gets an exception of its own."""
    if not isinstance(error, sqlite3.Error):
        return error
    translated = faults.translate(error, committing=committing)
    translated.__cause__ = error
    return translated
