"""What becomes of a call that did not simply succeed: routed again, waited out, or given up with the truth.

A group is sent again only when it certainly was not executed (it was never written, or its decisive command, the last
unless said otherwise, was answered by one of NOT_EXECUTED), or when the caller said that repeating it is harmless.
Everything ends at the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from flowfabric.backends.valkey.wire.address import Endpoint
from flowfabric.backends.valkey.wire.commands import Command, encode_asking
from flowfabric.backends.valkey.wire.connection import ConnectionLost, Group
from flowfabric.backends.valkey.wire.node import Node
from flowfabric.backends.valkey.wire.replies import Answer, ServerError
from flowfabric.backends.valkey.wire.topology import Topology
from flowfabric.backends.valkey.wire.view import read_redirect
from flowfabric.backends.valkey.wire.waiting import Backoff
from flowfabric.contract.errors import OutcomeUnknown, Unavailable

NOT_EXECUTED: Final = frozenset(
    {"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN", "BUSY"}
)
"""Codes of errors that say: not here, or not now. A command answered so did nothing."""

_REDIRECTIONS: Final = frozenset({"MOVED", "ASK"})

_LOOK_AGAIN: Final = frozenset({"CLUSTERDOWN", "READONLY", "MASTERDOWN"})

REDIRECTS_AT_ONCE: Final = 5
"""So many redirections are followed without a pause; more mean that the cluster is still making up its mind."""

WAIT_FOR_NEWS_S: Final = 1.0

Outcome = None | ServerError | ConnectionLost
"""Why the last attempt did not end the call; None when there was no connection to make it on."""


class Call:
    """One call that may need several attempts. `route` names the node to try; None while nobody serves it.

    A call `pinned` to one server fails when that is no primary, and redirections are among its replies.
    """

    def __init__(
        self,
        topology: Topology,
        route: Callable[[], Node | None],
        commands: Sequence[Command],
        data: bytes,
        deadline: float,
        *,
        repeatable: bool,
        decisive: int = -1,
        pinned: str | None = None,
    ) -> None:
        self._topology: Topology = topology
        self._route: Callable[[], Node | None] = route
        self._commands: Sequence[Command] = commands
        self._data: bytes = data
        self._deadline: float = deadline
        self._repeatable: bool = repeatable
        self._decisive: int = decisive
        self._pinned: str | None = pinned
        self._codes: frozenset[str] = NOT_EXECUTED if pinned is None else NOT_EXECUTED - _REDIRECTIONS
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._backoff: Backoff = Backoff()
        self._redirects: int = 0
        self._ask: Endpoint | None = None
        self._maybe_executed: bool = False
        self._reason: str = ""

    async def begin(self) -> list[Answer]:
        """Make the first attempt too. Raises: as `finish`."""
        node, outcome = await self._attempt()
        return outcome if isinstance(outcome, list) else await self.finish(node, outcome)

    async def finish(self, node: Node | None, outcome: Outcome) -> list[Answer]:
        """Go on after an attempt at `node` that ended in `outcome`, until there are replies.

        Raises: Unavailable when the deadline passes and nothing was executed, else OutcomeUnknown.
        """
        while True:
            await self._digest(node, outcome)
            if self._topology.is_closed:
                raise self._gave_up("the client was closed")
            if self._loop.time() >= self._deadline:
                raise self._gave_up("the deadline passed")
            node, again = await self._attempt()
            if isinstance(again, list):
                return again
            outcome = again

    async def _attempt(self) -> tuple[Node | None, list[Answer] | Outcome]:
        node, is_asking = self._next_node()
        connection = node.pick() if node is not None else None
        if connection is None:
            return node, None
        data = encode_asking(self._commands) if is_asking else self._data
        count = len(self._commands) * (2 if is_asking else 1)
        group = Group(data, count, self._deadline, self._loop.create_future())
        connection.send(group)
        try:
            replies = await group.future
        except ConnectionLost as lost:
            return node, lost
        except Unavailable as error:
            if self._maybe_executed and type(error) is Unavailable:
                raise self._gave_up(error.message) from error
            raise
        if is_asking:
            replies = replies[1::2]
        last = replies[self._decisive]
        if type(last) is not ServerError or last.code not in self._codes:
            return node, replies
        return node, last

    def _next_node(self) -> tuple[Node | None, bool]:
        if self._ask is None:
            node = self._route()
            if node is None and self._pinned is not None:
                raise self._gave_up(f"{self._pinned} is not a primary of this store")
            return node, False
        node = self._topology.node_at(self._ask)
        if node.ready or node.trouble:
            # Whatever comes of this attempt, the next one begins at the slot's owner again.
            self._ask = None
        return node, True

    async def _digest(self, node: Node | None, outcome: Outcome) -> None:
        match outcome:
            case None:
                await self._wait_for_connection(node)
            case ConnectionLost():
                self._reason = outcome.reason
                if outcome.is_written:
                    self._maybe_executed = True
                    if not self._repeatable:
                        raise OutcomeUnknown(f"{outcome.reason}; the call had been sent")
            case ServerError():
                await self._redirected(node, outcome)

    async def _wait_for_connection(self, node: Node | None) -> None:
        if node is not None and node.ready:
            self._reason = f"too many calls wait for {node.name}"
            await self._pause()
            return
        if node is None:
            self._reason = self._reason or "no server serves this slot"
            self._topology.request_refresh()
        else:
            self._reason = node.trouble or self._reason or f"still connecting to {node.name}"
        await self._topology.news.wait(min(WAIT_FOR_NEWS_S, self._deadline - self._loop.time()))

    async def _redirected(self, node: Node | None, error: ServerError) -> None:
        assert node is not None
        self._reason = f"{node.name} answered {error.message}"
        self._redirects += 1
        redirect = read_redirect(error, node.endpoint) if error.code in _REDIRECTIONS else None
        if redirect is not None:
            slot, endpoint = redirect
            if error.code == "MOVED":
                self._topology.moved(slot, endpoint)
            else:
                self._ask = endpoint
            if self._redirects <= REDIRECTS_AT_ONCE:
                return
        elif error.code in _LOOK_AGAIN:
            self._topology.lost_role(node, error.message)
        await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(max(0.0, min(self._backoff.next_s(), self._deadline - self._loop.time())))

    def _gave_up(self, why: str) -> Unavailable:
        reason = f"{why}: {self._reason}" if self._reason else why
        if self._maybe_executed:
            return OutcomeUnknown(f"{reason}; an earlier attempt had been sent")
        return Unavailable(f"{reason}; nothing was executed")
