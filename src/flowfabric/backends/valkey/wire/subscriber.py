"""Sharded publish and subscribe: callbacks for channels, on connections of their own, across every kind of loss.

Each channel belongs to a slot and is subscribed to (SSUBSCRIBE) at the slot's primary. One `_Line` per server that
has channels keeps a connection, subscribes, and pings it when it is idle, so that a dead peer is noticed. Whenever a
channel had to be subscribed to again, messages may have been missed: every callback then gets b"".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from flowfabric.backends.valkey.wire.address import Endpoint
from flowfabric.backends.valkey.wire.commands import encode
from flowfabric.backends.valkey.wire.connection import Connection, ConnectionLost, Group
from flowfabric.backends.valkey.wire.dialing import Dialer
from flowfabric.backends.valkey.wire.replies import Answer, Reply, ServerError
from flowfabric.backends.valkey.wire.retrying import NOT_EXECUTED
from flowfabric.backends.valkey.wire.topology import Topology
from flowfabric.backends.valkey.wire.view import read_redirect
from flowfabric.backends.valkey.wire.waiting import Backoff
from flowfabric.contract.errors import FlowFabricError, Misuse, Unavailable

PING_EVERY_S: Final = 15.0
ACKNOWLEDGED_WITHIN_S: Final = 10.0

MISSED: Final = b""
"""What callbacks get instead of a message when some may have been missed."""

Callback = Callable[[bytes], None]

_PING: Final = encode([("PING",)])


class _Channel:
    """A channel somebody listens to. `line` is where it is (to be) subscribed; `is_sent` whether it was asked for."""

    __slots__ = ("callbacks", "is_live", "is_sent", "line", "name", "slot", "waiters", "was_live")

    def __init__(self, name: bytes, slot: int) -> None:
        self.name: bytes = name
        self.slot: int = slot
        self.callbacks: list[Callback] = []
        self.waiters: list[asyncio.Future[None]] = []
        self.line: _Line | None = None
        self.is_sent: bool = False
        self.is_live: bool = False
        self.was_live: bool = False


class _Subscription(Group):
    """SSUBSCRIBE or SUNSUBSCRIBE of one channel: answered by a push of this kind, or by an error."""

    __slots__ = ("channel", "kind")

    def __init__(
        self, kind: bytes, channel: bytes, deadline: float, future: asyncio.Future[list[Answer]]
    ) -> None:
        super().__init__(encode([(kind, channel)]), 1, deadline, future)
        self.kind: bytes = kind
        self.channel: bytes = channel


class Subscriber:
    """Callbacks for messages on sharded channels. Belongs to a client, which closes it."""

    def __init__(self, topology: Topology, dialer: Dialer, *, ping_every_s: float = PING_EVERY_S) -> None:
        self._topology: Topology = topology
        self._dialer: Dialer = dialer
        self._ping_every_s: float = ping_every_s
        self._channels: dict[bytes, _Channel] = {}
        self._lines: dict[str, _Line] = {}
        self._later: set[asyncio.TimerHandle] = set()
        self._is_closed: bool = False
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()

    async def add(
        self, channel: bytes, slot: int, callback: Callback, *, timeout_s: float = ACKNOWLEDGED_WITHIN_S
    ) -> None:
        """Call `callback` with each message on the channel from now on; return once the server has confirmed it.

        The callback runs on the event loop and must not block. It gets b"" when messages may have been missed.
        Raises: Unavailable when the server does not confirm in time, Misuse when it does not allow it.
        """
        if self._is_closed:
            raise Misuse("the client is closed")
        found = self._channels.get(channel)
        if found is None:
            found = self._channels[channel] = _Channel(channel, slot)
            self._place(found)
        found.callbacks.append(callback)
        if found.is_live:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        found.waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except BaseException as error:
            self.remove(channel, callback)
            if isinstance(error, TimeoutError):
                raise Unavailable("the subscription was not confirmed in time") from error
            raise
        finally:
            if waiter in found.waiters:
                found.waiters.remove(waiter)

    def remove(self, channel: bytes, callback: Callback) -> None:
        """Stop calling `callback` for this channel; nothing happens when it was not added."""
        found = self._channels.get(channel)
        if found is None or callback not in found.callbacks:
            return
        found.callbacks.remove(callback)
        if not found.callbacks:
            del self._channels[channel]
            if found.line is not None:
                found.line.leave(found)

    async def close(self) -> None:
        """Drop all subscriptions. Idempotent."""
        self._is_closed = True
        for timer in self._later:
            timer.cancel()
        self._later.clear()
        for channel in self._channels.values():
            for waiter in channel.waiters:
                _fail(waiter, Unavailable("the client was closed"))
        lines = list(self._lines.values())
        self._lines.clear()
        for line in lines:
            await line.close()

    # What lines tell ---------------------------------------------------------------------------------------------

    def on_line_ended(self, line: _Line) -> None:
        """Forget a line that has nothing left to do."""
        if self._lines.get(line.endpoint.name) is line:
            del self._lines[line.endpoint.name]

    def on_confirmed(self, channel: _Channel) -> None:
        """Note that the server sends this channel's messages from now on."""
        channel.is_live = True
        for waiter in channel.waiters:
            if not waiter.done():
                waiter.set_result(None)
        if channel.was_live:
            self._deliver(channel, MISSED)
        channel.was_live = True

    def on_message(self, name: bytes, payload: bytes) -> None:
        """Hand a message to everybody who listens."""
        channel = self._channels.get(name)
        if channel is not None and channel.callbacks:
            self._deliver(channel, payload)

    def on_unsubscribed(self, name: bytes) -> None:
        """Subscribe again: the server dropped the channel because its slot moved."""
        channel = self._channels.get(name)
        if channel is not None and channel.is_live:
            self._topology.request_refresh()
            self._place(channel)

    def on_refused(self, channel: _Channel, error: ServerError, answered: Endpoint, pause_s: float) -> None:
        """Follow a redirection, try again later, or tell those who wait that it will not work."""
        if self._channels.get(channel.name) is not channel:
            return
        redirect = read_redirect(error, answered) if error.code == "MOVED" else None
        if redirect is not None:
            self._topology.moved(*redirect)
        else:
            self._topology.request_refresh()
        if error.code not in NOT_EXECUTED:
            for waiter in channel.waiters:
                _fail(waiter, Misuse(f"{answered.name} does not let us subscribe: {error.message}"))
        self._unplace(channel)

        def again() -> None:
            self._later.discard(timer)
            if self._channels.get(channel.name) is channel:
                self._place(channel)

        timer = self._loop.call_later(pause_s, again)
        self._later.add(timer)

    def on_lost(self, channels: list[_Channel]) -> None:
        """Place channels whose connection died, or could not be opened, at whoever serves them now."""
        self._topology.request_refresh()
        for channel in channels:
            if self._channels.get(channel.name) is channel:
                self._place(channel)

    # Private -----------------------------------------------------------------------------------------------------

    def _place(self, channel: _Channel) -> None:
        node = self._topology.by_slot[channel.slot]
        if node is None:
            # Any server knows better; its redirection is followed.
            node = next(filter(None, self._topology.by_slot), None)
        if node is None or self._is_closed:
            return
        self._unplace(channel)
        line = self._lines.get(node.name)
        if line is None:
            line = self._lines[node.name] = _Line(self, self._dialer, node.endpoint, self._ping_every_s)
        line.join(channel)

    def _unplace(self, channel: _Channel) -> None:
        if channel.line is not None:
            channel.line.forget(channel)
        channel.line, channel.is_sent, channel.is_live = None, False, False

    def _deliver(self, channel: _Channel, payload: bytes) -> None:
        for callback in tuple(channel.callbacks):
            try:
                callback(payload)
            except Exception as error:
                # One listener's bug must not take the connection, or the other listeners, with it.
                self._loop.call_exception_handler(
                    {"message": "a subscription's callback raised", "exception": error}
                )


