"""Batches: concurrent calls of one function share a statement, by themselves.

A call that comes while few statements of its function are under way is sent at once; calls that come meanwhile wait and
go together, so that statements grow with the load and an idle store adds no delay. What must stay true: two commands
about the same thing never share a statement, and keep their order; a command that makes its statement fail harms no
other one; who gives up waiting leaves the others alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from flowfabric.backends.postgres.driver import Record
from flowfabric.backends.postgres.pool import LOCK_TIMEOUT_MS, ran_out_of_time
from flowfabric.contract.errors import (
    Corrupt,
    FlowFabricError,
    InvalidInput,
    OutcomeUnknown,
    Unavailable,
    own_copy,
)

LANES: Final = 2
"""Statements of one function that are under way at once; more would be smaller, and so slower."""
COMMANDS_MOST: Final = 128
BYTES_MOST: Final = 4 * 1024 * 1024
WAITING_MOST: Final = 100_000
DEADLINE_S: Final = 10.0
LEFT_MIN_S: Final = 0.25
"""With less than this left nothing is sent: it would only put in doubt what is certain."""
APART: Final = 4
"""Commands of a statement that failed because of one of them that are sent at once, each by itself."""
APART_S: Final = LOCK_TIMEOUT_MS / 1_000 + 1.0
"""How long each of them may take at least."""
_TOO_LATE: Final = "the store is too busy: the deadline passed; nothing was executed"

Send = Callable[[str, Sequence[Any], float], Awaitable[list[Record]]]


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A hot function: what a command consists of, and what its rows hold beside `at, code, message, details`."""

    function: str
    """Without the schema."""
    types: tuple[str, ...]
    """Of the parameters, one each: `uuid`, `bigint`, ... The function takes arrays of them."""
    columns: tuple[str, ...] = ()
    most: int = COMMANDS_MOST
    """Commands that one statement carries."""
    is_heavy: bool = False
    """Commands carry payloads: their bytes are counted, and bound a statement too."""
    spread: int = 0
    """How many of the last parameters a command has any number of: it gives a sequence for each of them, and the
    function gets those of all commands one after the other."""


class _Command:
    __slots__ = ("answer", "bytes", "deadline", "key", "values")

    def __init__(
        self, values: Sequence[Any], key: str | None, answer: asyncio.Future[list[Record]], size: int
    ) -> None:
        self.values = values
        self.key = key
        self.answer = answer
        self.deadline = time.monotonic() + DEADLINE_S
        self.bytes = size


class _Queue:
    """The commands of one function that wait, and how many statements of it are under way."""

    def __init__(self, batch: Batch, schema: str) -> None:
        self.batch: Final = batch
        self.waiting: Final[deque[_Command]] = deque()
        self.under_way = 0
        self.busy: Final[set[str]] = set()
        """Keys of commands under way: the next command about the same thing waits until it is answered."""
        given = ", ".join(f"${at}::{kind}[]" for at, kind in enumerate(batch.types, 1))
        names = ", ".join(("at", "code", "message", "details", *batch.columns))
        self.statement: Final = f"SELECT {names} FROM {schema}.{batch.function}({given})"  # noqa: S608 -- all constants


