"""Attempts in SQLite: the latest is part of its execution's record, earlier ones have rows of their own."""

from __future__ import annotations

from typing import Final

from flowfabric.backends import assets
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.contract.attempt import AttemptDescribe, AttemptInfo, AttemptList, AttemptPage
from flowfabric.contract.errors import AttemptNotFound
from flowfabric.rules import attempt as rules

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/attempt.sql")


class SqliteAttempts:
    """Reads of attempts."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    async def describe(self, command: AttemptDescribe) -> AttemptInfo:
        """Read one attempt."""
        command.check()
        return await self._readers.read(lambda snapshot: _describe(snapshot, command))

    async def list(self, command: AttemptList) -> AttemptPage:
        """List an execution's attempts, oldest first."""
        command.check()
        return await self._readers.read(lambda snapshot: _list(snapshot, command))


def _describe(snapshot: Snapshot, command: AttemptDescribe) -> AttemptInfo:
    row = rows.load(snapshot, command.execution_id)
    attempt = rows.load_attempt(snapshot, row, command.attempt_index)
    if attempt is None:
        raise AttemptNotFound(attempt_index=command.attempt_index)
    return rules.info(command.execution_id, attempt)


def _list(snapshot: Snapshot, command: AttemptList) -> AttemptPage:
    """The cursor is the number of the last attempt on the page."""
    row = rows.load(snapshot, command.execution_id)
    after = int(command.cursor) if command.cursor is not None else -1
    found = [
        rows.decode_attempt(stored)
        for (stored,) in snapshot.all(_SQL["page"], (row.seq, after, command.limit + 1))
    ]
    latest = row.loaded.record.attempt
    if latest is not None and latest.attempt_index > after and len(found) <= command.limit:
        found.append(latest)
    page = found[: command.limit]
    return AttemptPage(
        attempts=tuple(rules.info(command.execution_id, attempt) for attempt in page),
        next_cursor=str(page[-1].attempt_index) if len(found) > command.limit else None,
    )
