"""Which server serves which slot, kept up to date, and the connections to all of them.

One server is a cluster whose only node has every slot and never changes. For a cluster one task refreshes the view:
when somebody found it wrong (MOVED, a dead connection, a primary that became a replica), at most every
REFRESH_PAUSE_S, and every REFRESH_EVERY_S anyway. A MOVED answer corrects its own slot at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from flowfabric.backends.valkey.wire.address import Endpoint
from flowfabric.backends.valkey.wire.commands import encode
from flowfabric.backends.valkey.wire.connection import Connection, ConnectionLost, Group
from flowfabric.backends.valkey.wire.dialing import Dialer, Greeting
from flowfabric.backends.valkey.wire.node import Node
from flowfabric.backends.valkey.wire.slots import SLOTS
from flowfabric.backends.valkey.wire.view import View, read_view
from flowfabric.backends.valkey.wire.waiting import Signal
from flowfabric.contract.errors import FlowFabricError

REFRESH_PAUSE_S: Final = 0.05
REFRESH_EVERY_S: Final = 30.0

ASK_TIMEOUT_S: Final = 1.0
"""How long one node may take to describe the cluster before another one is asked."""

_DESCRIBE: Final = encode([("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")])


class Topology:
    """Slots, nodes and news. `by_slot` is changed in place: a reference to it stays good."""

    def __init__(self, dialer: Dialer, seeds: tuple[Endpoint, ...], *, connections_per_node: int) -> None:
        self.by_slot: list[Node | None] = [None] * SLOTS
        self.news: Signal = Signal()
        """Fires when an attempt to connect or to refresh has ended, well or not, or a connection was lost."""
        self.on_change: list[Callable[[], None]] = []
        self.is_closed: bool = False
        self._dialer: Dialer = dialer
        self._seeds: tuple[Endpoint, ...] = seeds
        self._connections_per_node: int = connections_per_node
        self._nodes: dict[str, Node] = {}
        self._primaries: tuple[str, ...] = ()
        self._replicas: tuple[Endpoint, ...] = ()
        self._retired: list[Node] = []
        self._informed: Node | None = None
        self._is_stale: asyncio.Event = asyncio.Event()
        self._refresher: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()

    def start_single(self, connection: Connection, greeting: Greeting) -> None:
        """Serve every slot from the one seed, over a connection that is already open."""
        node = self._new_node(self._seeds[0], (connection, greeting))
        self._primaries = (node.name,)
        self.by_slot[:] = [node] * SLOTS

    def start_cluster(self, view: View) -> None:
        """Begin with this view and keep it fresh."""
        self._apply(view)
        self._refresher = asyncio.create_task(self._keep_fresh())

    def primaries(self) -> tuple[str, ...]:
        """Return the names of the known primaries, with or without slots."""
        return self._primaries

    def primary(self, name: str) -> Node | None:
        """Return the node of this name while it is a primary."""
        return self._nodes.get(name) if name in self._primaries else None

    def node_at(self, endpoint: Endpoint) -> Node:
        """Return the node at this place, which may be one the view does not know."""
        return self._nodes.get(endpoint.name) or self._new_node(endpoint)

    def moved(self, slot: int, endpoint: Endpoint) -> None:
        """Take a server's word that the slot is served there, and look at the whole again."""
        if self.is_closed:
            return
        node = self.node_at(endpoint)
        self.by_slot[slot] = node
        self._informed = node
        self.request_refresh()

    def request_refresh(self) -> None:
        """Have the view refreshed soon; `news` fires when it was. Nothing to do for one server."""
        self._is_stale.set()

    def lost_role(self, node: Node, reason: str) -> None:
        """Note that this node does not serve writes (any more)."""
        if self._refresher is None:
            # Behind the same name there may be another server by now: new connections will find it.
            node.renew(reason)
        else:
            self.request_refresh()

    async def describe(self, connection: Connection, asked: Endpoint) -> View | None:
        """Ask over this connection; None when the answer is no view of a cluster.

        Raises: ConnectionLost, Unavailable, OutcomeUnknown.
        """
        deadline = self._loop.time() + ASK_TIMEOUT_S
        group = Group(_DESCRIBE, 2, deadline, self._loop.create_future())
        connection.send(group)
        slots, nodes = await group.future
        return read_view(slots, nodes, asked)

    async def close(self) -> None:
        """Drop everything and wait until it is gone. Idempotent."""
        self.is_closed = True
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait((self._refresher,))
        for node in (*self._nodes.values(), *self._retired):
            await node.close("the client was closed")
        self.news.fire()

    # Private -----------------------------------------------------------------------------------------------------

    def _new_node(self, endpoint: Endpoint, first: tuple[Connection, Greeting] | None = None) -> Node:
        node = Node(
            endpoint,
            self._dialer,
            connections_max=self._connections_per_node,
            news=self.news,
            on_lost=self.request_refresh,
            on_restart=self._changed,
            on_quiet=self.request_refresh,
            first=first,
        )
        self._nodes[node.name] = node
        return node

    def _apply(self, view: View) -> None:
        before = set(self._primaries)
        self._primaries = tuple(sorted(endpoint.name for endpoint in view.primaries))
        self._replicas = view.replicas
        for endpoint in view.primaries:
            self.node_at(endpoint)
        slots: list[Node | None] = [None] * SLOTS
        for first, last, endpoint in view.owners:
            slots[first : last + 1] = [self._nodes[endpoint.name]] * (last + 1 - first)
        self.by_slot[:] = slots
        for name in [name for name in self._nodes if name not in self._primaries]:
            node = self._nodes.pop(name)
            node.retire()
            self._retired.append(node)
        self._retired = [node for node in self._retired if not node.is_gone]
        if before and set(self._primaries) - before:
            self._changed()

    def _changed(self) -> None:
        for callback in tuple(self.on_change):
            callback()

    async def _keep_fresh(self) -> None:
        while True:
            try:
                async with asyncio.timeout(REFRESH_EVERY_S):
                    await self._is_stale.wait()
            except TimeoutError:
                pass
            self._is_stale.clear()
            view = await self._look()
            if view is not None:
                self._apply(view)
            self.news.fire()
            await asyncio.sleep(REFRESH_PAUSE_S * random.uniform(0.75, 1.25))  # noqa: S311 - jitter

    async def _look(self) -> View | None:
        """Ask nodes, those we are connected to first, until one describes the cluster."""
        connected = [node for node in self._nodes.values() if node.ready]
        random.shuffle(connected)
        # Who was given a slot just now knows; others may take a second to hear of it, and would send us back.
        connected.sort(key=lambda node: node is not self._informed)
        self._informed = None
        for node in connected:
            if node.ready:
                view = await self._try(node.ready[0], node.endpoint)
                if view is not None:
                    return view
        known = {node.endpoint for node in self._nodes.values() if not node.ready}
        others = [*known, *(set(self._replicas) - known), *(set(self._seeds) - known)]
        random.shuffle(others)
        for endpoint in dict.fromkeys(others):
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    connection, _ = await self._dialer.dial(endpoint)
            except (FlowFabricError, TimeoutError):
                continue
            try:
                view = await self._try(connection, endpoint)
            finally:
                connection.abort("it was opened to look at the cluster")
                await connection.closed
            if view is not None:
                return view
        return None

    async def _try(self, connection: Connection, asked: Endpoint) -> View | None:
        try:
            return await self.describe(connection, asked)
        except (FlowFabricError, ConnectionLost):
            return None