class _Line:
    """The connection to one server for its channels, and the task that keeps it."""

    def __init__(self, owner: Subscriber, dialer: Dialer, endpoint: Endpoint, ping_every_s: float) -> None:
        self.endpoint: Endpoint = endpoint
        self.channels: dict[bytes, _Channel] = {}
        self._unsent: dict[bytes, _Channel] = {}
        self._owner: Subscriber = owner
        self._dialer: Dialer = dialer
        self._ping_every_s: float = ping_every_s
        self._connection: Connection | None = None
        self._backoff: Backoff = Backoff()
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._work: asyncio.Event = asyncio.Event()
        self._task: asyncio.Task[None] = asyncio.create_task(self._run())

    def join(self, channel: _Channel) -> None:
        """Subscribe to the channel here."""
        channel.line = self
        self.channels[channel.name] = self._unsent[channel.name] = channel
        self._work.set()

    def forget(self, channel: _Channel) -> None:
        """Have nothing more to do with the channel here."""
        self.channels.pop(channel.name, None)
        self._unsent.pop(channel.name, None)

    def leave(self, channel: _Channel) -> None:
        """Unsubscribe from the channel here."""
        self.forget(channel)
        if channel.is_sent and self._connection is not None and self._connection.is_open:
            group = self._subscription(b"sunsubscribe", channel.name)
            group.future.add_done_callback(_forget)
            self._connection.send(group)

    async def close(self) -> None:
        """Drop the connection and end the task."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _run(self) -> None:
        try:
            while self.channels:
                try:
                    connection, _ = await self._dialer.dial(self.endpoint)
                except FlowFabricError:
                    pass
                else:
                    await self._serve(connection)
                # Some channels may belong elsewhere by now; those that come back here are tried after the pause.
                self._owner.on_lost(list(self.channels.values()))
                await asyncio.sleep(self._backoff.next_s())
        finally:
            self._owner.on_line_ended(self)

    async def _serve(self, connection: Connection) -> None:
        self._connection = connection
        connection.on_push = self._pushed
        connection.on_end = lambda _: self._work.set()
        try:
            while connection.is_open and self.channels:
                self._work.clear()
                unsent, self._unsent = self._unsent, {}
                for channel in unsent.values():
                    self._subscribe(connection, channel)
                try:
                    async with asyncio.timeout(self._ping_every_s):
                        await self._work.wait()
                except TimeoutError:
                    self._ping(connection)
        finally:
            connection.abort("the subscriptions ended")
            await connection.closed
            self._connection = None
            self._unsent = dict(self.channels)
            for channel in self.channels.values():
                channel.is_sent = channel.is_live = False

    def _subscription(self, kind: bytes, name: bytes) -> _Subscription:
        deadline = self._loop.time() + ACKNOWLEDGED_WITHIN_S
        return _Subscription(kind, name, deadline, self._loop.create_future())

    def _subscribe(self, connection: Connection, channel: _Channel) -> None:
        channel.is_sent = True
        group = self._subscription(b"ssubscribe", channel.name)

        def answered(future: asyncio.Future[list[Answer]]) -> None:
            if future.cancelled() or channel.line is not self or not channel.is_sent:
                _forget(future)
            elif (error := future.exception()) is not None:
                if not isinstance(error, ConnectionLost):
                    connection.abort("a subscription was not confirmed in time")
            elif isinstance(reply := future.result()[0], ServerError):
                if reply.code == "NOSUB":
                    # Servers before 9 refuse to unsubscribe what they have just unsubscribed by themselves. That was
                    # taken for the answer, so this is the answer to something else: nothing is in step any more.
                    connection.abort("the server had unsubscribed by itself")
                    return
                self._owner.on_refused(channel, reply, self.endpoint, self._backoff.next_s())
            else:
                self._backoff.reset()
                self._owner.on_confirmed(channel)

        group.future.add_done_callback(answered)
        connection.send(group)

    def _ping(self, connection: Connection) -> None:
        deadline = self._loop.time() + self._ping_every_s
        group = Group(_PING, 1, deadline, self._loop.create_future())
        group.future.add_done_callback(_forget)
        connection.send(group)

    def _pushed(self, message: list[Reply]) -> None:
        if len(message) < 3:
            return
        kind, name, payload = message[0], message[1], message[2]
        if not (isinstance(kind, bytes) and isinstance(name, bytes)):
            return
        if kind == b"smessage":
            if isinstance(payload, bytes):
                self._owner.on_message(name, payload)
            return
        connection = self._connection
        head = connection.pending[0] if connection is not None and connection.pending else None
        if isinstance(head, _Subscription) and head.kind == kind and head.channel == name:
            assert connection is not None
            connection.answer(message)
        elif kind == b"sunsubscribe":
            self._owner.on_unsubscribed(name)


def _forget(future: asyncio.Future[list[Answer]]) -> None:
    if not future.cancelled():
        future.exception()


def _fail(waiter: asyncio.Future[None], error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)
