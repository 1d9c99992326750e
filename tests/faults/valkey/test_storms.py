"""A server that is up but not well: it drops connections, pauses, hangs, runs out of memory. Clients wait and go on."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.contract.errors import OutcomeUnknown, Unavailable
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import Kind, Lane
from flowfabric.contract.payloads import Payload
from tests.faults.judging import judge
from tests.faults.load import PATIENCE_S, loading
from tests.faults.scenes import KILLS, blocking
from tests.valkey.servers import Node

SOON_S = 15.0
"""Sooner than the store is swept: what a lost reply hid is found by who waited for it."""


async def test_connections_are_killed_all_the_time(server: Node) -> None:
    """Connections that are cut again and again, also those that wait and listen, cost repetitions and nothing else."""
    async with loading(server.url) as load:
        await load.progress()
        for _ in range(2 * KILLS):
            await load.progress(2)
            for kind in ("normal", "pubsub"):
                server.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await asyncio.sleep(0.02)  # sleeps: the moment of the cut is the point
        await load.progress()
        assert load.unavailable, "nobody noticed anything"
        await judge(load.backend, await load.finish(within_s=SOON_S))


async def test_a_server_that_pauses_and_hangs(server: Node) -> None:
    """While the server answers nobody callers wait; leases that ran out meanwhile go to others, and nothing is lost."""
    async with loading(server.url) as load:
        for _ in range(2):
            await load.progress()
            server.call("CLIENT", "PAUSE", 300, "WRITE")
            await load.progress()
            server.call("CLIENT", "PAUSE", 300, "ALL")
            await load.progress()
            # Longer than a lease lives.
            await blocking(lambda: server.call("DEBUG", "SLEEP", "1.5"))
        await load.progress()
        await judge(load.backend, await load.finish())


async def test_a_server_that_is_full(server: Node) -> None:
    """At its memory limit a server takes no creates, and says so; nothing is half written; with room work goes on."""
    create = ExecutionCreate(kind=Kind("k"), lane=Lane("other"), input=Payload(b"1" * 10_000))
    async with loading(server.url) as load:
        await load.progress()
        server.call("CONFIG", "SET", "maxmemory", int(server.info("memory")["used_memory"]) + 200_000)
        async with asyncio.timeout(PATIENCE_S):
            while load.unavailable < 20:  # noqa: ASYNC110 - the load tells nobody
                await asyncio.sleep(0.02)  # sleeps: until the load has met the limit
        server.call("CONFIG", "SET", "maxmemory", "1mb")
        for call in (
            lambda: load.backend.execution.create(create),
            lambda: load.backend.execution.create_many(ExecutionCreateMany(executions=(create, create))),
        ):
            with pytest.raises(Unavailable, match="memory") as caught:
                await call()
            assert not isinstance(caught.value, OutcomeUnknown)
        server.call("CONFIG", "SET", "maxmemory", "0")
        await load.progress()
        await judge(load.backend, await load.finish(within_s=SOON_S))
