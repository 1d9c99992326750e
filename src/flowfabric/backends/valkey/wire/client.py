"""The client: calls routed by slot, to one server or a cluster.

`execute` is the hot path: encode, pick a connection, wait for the replies. Whatever goes wrong on the way is settled
in `retrying`. A client belongs to the event loop it was made on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from flowfabric.backends.valkey.wire.address import Address, Endpoint
from flowfabric.backends.valkey.wire.blocking import BlockingConnection
from flowfabric.backends.valkey.wire.commands import Argument, Command, encode
from flowfabric.backends.valkey.wire.connection import Connection, ConnectionLost, Group
from flowfabric.backends.valkey.wire.dialing import Dialer, Greeting
from flowfabric.backends.valkey.wire.node import Node
from flowfabric.backends.valkey.wire.replies import Answer, Reply, ServerError
from flowfabric.backends.valkey.wire.retrying import NOT_EXECUTED, Call, Outcome
from flowfabric.backends.valkey.wire.subscriber import Subscriber
from flowfabric.backends.valkey.wire.topology import Topology
from flowfabric.backends.valkey.wire.view import View
from flowfabric.backends.valkey.wire.waiting import Backoff
from flowfabric.contract.errors import FlowFabricError, Misuse, Unavailable

__all__ = ["Argument", "Client", "Command", "Reply", "ServerError", "connect"]

TIMEOUT_S: Final = 10.0
"""How long connecting, and each call, may take unless told otherwise."""

CONNECTIONS_PER_NODE: Final = 2


async def connect(
    address: Address, *, timeout_s: float = TIMEOUT_S, connections_per_node: int = CONNECTIONS_PER_NODE
) -> Client:
    """Connect to a server, or to a cluster through any of its seeds, trying again for `timeout_s`.

    `timeout_s` is also the deadline of every call that names none. At most `connections_per_node` connections to each
    server are shared by all calls; blocking calls and subscriptions have their own.

    Raises: Misuse when trying again cannot help (a wrong password, no cluster), Unavailable when nobody answered.
    """
    dialer = Dialer(address)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    backoff = Backoff()
    topology = Topology(dialer, address.seeds, connections_per_node=connections_per_node)
    trouble = ""
    while True:
        for seed in address.seeds:
            try:
                async with asyncio.timeout_at(deadline):
                    await _start(topology, dialer, address, seed)
                return Client(topology, dialer, is_cluster=address.is_cluster, timeout_s=timeout_s)
            except TimeoutError:
                trouble = (
                    trouble or f"{seed.name} did not answer{' (does it speak TLS?)' if address.tls else ''}"
                )
            except ConnectionLost as error:
                trouble = error.reason
            except Unavailable as error:
                trouble = error.message
        remaining = deadline - loop.time()
        if remaining <= 0:
            raise Unavailable(f"{address.public_url} was not reached within {timeout_s:g} s: {trouble}")
        await asyncio.sleep(min(backoff.next_s(), remaining))


async def _start(topology: Topology, dialer: Dialer, address: Address, seed: Endpoint) -> None:
    connection, greeting = await dialer.dial(seed)
    if not address.is_cluster and greeting.mode != "cluster":
        topology.start_single(connection, greeting)
        return
    try:
        view = await _first_view(topology, address, seed, connection, greeting)
    finally:
        connection.abort("it was opened to look at the cluster")
        await connection.closed
    # Nothing is awaited after this: who gives up while waiting leaves nothing running.
    topology.start_cluster(view)


async def _first_view(
    topology: Topology, address: Address, seed: Endpoint, connection: Connection, greeting: Greeting
) -> View:
    if not address.is_cluster:
        raise Misuse(f"{seed.name} belongs to a cluster: use a URL that begins with valkey+cluster://")
    if greeting.mode != "cluster":
        raise Misuse(f"{seed.name} is a single server, not part of a cluster: use valkey://{seed.name}")
    view = await topology.describe(connection, seed)
    if view is None:
        raise Unavailable(f"{seed.name} knows of no server that owns slots")
    return view


class Client:
    """Sends commands to the servers that own their keys. Made by `connect`; close it."""

    def __init__(self, topology: Topology, dialer: Dialer, *, is_cluster: bool, timeout_s: float) -> None:
        self.is_cluster: bool = is_cluster
        self._topology: Topology = topology
        self._dialer: Dialer = dialer
        self._timeout_s: float = timeout_s
        self._by_slot: list[Node | None] = topology.by_slot
        self._blocking: set[BlockingConnection] = set()
        self._subscriber: Subscriber | None = None
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._now: Callable[[], float] = self._loop.time

    async def execute(
        self,
        slot: int,
        commands: Sequence[Command],
        *,
        timeout_s: float | None = None,
        repeatable: bool = False,
        decisive: int = -1,
    ) -> list[Answer]:
        """Send the commands, in order, on one connection to the primary that owns `slot`; return their replies.

        One server takes any slot. The group is sent again, whole, while its *last* command (or the one at `decisive`)
        is answered with a redirection or a "not now" (MOVED, TRYAGAIN, LOADING, ...): the others must bear that. With
        `repeatable` it is also sent again when its connection died under it. A caller that is cancelled leaves no
        mess; what it sent may be executed.

        Raises: Unavailable when the deadline passed and nothing was executed, OutcomeUnknown when the commands were
        sent and their replies did not come, Misuse.
        """
        deadline = self._now() + (self._timeout_s if timeout_s is None else timeout_s)
        data = encode(commands)
        node = self._by_slot[slot]
        connection = node.pick() if node is not None else None
        outcome: Outcome = None
        if connection is not None:
            group = Group(data, len(commands), deadline, self._loop.create_future())
            connection.send(group)
            try:
                replies = await group.future
            except ConnectionLost as lost:
                outcome = lost
            else:
                last = replies[decisive]
                if type(last) is not ServerError or last.code not in NOT_EXECUTED:
                    return replies
                outcome = last
        elif self._topology.is_closed:
            raise Misuse("the client is closed")
        call = Call(
            self._topology,
            lambda: self._by_slot[slot],
            commands,
            data,
            deadline,
            repeatable=repeatable,
            decisive=decisive,
        )
        return await call.finish(node, outcome)

    async def on_node(
        self,
        node: str,
        commands: Sequence[Command],
        *,
        timeout_s: float | None = None,
        repeatable: bool = False,
    ) -> list[Answer]:
        """Send the commands to this primary, whatever their keys; redirections are returned, not followed.

        Raises: as `execute`; Unavailable at once when the server is no primary (any more).
        """
        if self._topology.is_closed:
            raise Misuse("the client is closed")
        deadline = self._now() + (self._timeout_s if timeout_s is None else timeout_s)
        call = Call(
            self._topology,
            lambda: self._topology.primary(node),
            commands,
            encode(commands),
            deadline,
            repeatable=repeatable,
            pinned=node,
        )
        return await call.begin()

    async def on_primaries(
        self, commands: Sequence[Command], *, timeout_s: float | None = None, repeatable: bool = False
    ) -> dict[str, list[Answer]]:
        """Send the commands to every primary, side by side; return the replies by server.

        A primary that appears meanwhile gets them too; one that stops being a primary is left out.
        Raises: as `execute`, for the first primary that failed; the others are waited for.
        """
        deadline = self._now() + (self._timeout_s if timeout_s is None else timeout_s)
        replies: dict[str, list[Answer]] = {}
        while missing := [name for name in self.primaries() if name not in replies]:
            outcomes = await asyncio.gather(
                *(
                    self.on_node(name, commands, timeout_s=deadline - self._now(), repeatable=repeatable)
                    for name in missing
                ),
                return_exceptions=True,
            )
            for name, outcome in zip(missing, outcomes, strict=True):
                if not isinstance(outcome, BaseException):
                    replies[name] = outcome
                elif name in self.primaries() or not isinstance(outcome, FlowFabricError):
                    raise outcome
        return {name: replies[name] for name in self.primaries()}

    def primaries(self) -> tuple[str, ...]:
        """Return the names (`host:port` or a socket's path) of the primaries known now, at least one."""
        return self._topology.primaries()

    def node_of(self, slot: int) -> str:
        """Return the name of the primary that owns the slot as far as is known; empty when nobody does."""
        node = self._by_slot[slot]
        return node.name if node is not None else ""

    async def blocking(self, slot: int) -> BlockingConnection:
        """Return a connection of the caller's own to the primary that owns the slot; it connects when it is used."""
        if self._topology.is_closed:
            raise Misuse("the client is closed")
        connection = BlockingConnection(self._topology, self._dialer, slot, self._blocking.discard)
        self._blocking.add(connection)
        return connection

    def subscriber(self) -> Subscriber:
        """Return the client's subscriber, the same one each time."""
        if self._topology.is_closed:
            raise Misuse("the client is closed")
        if self._subscriber is None:
            self._subscriber = Subscriber(self._topology, self._dialer)
        return self._subscriber

    def on_topology_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` called after a server that may lack our function library was seen.

        That is: one became a primary, or the server behind a known name was started anew.
        """
        self._topology.on_change.append(callback)

    async def close(self) -> None:
        """Drop all connections; calls under way end with Unavailable or OutcomeUnknown. Idempotent."""
        self._topology.is_closed = True
        for connection in tuple(self._blocking):
            await connection.close()
        if self._subscriber is not None:
            await self._subscriber.close()
        await self._topology.close()
