"""Attempts in Valkey: the latest is part of its execution's record, earlier ones are fields beside it."""

from __future__ import annotations

from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.keys import Partitions
from flowfabric.backends.valkey.record import Packed, attempt_of, superseded_of, unpack
from flowfabric.contract.attempt import AttemptDescribe, AttemptInfo, AttemptList, AttemptPage, AttemptRecord
from flowfabric.contract.errors import AttemptNotFound, Corrupt, ExecutionNotFound
from flowfabric.contract.ids import ExecutionId, execution_uuid
from flowfabric.contract.projections import attempt_info


class ValkeyAttempts:
    """Reads of attempts."""

    def __init__(self, calls: Calls, partitions: Partitions) -> None:
        self._calls = calls
        self._partitions = partitions

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
        partition = self._partitions.of(execution_id)
        names = [f"{kind}{index}" for kind in "az" for index in range(start, start + count)]
        (fields,) = await self._calls.read(
            partition, [("HMGET", partition.execution(execution_uuid(execution_id)), "v", "z", *names)]
        )
        if fields[0] is None:
            raise ExecutionNotFound(execution_id=execution_id)
        latest = attempt_of(unpack(fields[0], Packed), fields[1])
        if latest is None:
            return []
        found: list[AttemptRecord] = []
        for at, index in enumerate(range(start, min(start + count, latest.attempt_index + 1))):
            if index == latest.attempt_index:
                found.append(latest)
            elif fields[2 + at] is None:
                raise Corrupt(f"{execution_id} has lost its attempt {index}")
            else:
                found.append(superseded_of(fields[2 + at], fields[2 + count + at]))
        return found
