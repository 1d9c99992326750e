"""Open a store: what may be opened, how connections are set up, and the schema brought up to date.

A file that is not a FlowFabric store, was written by a newer version, is damaged, or lies on a network file system is
refused before anything is written. What must stay true: this process never closes a handle of its own on a file that
SQLite has open here, because that would drop the locks SQLite holds on it (POSIX locks belong to the process).
"""

from __future__ import annotations

import os
import re
import sqlite3
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Final

import msgspec

from flowfabric.backends import assets, migrations
from flowfabric.backends.sqlite import faults
from flowfabric.contract.errors import Corrupt, Misuse, Unavailable
from flowfabric.contract.ids import PartitionCounts

APPLICATION_ID: Final = 0x466C4661
"""`FlFa`: what the header of a store's file says it is."""
PACKAGE: Final = "flowfabric.backends.sqlite"
MIGRATIONS: Final = migrations.read(PACKAGE, "sql/migrations")
BUSY_PATIENCE_S: Final = 5.0
QUICK_CHECK_BYTES_MAX: Final = 16 * 1024 * 1024
"""Up to this size a file is looked through when it is opened, which takes some milliseconds."""

_SQL: Final = assets.named(PACKAGE, "sql/opening.sql")
READ_PARTITIONS: Final = _SQL["read_partitions"]
BEGIN_READ: Final = _SQL["begin_read"]
END_READ: Final = _SQL["commit"]
JOURNAL_DELETE: Final = _SQL["journal_delete"]
_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100
NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "ncpfs"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.davfs"}
)
_SCHEME: Final = "sqlite:///"
_MEMORY: Final = ":memory:"
_MODE_WAL: Final = "wal"

_open_lock: Final = threading.Lock()
_open_here: Final[dict[tuple[int, int], int]] = {}


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a store is: a file, or the memory of this process."""

    url: str
    path: Path | None

    @property
    def wal_path(self) -> Path | None:
        """The write-ahead log beside the file."""
        return None if self.path is None else self.path.with_name(self.path.name + "-wal")


def statement(name: str) -> str:
    """Return one of the named statements for setting up connections."""
    return _SQL[name]


def parse_url(url: str) -> Target:
    """Read `sqlite:///relative/or.db`, `sqlite:////absolute.db` or `sqlite:///:memory:`."""
    if not url.startswith(_SCHEME):
        raise Misuse(f"not a SQLite URL: {url!r}; write sqlite:///file.db, sqlite:////absolute/file.db")
    rest = url.removeprefix(_SCHEME)
    if "?" in rest or "#" in rest:
        raise Misuse("a SQLite URL takes no parameters")
    name = urllib.parse.unquote(rest)
    if name == _MEMORY:
        return Target(url=url, path=None)
    if not name or name.endswith("/") or "\x00" in name:
        raise Misuse(f"the URL names no file: {url!r}")
    return Target(url=url, path=Path(name).absolute())


def hold(target: Target) -> tuple[int, int] | None:
    """Check that a file may be opened and note that it is open in this process; `release` takes that back.

    Raises: Misuse (not a store, newer version, network file system), Corrupt, Unavailable.
    """
    path = target.path
    if path is None:
        return None
    with _open_lock:
        key = _identity(path)
        if key is None or key not in _open_here:
            _refuse_network(path)
            fresh = _inspect(path)
            if fresh:
                _create(path)
            key = _identity(path)
        assert key is not None, "the file was just created or looked at"
        _open_here[key] = _open_here.get(key, 0) + 1
        return key


def release(key: tuple[int, int] | None) -> None:
    """Note that a store that `hold` answered for is closed."""
    if key is None:
        return
    with _open_lock:
        _open_here[key] -= 1
        if not _open_here[key]:
            del _open_here[key]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"cannot look at {path}: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _create(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"cannot create {path}: {error.strerror}") from error


def _refuse_network(path: Path) -> None:
    """Refuse network file systems, where neither locks nor shared memory can be trusted (Linux; else skipped)."""
    if not sys.platform.startswith("linux"):
        return
    folder = path.resolve().parent
    while not folder.exists():
        folder = folder.parent
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    kind = file_system_of(folder, mounts)
    if kind in NETWORK:
        raise Misuse(
            f"{path} is on a network file system ({kind}), where SQLite loses data: put the store on a local disk",
            file_system=kind,
        )


def file_system_of(folder: Path, mounts: str) -> str:
    """Return the kind of file system a folder is on, given the text of `/proc/self/mountinfo`."""
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if len(point) >= len(best) and folder.is_relative_to(point):
            best, kind = point, after.split(" ")[0]
    return kind


def _inspect(path: Path) -> bool:
    """Look at a file's header by hand; return whether the file is empty or missing. Nothing is written."""
    try:
        if path.is_dir():
            raise Misuse(f"{path} is a folder; name a file in it")
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return True
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        return True
    if not header.startswith(_MAGIC):
        raise Misuse(f"{path} is not a FlowFabric store: it is no SQLite file. Name another file")
    if len(header) < _HEADER_BYTES:
        raise Corrupt(f"{path} is truncated: restore a backup")
    application_id = int.from_bytes(header[68:72], "big")
    version = int.from_bytes(header[60:64], "big")
    wal = path.with_name(path.name + "-wal")
    pages_in_wal = wal.exists() and wal.stat().st_size > 0
    if application_id != APPLICATION_ID:
        raise Misuse(
            f"{path} is a SQLite file of another application, not a FlowFabric store. Name another file"
        )
    if version > len(MIGRATIONS):
        raise migrations.newer(version, len(MIGRATIONS))
    if not pages_in_wal:
        _refuse_damage(path, header, size)
    return False


