"""The write-ahead log: copied back between groups, bounded, and truncated when it has grown.

Automatic checkpoints are off, because they would run inside somebody's commit. A reader that stays on an old state
keeps the log from being reused; past a bound, creates are refused until it is gone, everything else goes on.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Final

from flowfabric.backends import assets
from flowfabric.contract.errors import Unavailable

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/wal.sql")

CHANGES_MAX: Final = 6_000
"""Row changes after which the log is copied back."""
GROWTH_BYTES_MAX: Final = 16 * 1024 * 1024
"""Growth of the log's file after which it is copied back."""
TRUNCATE_BYTES: Final = 64 * 1024 * 1024
REFUSE_BYTES: Final = 256 * 1024 * 1024
_RETRY_S: Final = 0.25


class Log:
    """What the writer knows about the log of its store."""

    def __init__(self, path: Path | None, *, refuse_bytes: int = REFUSE_BYTES) -> None:
        self._path = path
        self._refuse_bytes = refuse_bytes
        self._truncate_bytes = min(TRUNCATE_BYTES, refuse_bytes // 2)
        self._changes = 0
        self._bytes = 0
        self._bytes_at_checkpoint = 0
        self._retry_at = 0.0

    @property
    def is_tidy(self) -> bool:
        """Say whether nothing was written since the last checkpoint."""
        return self._changes == 0 or self._path is None

    def wrote(self, changes: int) -> None:
        """Note row changes that were committed."""
        self._changes += changes

    def tend(self, connection: sqlite3.Connection, *, idle: bool) -> None:
        """Copy the log back if it is time, between two groups. Failing is no harm: it is tried again."""
        if self._path is None or self._changes == 0:
            return
        try:
            self._bytes = self._path.stat().st_size
        except OSError:
            self._bytes = 0
        large = self._bytes > self._truncate_bytes
        grown = self._bytes - self._bytes_at_checkpoint > min(GROWTH_BYTES_MAX, self._truncate_bytes)
        if not (
            idle or grown or self._changes >= CHANGES_MAX or (large and time.monotonic() > self._retry_at)
        ):
            return
        try:
            _, frames, copied = connection.execute(_SQL["checkpoint_passive"]).fetchone()
            if large and frames == copied:
                connection.execute(_SQL["checkpoint_truncate"])
        except sqlite3.Error:
            pass
        self._retry_at = time.monotonic() + _RETRY_S
        self._changes = 0
        self._bytes_at_checkpoint = self._bytes = self.file_bytes()

    def file_bytes(self) -> int:
        """Return the size of the log's file."""
        try:
            return self._path.stat().st_size if self._path is not None else 0
        except OSError:
            return 0

    def refuse_growth(self) -> None:
        """Refuse to take more work in while a reader keeps the log from being reused."""
        if self._bytes <= self._refuse_bytes or self._path is None:
            return
        self._bytes = self.file_bytes()
        if self._bytes <= self._refuse_bytes:
            return
        self._changes = max(self._changes, 1)
        raise Unavailable(
            f"the store's log has grown to {self._bytes >> 20} MiB, because {_reader(self._path)} keeps reading an "
            "old state: end that read; new work is taken again right after",
            log_bytes=self._bytes,
        )


def _reader(wal: Path) -> str:
    """Name who holds read locks on the log's index, where the system tells (Linux)."""
    anonymous = "a long-running reader"
    if not sys.platform.startswith("linux"):
        return anonymous
    index = wal.with_name(wal.name.removesuffix("-wal") + "-shm")
    try:
        status = index.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return anonymous
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    pids: set[int] = set()
    for line in locks.splitlines():
        fields = line.split()
        if place in fields and "READ" in fields:
            pid = fields[fields.index("READ") + 1]
            if pid.isdigit() and int(pid) != os.getpid():
                pids.add(int(pid))
    if not pids:
        return anonymous
    return "process " + ", ".join(f"{pid} ({_name(pid)})" for pid in sorted(pids)[:3])


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"
