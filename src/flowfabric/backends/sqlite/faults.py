"""Turn what SQLite reports into errors of the contract. Nothing of the driver escapes from this package."""

from __future__ import annotations

import sqlite3
from typing import Final

from flowfabric.contract.errors import Corrupt, FlowFabricError, OutcomeUnknown, Unavailable

_PRIMARY: Final = 0xFF

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_UNWRITABLE: Final = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_INPUT_OUTPUT: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOLFS})


def primary_code(error: BaseException) -> int:
    """Return SQLite's primary result code, or -1 for errors that the driver raised by itself."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & _PRIMARY if isinstance(code, int) else -1


def is_busy(error: BaseException) -> bool:
    """Say whether another connection was in the way."""
    return primary_code(error) in _BUSY


def is_interrupted(error: BaseException) -> bool:
    """Say whether a read was stopped because it took too long."""
    return primary_code(error) == sqlite3.SQLITE_INTERRUPT


def translate(error: sqlite3.Error, *, committing: bool = False) -> FlowFabricError:
    """Return the contract's error for one of SQLite's.

    `committing`: it came from COMMIT, so after a failed write to the disk nobody knows whether it happened.
    """
    code = primary_code(error)
    if code in _BUSY:
        return Unavailable("another process has been writing to the store for too long: try again")
    if code == sqlite3.SQLITE_FULL:
        return Unavailable("the disk is full: free some space, service resumes by itself")
    if code in _UNWRITABLE:
        return Unavailable(
            "the store's file or folder is read-only: make it writable, service resumes by itself"
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return Unavailable(
            "the store's file cannot be opened: does it exist, and may this process write beside it?"
        )
    if code in _DAMAGED:
        return Corrupt(
            f"the store's file is damaged ({error}): restore a backup, or ask `flowfabric admin fsck`"
        )
    if code == sqlite3.SQLITE_INTERRUPT:
        return Unavailable("the read took too long and was stopped: ask for less, or try again")
    if code == sqlite3.SQLITE_NOMEM:
        return Unavailable("out of memory: try again")
    if code in _INPUT_OUTPUT:
        if committing:
            return OutcomeUnknown("the disk reported an error while committing: repeat the call to be sure")
        return Unavailable("the disk reported an error: is it full, limited or failing? Nothing was changed")
    return Corrupt(f"the store answered in a way that it should not: {error}")