def _refuse_damage(path: Path, header: bytes, size: int) -> None:
    """Refuse a truncated or damaged file, through a connection that can write nothing, not even beside it."""
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65_536 if page_bytes == 1 else page_bytes
    pages = int.from_bytes(header[28:32], "big")
    if header[24:28] == header[92:96] and pages * page_bytes > size:
        raise Corrupt(f"{path} is truncated ({size} of {pages * page_bytes} bytes): restore a backup")
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        statement = _SQL["quick_check"] if size <= QUICK_CHECK_BYTES_MAX else _SQL["read_schema"]
        answer = connection.execute(statement).fetchone()
        if size <= QUICK_CHECK_BYTES_MAX and answer != ("ok",):
            raise Corrupt(f"{path} is damaged ({str(answer[0])[:200]}): restore a backup")
    except sqlite3.Error as error:
        raise Corrupt(f"{path} is damaged ({error}): restore a backup") from error
    finally:
        connection.close()


def connect(target: Target, *, read_only: bool = False) -> sqlite3.Connection:
    """Open one connection to a file that `hold` answered for, or to a new store in memory."""
    if target.path is None:
        connection = sqlite3.connect(
            _MEMORY, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    else:
        connection = sqlite3.connect(
            f"{target.path.as_uri()}?mode={'ro' if read_only else 'rw'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            timeout=BUSY_PATIENCE_S,
        )
    try:
        for name in ("secure_delete", "temp_store", "trusted_schema"):
            connection.execute(_SQL[name])
        connection.execute(_SQL["cache_reader" if read_only else "cache_writer"])
        if read_only:
            connection.execute(_SQL["query_only"])
    except BaseException:
        connection.close()
        raise
    return connection


def connect_writer(target: Target) -> sqlite3.Connection:
    """Open the connection that writes: write-ahead log, every commit synced to the disk."""
    connection = connect(target)
    try:
        for name in (
            "synchronous",
            "fullfsync",
            "checkpoint_fullfsync",
            "wal_autocheckpoint",
            "journal_size_limit",
        ):
            connection.execute(_SQL[name])
        if target.path is not None:
            _write_ahead(connection)
        else:
            _mark(connection)
        connection.execute(_SQL["busy_timeout_none"])
    except BaseException:
        connection.close()
        raise
    return connection


def _mark(connection: sqlite3.Connection) -> None:
    """Say in a new store's header what it is, before anything else is in it."""
    if connection.execute(_SQL["read_page_count"]).fetchone()[0] == 0:
        connection.execute(_SQL["auto_vacuum"])
        connection.execute(_SQL["application_id"])


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; several processes may be opening a new file at once."""
    deadline = time.monotonic() + BUSY_PATIENCE_S
    while True:
        try:
            _mark(connection)
            mode = connection.execute(_SQL["journal_mode"]).fetchone()[0]
        except sqlite3.OperationalError as error:
            if not faults.is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
            continue
        if mode != _MODE_WAL:
            raise Misuse(f"this file system cannot hold a write-ahead log (journal mode stays {mode})")
        return


def prepare(
    connection: sqlite3.Connection, partitions: PartitionCounts | None, now_ms: int
) -> PartitionCounts:
    """Bring the schema up to date and return the store's partition counts, fixed when it was made.

    Raises: Misuse when `partitions` differ from the store's, or it was written by a newer version.
    """
    connection.execute(_SQL["busy_timeout"])
    applied = _applied(connection)
    steps = migrations.pending(MIGRATIONS, applied)
    if steps:
        _migrate(connection, partitions or PartitionCounts(), now_ms)
        connection.execute(_SQL["checkpoint_truncate"])
    row = connection.execute(_SQL["read_partitions"]).fetchone()
    if row is None:
        raise Corrupt("the store has no header row: restore a backup")
    stored = PartitionCounts(flow=row[0], budget=row[1], quota=row[2])
    if partitions is not None and partitions != stored:
        raise Misuse(
            f"the store has {stored.flow}/{stored.budget}/{stored.quota} flow/budget/quota partitions, fixed when it "
            f"was made; the configuration says {partitions.flow}/{partitions.budget}/{partitions.quota}"
        )
    connection.execute(_SQL["busy_timeout_none"])
    return stored


def _applied(connection: sqlite3.Connection) -> dict[int, str]:
    if connection.execute(_SQL["has_ledger"]).fetchone() is None:
        return {}
    return dict(connection.execute(_SQL["read_ledger"]).fetchall())


def _migrate(connection: sqlite3.Connection, partitions: PartitionCounts, now_ms: int) -> None:
    for step in MIGRATIONS:
        connection.execute(_SQL["begin"])
        try:
            if step.number in _applied(connection):
                connection.execute(_SQL["rollback"])
                continue
            if step.number == 1:
                connection.execute(_SQL["create_ledger"])
            for statement in _statements(step.text):
                connection.execute(statement)
            if step.number == 1:
                connection.execute(
                    _SQL["insert_store"],
                    (now_ms, partitions.flow, partitions.budget, partitions.quota, now_ms),
                )
            connection.execute(_SQL["insert_ledger"], (step.number, step.name, step.checksum, now_ms))
            # The header's version is what a look at the file's first bytes tells; pragmas take no parameters.
            connection.execute(f"PRAGMA user_version = {step.number:d}")
            connection.execute(_SQL["commit"])
        except BaseException:
            if connection.in_transaction:
                connection.execute(_SQL["rollback"])
            raise


def _statements(text: str) -> list[str]:
    """Split a script into its statements."""
    found: list[str] = []
    pending = ""
    for line in text.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    assert not pending.strip(), "a migration ends with a semicolon"
    return found
