"""The SQLite backend: one file (or this process's memory), its stores, and what holds them together."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Final

from flowfabric.backends.bells import Bells, deliver
from flowfabric.backends.clock import Clock, ManualClock
from flowfabric.backends.sqlite import faults, opening
from flowfabric.backends.sqlite.attempt import SqliteAttempts
from flowfabric.backends.sqlite.create import Creator
from flowfabric.backends.sqlite.execution import SqliteExecutions
from flowfabric.backends.sqlite.lane import SqliteLanes
from flowfabric.backends.sqlite.lease import SqliteLeases
from flowfabric.backends.sqlite.maintenance import SqliteMaintenance
from flowfabric.backends.sqlite.news import decode
from flowfabric.backends.sqlite.opening import Target
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.backends.sqlite.stream import SqliteStreams
from flowfabric.backends.sqlite.timers import SqliteTimers
from flowfabric.backends.sqlite.wake import Post
from flowfabric.backends.sqlite.wal import REFUSE_BYTES, Log
from flowfabric.backends.sqlite.worker import SqliteWorkers
from flowfabric.backends.sqlite.writer import CLOSED, Transaction, Writer
from flowfabric.contract import limits
from flowfabric.contract.backend import Capabilities
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability
from flowfabric.version import VERSION

POLL_S: Final = 1.0
"""How often a store on which somebody waits looks whether another process has written unheard."""
PING_PATIENCE_S: Final = 2.0


class SqliteBackend:
    """An embedded store in SQLite."""

    def __init__(
        self,
        target: Target,
        key: tuple[int, int] | None,
        connection: sqlite3.Connection,
        clock: Clock,
        partitions: PartitionCounts,
        retention_ms: int,
        log_bytes_max: int,
    ) -> None:
        self._target = target
        self._key = key
        self._partitions = partitions
        self.bells = Bells()
        self.post = Post(target.path, self._hear) if target.path is not None else None
        if self.post is not None:
            self.post.open(asyncio.get_running_loop())
        log = Log(target.wal_path, refuse_bytes=log_bytes_max)
        self.writer = Writer(target, connection, clock, self.bells, self.post, log)
        self.readers = Readers(target, self.writer)
        creator = Creator(self.writer, partitions, retention_ms)
        self.execution = SqliteExecutions(self.writer, self.readers, self.bells, creator)
        self.lease = SqliteLeases(self.writer, self.readers, self.bells)
        self.attempt = SqliteAttempts(self.readers)
        self.stream = SqliteStreams(self.writer, self.readers, self.bells)
        self.worker = SqliteWorkers(self.writer, self.readers)
        self.lane = SqliteLanes(self.writer, self.readers)
        self.timers = SqliteTimers(self.writer, self.readers, self.bells, clock)
        self.maintenance = SqliteMaintenance(target, self.writer, self.readers)
        self._stop_clock = clock.subscribe(self._clock_moved) if isinstance(clock, ManualClock) else None
        self._poll = asyncio.create_task(self._poll_forever()) if target.path is not None else None
        self._closed = False

    @property
    def url(self) -> str:
        """The URL it was opened with."""
        return self._target.url

    async def now_ms(self) -> int:
        """Return the store's time."""
        return self.writer.now_ms()

    async def another(self) -> SqliteBackend:
        """Return this store: it takes calls from any event loop."""
        return self

    async def capabilities(self) -> Capabilities:
        """Say what the store physically is."""
        return Capabilities(
            family="sqlite",
            version=sqlite3.sqlite_version,
            flowfabric=VERSION,
            durability=Durability.MEMORY if self._target.path is None else Durability.FSYNC,
            several_nodes=False,
            push=True,
            partitions=self._partitions,
        )

    async def ping(self) -> None:
        """Read the store's own row, or raise Unavailable."""
        try:
            async with asyncio.timeout(PING_PATIENCE_S):
                await self.readers.read(_ping, patience_s=PING_PATIENCE_S)
        except TimeoutError as error:
            raise Unavailable(f"the store did not answer within {PING_PATIENCE_S:g} s") from error

    async def close(self) -> None:
        """Finish what is queued and let go of the file; waiting calls end with Unavailable."""
        if self._closed:
            return
        self._closed = True
        if self._stop_clock is not None:
            self._stop_clock()
        deliver(self.bells.ring_all(closed=CLOSED))
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)
        await self.readers.close()
        await self.writer.close()
        if self.post is not None:
            self.post.close()
        opening.release(self._key)

    def _hear(self, datagram: bytes) -> None:
        """Wake whom news of another process concerns."""
        news = decode(datagram)
        deliver(self.bells.ring_all() if news is None else news.ring(self.bells))

    def _clock_moved(self) -> None:
        deliver(self.bells.ring_due(0))

    async def _poll_forever(self) -> None:
        """Look, while somebody waits, whether another process has written, should its datagrams have been lost."""
        known = -1
        while True:
            await asyncio.sleep(POLL_S)
            if not self.bells.waiting:
                continue
            try:
                version = await self.writer.write(_foreign_version)
            except Unavailable:
                continue
            if version != known:
                deliver(self.bells.ring_all())
            known = version


def _foreign_version(transaction: Transaction) -> int:
    return transaction.foreign_version


def _ping(snapshot: Snapshot) -> None:
    snapshot.first(opening.READ_PARTITIONS)


async def open_backend(
    url: str,
    *,
    clock: Clock,
    partitions: PartitionCounts | None = None,
    retention_ms: int | None = None,
    log_bytes_max: int = REFUSE_BYTES,
) -> SqliteBackend:
    """Open a store, made on first use.

    Raises: Misuse (not a store of ours, newer version, other partition counts), Corrupt, Unavailable.
    """
    target = opening.parse_url(url)
    loop = asyncio.get_running_loop()

    def prepare() -> tuple[tuple[int, int] | None, sqlite3.Connection, PartitionCounts]:
        key = opening.hold(target)
        try:
            connection = opening.connect_writer(target)
            try:
                counts = opening.prepare(connection, partitions, clock.now_ms())
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            opening.release(key)
            raise faults.translate(error) from error
        except BaseException:
            opening.release(key)
            raise
        return key, connection, counts

    key, connection, counts = await loop.run_in_executor(None, prepare)
    return SqliteBackend(
        target,
        key,
        connection,
        clock,
        counts,
        retention_ms if retention_ms is not None else limits.RETENTION_DEFAULT_MS,
        log_bytes_max,
    )
