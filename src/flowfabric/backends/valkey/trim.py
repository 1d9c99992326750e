"""Retention: removing a finished execution with everything that belongs to it, or frames, in bounded steps."""

from __future__ import annotations

from typing import Literal

from flowfabric.backends import reply
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.keys import Partitions
from flowfabric.contract.errors import Corrupt
from flowfabric.contract.execution import ExecutionTrim, ExecutionTrimmed
from flowfabric.contract.ids import execution_uuid

Status = Literal["deleted", "frames_deleted", "not_due"]


class Retention:
    """Removes what is over."""

    def __init__(self, calls: Calls, partitions: Partitions) -> None:
        self._calls = calls
        self._partitions = partitions

    async def trim(self, command: ExecutionTrim) -> ExecutionTrimmed:
        """Delete a finished execution, or its frames, if retention says so.

        Each step is one atomic call. What was removed by the steps before is noted in the record, which goes with the
        last one; when this process dies in between, the timer is still there and the next trim goes on.
        """
        command.check()
        partition = self._partitions.of(command.execution_id)
        keys = [partition.execution(execution_uuid(command.execution_id)), partition.due, partition.all]
        start = 0
        while True:
            status, *more = await self._calls.call(partition, "execution_trim", keys, start=start)
            if not more:
                return ExecutionTrimmed(execution_id=command.execution_id, status=_status(reply.text(status)))
            start = more[0]


def _status(text: str) -> Status:
    if text in ("deleted", "frames_deleted", "not_due"):
        return text
    raise Corrupt(f"a trim answered {text!r}")
