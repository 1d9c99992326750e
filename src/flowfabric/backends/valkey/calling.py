"""Calling functions and reading: one group of commands on one partition, in one round trip.

A call that was refused raises the refusal; what a function could not know (a route that the caller guessed wrong, a
staged payload that was gone) comes back as `Again` and is for the adapter to repeat. After every call its effects are
announced: work that became the head of its index, and earlier timers. What must stay true: a call whose outcome is
unknown is reported as such and never sent twice; one that was not executed (library missing, slot on the move) is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from flowfabric.backends import reply
from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.keys import GLOBAL, GLOBAL_SLOT, Partition
from flowfabric.backends.valkey.library import Library, arguments_of
from flowfabric.backends.valkey.wire.client import Client, Command
from flowfabric.backends.valkey.wire.replies import Answer, ServerError
from flowfabric.backends.valkey.wire.retrying import NOT_EXECUTED
from flowfabric.contract.errors import Corrupt, OutcomeUnknown, Unavailable

CALL_TIMEOUT_S: Final = 10.0
AGAIN: Final = frozenset(
    {"wrong_route", "route_unregistered", "payload_missing", "wrong_payload", "stale_version"}
)
"""Codes of functions for their adapters; no caller ever sees them."""
_NO_KEY: Final[Command] = ("PING",)
MOVING: Final = b"slot_migrating"
"""Code of functions that met a slot on the move: nothing was written, the call is made again."""
UNCONFIRMED: Final = "it is done, but no replica has confirmed it in time; repeating it is safe"


class Again(Exception):
    """A function could not go on with what it was given; nothing was written."""

    def __init__(self, code: str, details: Sequence[Any]) -> None:
        super().__init__(code)
        self.code = code
        self.details = details

    @property
    def value(self) -> str:
        """The first detail."""
        return reply.text(self.details[1])


class Effects(Protocol):
    """Who has to know what a call changed."""

    async def head(self, partition: Partition, rid: str, score: int) -> None:
        """Make known that the head of an eligible index is a new one."""
        ...

    def due(self, partition: Partition, at_ms: int) -> None:
        """Make known that something is due at an instant."""
        ...

    def doubt(self, partition: Partition, rid: str | None) -> None:
        """Find out, soon, what a call changed whose reply did not come."""
        ...


def failed(error: ServerError) -> Exception:
    """Translate an error that the store answered with; the command was not executed."""
    if error.code == "OOM":
        return Unavailable("the store is out of memory (maxmemory): it takes no writes")
    if error.code in ("NOAUTH", "WRONGPASS", "NOPERM"):
        return Unavailable(f"the store refuses this user: {error.message}")
    if error.code in ("MISCONF", "NOREPLICAS"):
        return Unavailable(f"the store takes no writes: {error.message}")
    return Corrupt(f"the store answered with an error: {error.code} {error.message}")


class Calls:
    """Calls functions of the library on one store."""

    def __init__(
        self,
        client: Client,
        library: Library,
        *,
        clock: ManualClock | None,
        load: Callable[[], Awaitable[None]],
        confirm: Callable[[str], Sequence[Command]] | None = None,
    ) -> None:
        self._client = client
        self._library = library
        self._clock = clock
        self._load = load
        self._confirm = confirm
        """What follows every mutation, by hash tag, when replicas must have it; the last one tells how many do."""
        self.effects: Effects | None = None

    @property
    def client(self) -> Client:
        """The connections."""
        return self._client

    async def now_ms(self) -> int:
        """Return the store's time."""
        if self._clock is not None:
            return self._clock.now_ms()
        (found,) = await self.read(None, [("TIME",)])
        return int(found[0]) * 1_000 + int(found[1]) // 1_000

    async def read(
        self, partition: Partition | None, commands: Sequence[Command], *, timeout_s: float | None = None
    ) -> list[Any]:
        """Run reading commands on a partition (None: on the global keys); an error of any of them is raised.

        Raises: Unavailable, also when they were sent and not answered: reading changes nothing.
        """
        slot = partition.slot if partition is not None else GLOBAL_SLOT
        group = commands
        if self._client.is_cluster and len({command[1:2] for command in commands}) > 1:
            # While a slot is on the move some keys are here and some are there. A group that was redirected as a
            # whole would find nothing in place of those that have not moved; what has no key is never redirected.
            group = (*commands, _NO_KEY)
        try:
            replies = await self._client.execute(slot, group, timeout_s=timeout_s, repeatable=True)
        except OutcomeUnknown as error:
            raise Unavailable(error.message) from error
        replies = replies[: len(commands)]
        for found in replies:
            if isinstance(found, ServerError):
                if found.code in NOT_EXECUTED and len(commands) > 1:
                    # Each command alone follows its key to where it is.
                    return [
                        (await self.read(partition, [command], timeout_s=timeout_s))[0]
                        for command in commands
                    ]
                raise failed(found)
        return replies

    def command(self, name: str, keys: Sequence[str], **given: Any) -> Command:
        """Build the call of a function."""
        values = arguments_of(self._library.functions[name], given)
        if self._clock is not None:
            values.append(self._clock.now_ms())
        return ("FCALL", self._library.names[name], len(keys), *keys, *values)

    async def execute(self, partition: Partition, commands: Sequence[Command]) -> tuple[list[Answer], bool]:
        """Send a pipeline of writes once; return the replies, errors among them, and whether replicas have them.

        Raises: Unavailable, OutcomeUnknown.
        """
        confirm = self._confirm(partition.tag) if self._confirm is not None else ()
        replies = await self._client.execute(
            partition.slot, [*commands, *confirm], timeout_s=CALL_TIMEOUT_S, decisive=len(commands) - 1
        )
        return replies[: len(commands)], self._confirm is None or _is_confirmed(replies[-1])

    async def call(
        self,
        partition: Partition | None,
        name: str,
        keys: Sequence[str],
        *,
        rid: str | None = None,
        before: Sequence[Command] = (),
        timeout_s: float = CALL_TIMEOUT_S,
        **given: Any,
    ) -> list[Any]:
        """Call a function after `before`, and return what follows its hints; `rid` is the route whose head it may move.

        Raises: the refusal, `Again`, Unavailable, OutcomeUnknown.
        """
        command = self.command(name, keys, **given)
        slot = partition.slot if partition is not None else GLOBAL_SLOT
        deadline = time.monotonic() + timeout_s
        tag = partition.tag if partition is not None else GLOBAL
        group = [*before, command, *(self._confirm(tag) if self._confirm is not None else ())]
        pause_s = 0.005
        while True:
            try:
                replies = await self._client.execute(
                    slot, group, timeout_s=max(deadline - time.monotonic(), 0.001), decisive=len(before)
                )
            except (OutcomeUnknown, asyncio.CancelledError):
                self.doubt(partition, rid)
                raise
            answer = self._checked(replies, len(before))
            if answer is not None and not (answer[0] != 1 and answer[0] == MOVING):
                break
            left_s = deadline - time.monotonic()
            if left_s <= pause_s:
                raise Unavailable("the slot of this partition is being moved: try again shortly")
            if answer is None:
                await self._load()
            else:
                await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311  # sleeps: until the slot has moved
                pause_s = min(pause_s * 2, 0.2)
        result = await self._finished(partition, rid, answer)
        if self._confirm is not None and not _is_confirmed(replies[-1]):
            raise OutcomeUnknown(UNCONFIRMED)
        return result

    def doubt(self, partition: Partition | None, rid: str | None) -> None:
        """Note that a call may have been carried out and its effects were not announced."""
        if self.effects is not None and partition is not None:
            self.effects.doubt(partition, rid)

    def _checked(self, replies: Sequence[Answer], at: int) -> list[Any] | None:
        """Return the function's reply, None when the library has to be loaded first."""
        for found in replies[:at]:
            if isinstance(found, ServerError):
                raise failed(found)
        answer = replies[at]
        if isinstance(answer, ServerError):
            if "Function not found" in answer.message:
                return None
            raise failed(answer)
        if not isinstance(answer, list):
            raise Corrupt("a function answered with something else than a list")
        return answer

    async def _finished(self, partition: Partition | None, rid: str | None, answer: list[Any]) -> list[Any]:
        code, head, due = answer[0], answer[1], answer[2]
        effects = self.effects
        if effects is not None and partition is not None:
            if due is not None:
                effects.due(partition, due)
            if head is not None and rid is not None:
                await effects.head(partition, rid, head)
        if code == 1:
            return answer[3:]
        text = reply.text(code)
        if text in AGAIN:
            raise Again(text, answer[4:])
        raise reply.refusal(text, answer[3], answer[4:])


def _is_confirmed(reply: Answer) -> bool:
    return isinstance(reply, int) and reply >= 1
