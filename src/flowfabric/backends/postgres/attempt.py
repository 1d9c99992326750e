"""Attempts in Postgres: the latest is part of its execution's row, earlier ones are rows of their own."""

from __future__ import annotations

from flowfabric.backends.postgres.record import attempt_of, place_of
from flowfabric.backends.postgres.store import Store
from flowfabric.contract.attempt import AttemptDescribe, AttemptInfo, AttemptList, AttemptPage, AttemptRecord
from flowfabric.contract.errors import AttemptNotFound, Corrupt, ExecutionNotFound
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.projections import attempt_info


class PostgresAttempts:
    """Reads of attempts."""

    def __init__(self, store: Store) -> None:
        self._calls = store.calls
        self._sql = store.sql("sql/queries/attempt.sql")

    async def describe(self, command: AttemptDescribe) -> AttemptInfo:
        """Read one attempt."""
        command.check()
        found = await self._load(command.execution_id, command.attempt_index, 1)
        if not found:
            raise AttemptNotFound(attempt_index=command.attempt_index)
        return attempt_info(command.execution_id, found[0])

    async def list(self, command: AttemptList) -> AttemptPage:
        """List an execution's attempts, oldest first. The cursor is the number of the last attempt on the page."""
        command.check()
        start = int(command.cursor) + 1 if command.cursor is not None else 0
        found = await self._load(command.execution_id, start, command.limit + 1)
        page = found[: command.limit]
        return AttemptPage(
            attempts=tuple(attempt_info(command.execution_id, attempt) for attempt in page),
            next_cursor=str(page[-1].attempt_index) if len(found) > command.limit else None,
        )

    async def _load(self, execution_id: ExecutionId, start: int, count: int) -> list[AttemptRecord]:
        """Load the attempts from a number on, at most `count`."""
        rows = await self._calls.rows(self._sql["list"], *place_of(execution_id), start, count)
        if not rows:
            raise ExecutionNotFound(execution_id=execution_id)
        found = [attempt_of(row) for row in rows if row["attempt_id"] is not None]
        for index, attempt in enumerate(found, start):
            if attempt.attempt_index != index:
                raise Corrupt(f"{execution_id} has lost its attempt {index}")
        return found