class Batches:
    """The batches of one store."""

    def __init__(self, send: Send, schema: str) -> None:
        self._send = send
        self._schema = schema
        self._queues: Final[dict[str, _Queue]] = {}
        self._tasks: Final[set[asyncio.Task[None]]] = set()

    async def submit(self, batch: Batch, values: Sequence[Any], key: str | None) -> list[Record]:
        """Send a command with whoever else calls this function now; return its rows, refusals among them.

        Raises: Unavailable, OutcomeUnknown, ResourceExhausted, InvalidInput, Corrupt.
        """
        if len(values) != len(batch.types):
            raise Corrupt(f"{batch.function} takes {len(batch.types)} values, not {len(values)}")
        queue = self._queues.get(batch.function)
        if queue is None:
            queue = self._queues[batch.function] = _Queue(batch, self._schema)
        if len(queue.waiting) >= WAITING_MOST:
            raise Unavailable("too many calls wait for the store; nothing was executed")
        size = _size(batch, values) if batch.is_heavy else 0
        command = _Command(values, key, asyncio.get_running_loop().create_future(), size)
        queue.waiting.append(command)
        if queue.under_way < LANES:
            self._start(queue)
        return await command.answer

    def _start(self, queue: _Queue) -> None:
        """Send what waits, as far as it may go now."""
        # Callers that are woken together get to add their command first: the statement is made when the task runs.
        queue.under_way += 1
        task = asyncio.create_task(self._work(queue))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, queue: _Queue) -> None:
        try:
            while members := _take(queue):
                try:
                    await self._send_all(queue, members)
                except asyncio.CancelledError:
                    _fail(members, OutcomeUnknown("the store was closed; the call had been sent"))
                    raise
                finally:
                    for member in members:
                        if member.key is not None:
                            queue.busy.discard(member.key)
        finally:
            queue.under_way -= 1

    async def _send_all(self, queue: _Queue, members: list[_Command], *, until: float = 0.0) -> None:
        try:
            rows = await self._send(
                queue.statement, _columns(queue.batch, members), max(until, *(m.deadline for m in members))
            )
        except FlowFabricError as error:
            if len(members) > 1 and (isinstance(error, (Corrupt, InvalidInput)) or ran_out_of_time(error)):
                # Rolled back as a whole because of one of them.
                await self._send_each(queue, members)
            else:
                _fail(members, error)
        except Exception as error:
            _fail(members, error)
        else:
            _answer(members, rows)

    async def _send_each(self, queue: _Queue, members: list[_Command]) -> None:
        """Send commands one by one, several at once: what one of them waits for is not to take the others' time."""
        left = iter(members)

        async def send() -> None:
            for member in left:
                now = time.monotonic()
                if member.deadline < now + LEFT_MIN_S:
                    _fail([member], Unavailable(_TOO_LATE))
                else:
                    # The server is to say that it waited in vain before it is given up here.
                    await self._send_all(queue, [member], until=now + APART_S)

        await asyncio.gather(*(send() for _ in range(min(APART, len(members)))))

    async def close(self) -> None:
        """End what is under way; whoever waits is told."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for queue in self._queues.values():
            _fail(list(queue.waiting), Unavailable("the store was closed"))
            queue.waiting.clear()


def _take(queue: _Queue) -> list[_Command]:
    """Take the commands of the next statement: in order, no two with one key, none whose key is under way."""
    taken: list[_Command] = []
    kept: list[_Command] = []
    blocked: set[str] = set()
    size = 0
    now = time.monotonic()
    waiting, batch, busy = queue.waiting, queue.batch, queue.busy
    while waiting and len(taken) < batch.most:
        command = waiting[0]
        if taken and size + command.bytes > BYTES_MOST:
            break
        waiting.popleft()
        if command.answer.done():
            # Whoever wanted it has gone, and nothing was sent.
            continue
        if command.deadline < now + LEFT_MIN_S:
            command.answer.set_exception(Unavailable(_TOO_LATE))
            continue
        key = command.key
        if key is not None:
            if key in busy or key in blocked:
                blocked.add(key)
                kept.append(command)
                continue
            busy.add(key)
        size += command.bytes
        taken.append(command)
    waiting.extendleft(reversed(kept))
    return taken


def _size(batch: Batch, values: Sequence[Any]) -> int:
    single = len(values) - batch.spread
    parts = (values[:single], *values[single:])
    return sum(len(value) for part in parts for value in part if isinstance(value, bytes))


def _columns(batch: Batch, members: Sequence[_Command]) -> list[list[Any]]:
    """Turn commands into one array for each parameter."""
    columns = [list(column) for column in zip(*(member.values for member in members), strict=True)]
    single = len(columns) - batch.spread
    return [*columns[:single], *(list(chain.from_iterable(column)) for column in columns[single:])]


def _answer(members: Sequence[_Command], rows: Sequence[Record]) -> None:
    found: dict[int, list[Record]] = {}
    for row in rows:
        found.setdefault(row["at"], []).append(row)
    for at, member in enumerate(members, 1):
        if not member.answer.done():
            member.answer.set_result(found.get(at, []))


def _fail(members: Sequence[_Command], error: Exception) -> None:
    for member in members:
        if not member.answer.done():
            member.answer.set_exception(own_copy(error))
