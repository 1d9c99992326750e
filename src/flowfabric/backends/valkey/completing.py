"""Completing executions: those of one partition and route that are completed at once share a call.

What callers hand in during one turn of the event loop goes out together; each gets an outcome of its own. What must
stay true: no call has one execution twice, and a caller that is cancelled takes nobody with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from flowfabric.backends import reply
from flowfabric.backends.valkey.calling import AGAIN, Calls
from flowfabric.backends.valkey.create import stage
from flowfabric.backends.valkey.keys import Partition, Partitions, fresh_nonce
from flowfabric.backends.valkey.record import INLINE_BYTES_MAX
from flowfabric.backends.valkey.routing import Routes
from flowfabric.backends.valkey.wire import Command
from flowfabric.contract.errors import Unavailable, own_copy
from flowfabric.contract.execution import ExecutionComplete
from flowfabric.contract.holding import actor_of, complete_digest
from flowfabric.contract.ids import execution_uuid

TOGETHER_MAX: Final = 16
"""Completions in one call: the server serves nobody else meanwhile."""
_TRIES: Final = 4
_NO_FENCE: Final = ("", "", "", "", "")


class _Entry:
    """One completion on its way."""

    __slots__ = ("answer", "key", "payload_key", "staged", "values")

    def __init__(self, key: str, values: list[Any], payload_key: str | None, staged: Command | None) -> None:
        self.key = key
        self.values = values
        self.payload_key = payload_key
        self.staged = staged
        self.answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()


class Completer:
    """Completes executions on one store."""

    def __init__(self, calls: Calls, partitions: Partitions, routes: Routes) -> None:
        self._calls = calls
        self._partitions = partitions
        self._routes = routes
        self._waiting: dict[tuple[int, str], list[_Entry]] = {}
        self._sending: Final[set[asyncio.Task[None]]] = set()

    async def complete(self, command: ExecutionComplete) -> int:
        """Complete an execution and return the instant.

        Raises: the refusal, Unavailable, OutcomeUnknown.
        """
        fence, payload = command.fence, command.result
        execution_id = command.execution_id
        partition = self._partitions.of(execution_id)
        media = data = ""
        payload_key: str | None = None
        staged: Command | None = None
        if payload is not None:
            media, data = payload.content_type, payload.data
            if len(data) > INLINE_BYTES_MAX:
                payload_key = partition.payload(fresh_nonce())
                staged, data = stage(payload_key, payload.data), ""
        values = [
            *(
                _NO_FENCE
                if fence is None
                else (
                    fence.lease_id,
                    fence.lease_epoch,
                    fence.attempt_id,
                    fence.lane or "",
                    fence.route or "",
                )
            ),
            complete_digest(command),
            actor_of(command.source, command.actor) or "",
            media,
            0 if payload_key is None else 1,
            data,
        ]
        key = partition.execution(execution_uuid(execution_id))
        for _ in range(_TRIES):
            entry = _Entry(key, values, payload_key, staged)
            answer = await self._send(partition, self._routes.guess(execution_id, fence), entry)
            code = answer[0]
            if code == 1:
                return answer[3]
            text = reply.text(code)
            if text not in AGAIN:
                raise reply.refusal(text, answer[3], answer[4:])
            # What was staged is still there, unless it ran out of time.
            staged = stage(payload_key, payload.data) if payload_key and payload else None
            if text == "wrong_route":
                staged = None
                self._routes.learn(execution_id, reply.text(answer[5]), fence)
        raise Unavailable("the result could not be staged: the store is too slow, or its clock jumps")

    async def _send(self, partition: Partition, rid: str, entry: _Entry) -> list[Any]:
        """Have an entry sent with the others of its partition and route; return its answer."""
        place = (partition.number, rid)
        group = self._waiting.get(place)
        if group is None or len(group) >= TOGETHER_MAX or any(other.key == entry.key for other in group):
            group = self._waiting[place] = []
            asyncio.get_running_loop().call_soon(self._start, partition, rid, group)
        group.append(entry)
        return await entry.answer

    def _start(self, partition: Partition, rid: str, group: list[_Entry]) -> None:
        if self._waiting.get((partition.number, rid)) is group:
            del self._waiting[partition.number, rid]
        left = [entry for entry in group if not entry.answer.done()]
        if left:
            task = asyncio.create_task(self._call(partition, rid, left))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _call(self, partition: Partition, rid: str, group: Sequence[_Entry]) -> None:
        keys = [partition.eligible(rid), partition.due, partition.own, partition.lost]
        keys += [entry.key for entry in group]
        keys += [entry.payload_key for entry in group if entry.payload_key is not None]
        try:
            answers = await self._calls.call(
                partition,
                "execution_complete",
                keys,
                rid=rid,
                before=[entry.staged for entry in group if entry.staged is not None],
                commands=[value for entry in group for value in entry.values],
            )
        except BaseException as error:
            for entry in group:
                if not entry.answer.done():
                    entry.answer.set_exception(_told(error))
            if not isinstance(error, Exception):
                raise
            return
        for entry, answer in zip(group, answers, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(answer)


def _told(error: BaseException) -> Exception:
    """Return what one of the callers of a shared call is told."""
    if isinstance(error, Exception):
        return own_copy(error)
    return Unavailable("the store is being closed")
