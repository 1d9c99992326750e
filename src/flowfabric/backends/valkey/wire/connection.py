"""One connection: groups of commands out, replies in, matched by order.

Here are pipelining (everything sent in one turn of the event loop is one write), the cap on what is in flight,
deadlines, and what a death means for each caller. Nothing here connects, routes or sends anything twice.

What must stay true:
- Replies belong to groups strictly in the order of writing. A caller that gave up (cancelled, deadline passed) keeps
  its place; its replies are dropped when they come. Anything that does not fit (a reply nobody waits for, bytes that
  are no RESP3) kills the connection.
- A group that was handed to the transport counts as written: it may have been executed, even when not one byte left
  this machine. A group that was not handed over was certainly not executed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import hiredis

from flowfabric.backends.valkey.wire.replies import NOTHING, Answer, Reply, new_reader
from flowfabric.contract.errors import OutcomeUnknown, Unavailable

IN_FLIGHT_MAX: Final = 1_024
"""Groups written and not answered, on one connection."""

WAITING_MAX: Final = 16_384
"""Groups that may wait to be written, on one connection."""

WRITE_AT_ONCE_BYTES: Final = 256 * 1024
"""Roughly how much is joined into one write, and how much the transport may hold before it makes us wait."""

QUIET_S: Final = 2.0
"""A connection that owes replies and says nothing for this long is worth a look at the topology."""

DEAF_S: Final = 1.0
"""A deadline missed after this much silence, or nobody left who waits for it to end, retires the connection."""

_FOREVER: Final = float("inf")


class ConnectionLost(Exception):
    """The connection died. `is_written` says whether this group may have been executed."""

    def __init__(self, reason: str, *, is_written: bool) -> None:
        super().__init__(reason)
        self.reason: str = reason
        self.is_written: bool = is_written


class Group:
    """Encoded commands that are written together, and the future of their replies.

    The future ends with the list of replies, or raises ConnectionLost, Unavailable or OutcomeUnknown.
    """

    __slots__ = ("count", "data", "deadline", "future", "replies")

    def __init__(
        self, data: bytes, count: int, deadline: float, future: asyncio.Future[list[Answer]]
    ) -> None:
        self.data: bytes = data
        self.count: int = count
        self.deadline: float = deadline
        self.future: asyncio.Future[list[Answer]] = future
        self.replies: list[Answer] = []


class Connection(asyncio.Protocol):
    """A RESP3 connection. Use it from its event loop only.

    `on_push` gets each push message, `on_end` is called once when the connection takes no more groups (it died, or
    was retired), `on_quiet` when replies have been owed for QUIET_S without a byte arriving. `peer` names the server
    in messages.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: str) -> None:
        self.peer: str = peer
        self.pending: deque[Group] = deque()
        self.unsent: deque[Group] = deque()
        self.opened_at: float = loop.time()
        self.heard_at: float = self.opened_at
        self.on_push: Callable[[list[Reply]], None] | None = None
        self.on_end: Callable[[Connection], None] | None = None
        self.on_quiet: Callable[[], None] | None = None
        self.closed: asyncio.Future[None] = loop.create_future()
        self._loop: asyncio.AbstractEventLoop = loop
        self._now: Callable[[], float] = loop.time
        self._reader: hiredis.Reader = new_reader()
        self._transport: asyncio.Transport | None = None
        self._is_paused: bool = False
        self._is_flush_due: bool = False
        self._is_retired: bool = False
        self._reason: str | None = None
        self._check_at: float = _FOREVER
        self._check: asyncio.TimerHandle | None = None

    # What callers use --------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Say whether the connection still takes groups."""
        return not self._is_retired

    def is_full(self) -> bool:
        """Say whether so much waits to be written that callers should wait elsewhere."""
        return len(self.unsent) >= WAITING_MAX

    def send(self, group: Group) -> None:
        """Write the group with everything else of this turn of the event loop, or when there is room for it."""
        self.unsent.append(group)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)
        if group.deadline < self._check_at:
            self._check_by(group.deadline)

    def answer(self, reply: Reply) -> None:
        """Take a push message as the only reply to the oldest group: subscribing is answered by a push."""
        group = self.pending.popleft()
        if not group.future.done():
            group.future.set_result([reply])

    def retire(self, reason: str) -> None:
        """Take no more groups; what was written is waited for, what was not is given back as ConnectionLost."""
        if self._is_retired:
            return
        self._is_retired = True
        self._reason = self._reason or reason
        unsent, self.unsent = self.unsent, deque()
        for group in unsent:
            _fail(group, ConnectionLost(reason, is_written=False))
        if self.on_end is not None:
            self.on_end(self)
        self._close_if_drained()

    def abort(self, reason: str) -> None:
        """Drop the connection at once: its groups get ConnectionLost."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()
        self._end(self._reason)

    # What the transport calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_AT_ONCE_BYTES)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reason is None:
            self._reason = f"{self.peer} closed the connection" if exc is None else f"{self.peer}: {exc}"
        self._transport = None
        self._end(self._reason)
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._now()
        reader, pending = self._reader, self.pending
        gets = reader.gets
        try:
            reader.feed(data)
            while (reply := gets()) is not NOTHING:
                if type(reply) is hiredis.PushNotification:
                    self._pushed(cast("list[Reply]", reply))
                    continue
                group = pending[0]
                replies = group.replies
                replies.append(reply)
                if len(replies) == group.count:
                    pending.popleft()
                    if not group.future.done():
                        group.future.set_result(replies)
        except IndexError:
            self.abort(f"{self.peer} sent a reply that nothing asked for")
        except (hiredis.HiredisError, TypeError, ValueError) as error:
            self.abort(f"{self.peer} sent something that is not a reply: {error}")
        else:
            if self.unsent and not self._is_flush_due:
                self._flush()
            if self._is_retired:
                self._close_if_drained()

    # Private -----------------------------------------------------------------------------------------------------

    def _pushed(self, message: list[Reply]) -> None:
        if self.on_push is not None:
            self.on_push(message)
        elif message and isinstance(message[0], bytes) and message[0].endswith(b"subscribe"):
            # Its answer does not come in order, so what follows could be given to the wrong caller.
            self.abort("a subscription was made on a connection that is not for subscriptions")

    def _flush(self) -> None:
        self._is_flush_due = False
        unsent, pending = self.unsent, self.pending
        transport = self._transport
        if self._is_paused or transport is None or not unsent:
            return
        if not pending:
            self.heard_at = now = self._now()
            if self._check_at > now + QUIET_S:
                self._check_by(now + QUIET_S)
        batch: list[bytes] = []
        size = 0
        while unsent and len(pending) < IN_FLIGHT_MAX:
            group = unsent.popleft()
            if group.future.done():
                continue
            pending.append(group)
            batch.append(group.data)
            size += len(group.data)
            if size >= WRITE_AT_ONCE_BYTES:
                transport.write(b"".join(batch))
                batch.clear()
                size = 0
                if self._is_paused or self._is_retired:
                    return
        if batch:
            transport.write(b"".join(batch))

    def _check_by(self, when: float) -> None:
        if self._check is not None:
            self._check.cancel()
        self._check_at = when
        self._check = self._loop.call_at(when, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """Fail what is late. One timer per connection, not per call: a timer each would cost more than the call."""
        self._check, self._check_at = None, _FOREVER
        now = self._now()
        earliest = _FOREVER
        is_given_up = all(group.future.done() for group in self.pending)
        for group in self.pending:
            if group.future.done():
                continue
            if group.deadline <= now:
                is_given_up = True
                _fail(group, OutcomeUnknown(f"{self.peer} did not answer in time; the call had been sent"))
            else:
                earliest = min(earliest, group.deadline)
        for group in self.unsent:
            if group.deadline > now:
                earliest = min(earliest, group.deadline)
            elif not group.future.done():
                _fail(group, Unavailable(f"{self.peer} is not keeping up; the call had not been sent"))
        if self.pending:
            silence = now - self.heard_at
            if is_given_up and silence >= DEAF_S:
                self.retire(f"{self.peer} answered nothing for {silence:.1f} s")
            if silence >= QUIET_S and self.on_quiet is not None:
                self.on_quiet()
            earliest = min(earliest, now + QUIET_S)
        if self._is_retired:
            self._close_if_drained()
        if earliest < _FOREVER and self._transport is not None:
            self._check_by(earliest)

    def _close_if_drained(self) -> None:
        if self._transport is not None and all(group.future.done() for group in self.pending):
            self._transport.abort()

    def _end(self, reason: str) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check, self._check_at = None, _FOREVER
        self.retire(reason)
        pending = list(self.pending)
        self.pending.clear()
        for group in pending:
            _fail(group, ConnectionLost(reason, is_written=True))


def _fail(group: Group, error: Exception) -> None:
    if not group.future.done():
        group.future.set_exception(error)
