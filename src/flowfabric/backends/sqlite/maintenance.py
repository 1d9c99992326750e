"""What operators do to a SQLite store: copy it while it is in use, and check it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flowfabric.backends.sqlite import faults, opening
from flowfabric.backends.sqlite.fsck import Fsck
from flowfabric.backends.sqlite.opening import Target
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.writer import Writer
from flowfabric.contract.backend import BackupReport, FsckReport
from flowfabric.contract.errors import Misuse, Unavailable

BACKUP_PAGES_STEP: Final = 1_000
BACKUP_PATIENCE_S: Final = 24 * 3_600.0


class SqliteMaintenance:
    """Backup and fsck."""

    def __init__(self, target: Target, writer: Writer, readers: Readers) -> None:
        self._target = target
        self._writer = writer
        self._readers = readers

    async def fsck(
        self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> FsckReport:
        """Check every stored invariant; with `repair`, rebuild index entries that disagree with their record."""
        return await Fsck(self._writer, self._readers, repair=repair, progress=progress).run()

    async def backup(
        self, destination: Path, *, progress: Callable[[int, int], None] | None = None
    ) -> BackupReport:
        """Copy the store to a new file while it is in use. The copy is one consistent state.

        `progress` is called with (pages copied, pages in all), from another thread.
        Raises: Misuse when the destination exists, Unavailable when it cannot be written.
        """
        started = time.monotonic()
        partial = _partial(destination)
        try:
            if self._target.path is None:
                # A store in memory has one connection, which must not be inside a transaction.
                await self._writer.alone(lambda connection: _copy(connection, partial, progress))
            else:
                await asyncio.get_running_loop().run_in_executor(None, self._copy_file, partial, progress)
            size = _publish(partial, destination)
        except sqlite3.Error as error:
            raise faults.translate(error) from error
        except OSError as error:
            raise Unavailable(f"cannot write {destination}: {error.strerror}") from error
        finally:
            _remove(partial)
        elapsed_ms = int((time.monotonic() - started) * 1_000)
        return BackupReport(path=str(destination), bytes=size, elapsed_ms=elapsed_ms)

    def _copy_file(self, partial: Path, progress: Callable[[int, int], None] | None) -> None:
        source = opening.connect(self._target, read_only=True)
        try:
            _copy(source, partial, progress)
        finally:
            source.close()


def _copy(source: sqlite3.Connection, partial: Path, progress: Callable[[int, int], None] | None) -> None:
    """Copy page by page. A read transaction keeps the copy at one state whatever is written meanwhile."""
    partial.touch(mode=0o600)
    copy = sqlite3.connect(partial, isolation_level=None)
    begun = not source.in_transaction
    if begun:
        source.execute(opening.BEGIN_READ)
        source.execute(opening.READ_PARTITIONS).fetchone()
    try:
        source.backup(
            copy,
            pages=BACKUP_PAGES_STEP,
            progress=(lambda _, remaining, total: progress(total - remaining, total)) if progress else None,
        )
        # The copy is one file: the write-ahead log comes back with the first opening.
        copy.execute(opening.JOURNAL_DELETE).fetchone()
    finally:
        copy.close()
        if begun and source.in_transaction:
            source.execute(opening.END_READ)


def _partial(destination: Path) -> Path:
    """Return the name of the copy while it is being made."""
    if destination.exists():
        raise Misuse(f"{destination} exists already: name a new file")
    return destination.absolute().with_name(f"{destination.name}.{secrets.token_hex(4)}.part")


def _remove(partial: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def _publish(partial: Path, destination: Path) -> int:
    """Give the finished copy its name, durably, without replacing anything; return its size."""
    size = partial.stat().st_size
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(partial, destination)
    except FileExistsError as error:
        raise Misuse(f"{destination} exists already: name a new file") from error
    except OSError:
        # No hard links here.
        partial.rename(destination)
    return size
