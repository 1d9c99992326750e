"""What is done to Postgres servers in the fault tests. What blocks runs in a thread: the load goes on meanwhile."""

from __future__ import annotations

import asyncio
from typing import Final

from flowfabric.backends.postgres.pool import APPLICATION
from tests.faults.scenes import blocking
from tests.postgres.servers import Node

OURS: Final = f"{APPLICATION}%"
"""Connections of stores, by the name of their application."""
LISTENERS: Final = "flowfabric listener%"


async def kill_and_start(node: Node) -> None:
    """Kill a server and start it again at once."""

    def act() -> None:
        node.kill()
        node.start()

    await blocking(act)


async def restart(node: Node) -> None:
    """Stop a server in good order and start it again."""

    def act() -> None:
        node.stop()
        node.start()

    await blocking(act)


async def crash_one(node: Node) -> None:
    """Kill the process of one connection, so that the server throws everybody out and recovers."""

    def act() -> None:
        pids = node.backends(application=OURS)
        node.hang_up()
        if pids:
            node.kill_backend(pids[0])

    await blocking(act)


async def drop_connections(node: Node, application: str = OURS) -> int:
    """End connections, all at once; return how many."""

    def act() -> int:
        found = node.backends(application=application)
        node.call("SELECT pg_terminate_backend(pid) FROM unnest(%s::integer[]) AS x(pid)", found)
        return len(found)

    return await asyncio.to_thread(act)
