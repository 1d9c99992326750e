"""The rights that the documentation tells operators to give are enough, and none of them is more than that.

They are taken from docs/concepts/operating-valkey.md as they stand there. Whatever the store does as that user is
compared with what the server counted and with what it says it denied.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import hiredis
import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.store import open_store
from flowfabric.contract.errors import Misuse
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import Kind, PartitionCounts
from flowfabric.contract.policies import ExecutionPolicy, KindDefaults, StreamPolicy
from flowfabric.contract.states import FrameMode
from tests.backends.valkey.wire.servers import Cluster, Line, Server
from tests.conformance import situations
from tests.conformance.world import START_MS, World, frame, payload

PAGE: Final = Path(__file__).resolve().parents[3] / "docs" / "concepts" / "operating-valkey.md"
USER: Final = "flowfabric"
PASSWORD: Final = "a-long-secret"
FEW: Final = PartitionCounts(flow=8)

UNSEEN: Final = {
    "asking": "sent only while a slot is being moved",
    "client|setinfo": "names the connection, and is counted under its parent by some versions",
    "function|delete": "removes the library of a version that no process has used for a quarter of an hour",
    "hvals": "counts the routes of a lane that has a thousand",
    "select": "needed for database numbers other than 0",
}
"""Rights that are documented and that the run below does not exercise, with the reason to give them."""


def documented() -> list[str]:
    """Return the words of the documented ACL SETUSER command after the user's name, with our password."""
    (block,) = re.findall(
        r"^```text\n(ACL SETUSER .*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    command, _, rest = block.partition(f" {USER} ")
    assert command == "ACL SETUSER"
    return [f">{PASSWORD}" if word.startswith(">") else word for word in rest.split()]


def granted() -> set[str]:
    """Return the commands that the documented rights allow."""
    words = {word[1:] for word in documented() if word.startswith("+")}
    assert not any(word.startswith("@") for word in words), "each right is named"
    return words


def _users(servers: Iterable[Server]) -> list[Server]:
    """Make the user on each server, alone in knowing the password, and forget what was counted."""
    found = list(servers)
    for server in found:
        server.call("ACL", "SETUSER", USER, "reset", *documented())
        server.call("ACL", "LOG", "RESET")
        server.call("CONFIG", "RESETSTAT")
    return found


def _limited(url: str) -> str:
    return url.replace("://", f"://{USER}:{PASSWORD}@", 1)


def _denied(servers: Iterable[Server]) -> list[str]:
    """Return what the servers denied, as `command (reason)`."""
    denied: list[str] = []
    for server in servers:
        for entry in server.call("ACL", "LOG"):
            fields = dict(zip(entry[::2], entry[1::2], strict=True))
            denied.append(f"{fields[b'object'].decode()} ({fields[b'reason'].decode()})")
    return denied


def _counted(servers: Iterable[Server]) -> set[str]:
    """Return the commands that the servers executed."""
    lines = [line for server in servers for line in server.call("INFO", "commandstats").decode().splitlines()]
    return {line.partition(":")[0].removeprefix("cmdstat_") for line in lines if line.startswith("cmdstat_")}


@asynccontextmanager
async def _world(url: str) -> AsyncIterator[World]:
    clock = ManualClock(start_ms=START_MS)
    backend = await backends.connect(url, clock=clock, partitions=FEW)
    try:
        yield World(backend, clock)
    finally:
        await backend.close()


async def _everything(url: str, servers: Sequence[Server]) -> None:
    """Bring executions into every situation, and do what situations do not."""
    for make in situations.ALL.values():
        async with _world(url) as world:
            execution_id = await make(world)
            await world.describe(execution_id)
            await world.observe()
        _empty(servers)
    async with _world(url) as world:
        await _the_rest(world)
    _empty(servers)
    await _by_the_servers_clock(url)


async def _the_rest(world: World) -> None:
    # Large inputs and results have keys of their own, and inputs above 64 KiB are read apart.
    large = payload('"' + "x" * 100_000 + '"')
    await world.worker.register(
        worker_id="w",
        worker_instance="w-1",
        lanes=("default",),
        defaults=(KindDefaults(kind=Kind("k"), priority=3),),
    )
    short = ExecutionPolicy(stream_policy=StreamPolicy(retention_maxlen=1))
    lease = await world.leased(kind="k", input=large, idempotency_key="once", tags={"a.b": "c"}, policy=short)
    frames = (
        frame(1),
        frame(2),
        frame(3, mode=FrameMode.BEST_EFFORT, ttl_ms=1_000),
        frame(4, mode=FrameMode.BEST_EFFORT, ttl_ms=1_000),
        frame(5, b'{"a":1}', mode=FrameMode.SUMMARY),
    )
    await world.stream.append(lease, frames=frames)
    await world.stream.read(lease)
    await world.stream.read_summary(lease)
    seen = await world.stream.tail(lease)
    await world.stream.tail(lease, after=seen.next_cursor, wait_ms=50)
    await world.lease.renew(lease)
    await world.worker.heartbeat(worker_instance="w-1")
    await world.worker.list()
    await world.execution.complete(lease, result=large)
    await world.execution.read_result(lease.execution_id, wait_ms=10)
    await world.lane.set_state(lane="default", state="paused")
    await world.lane.set_state(lane="default", state="active")
    await world.lane.list()
    await world.lease.list_expired()
    await world.execution.list(id_prefix=lease.execution_id[-36:])
    await asyncio.gather(world.claim("one", kinds=("k",), wait_ms=5_000), _later(world))
    await world.backend.maintenance.fsck(repair=True)
    await world.backend.timers.sweep()
    await world.worker.mark_dead(worker_instance="w-1")
    await world.advance(30 * 86_400_000)


async def _later(world: World) -> None:
    """While a claim waits have another wait for something else, then create what both want."""
    await asyncio.sleep(0.2)  # sleeps: the first one has to have begun to wait
    other = asyncio.create_task(world.claim("two", kinds=("l",), wait_ms=5_000))
    await asyncio.sleep(0.2)  # sleeps: and this one, too
    await world.create(kind="k")
    await world.create(kind="l")
    await other


async def _by_the_servers_clock(url: str) -> None:
    backend = await backends.connect(url, partitions=FEW)
    try:
        await backend.ping()
        await backend.now_ms()
    finally:
        await backend.close()


async def _replicated(url: str) -> None:
    """Have replicas confirm."""
    backend = await backends.connect(f"{url}?durability=replicated", partitions=FEW)
    try:
        await backend.execution.create(ExecutionCreate(kind=Kind("k")))
    finally:
        await backend.close()


def _empty(servers: Iterable[Server]) -> None:
    for server in servers:
        if b"role:master" in server.call("INFO", "replication"):
            server.call("FLUSHALL")


# Tests ------------------------------------------------------------------------------------------------------------


async def test_the_documented_rights_are_enough_and_used(single: Server, cluster: Cluster) -> None:
    """With the rights that the documentation names everything works on one server and on a cluster; each is needed.

    Acceptance: documented-acl-is-least
    """
    lone, nodes = _users([single]), _users(cluster.nodes)
    await _everything(_limited(single.url), lone)
    await _everything(_limited(cluster.url), nodes)
    await _replicated(_limited(cluster.url))
    assert _denied([*lone, *nodes]) == []
    assert granted() - _counted([*lone, *nodes]) - set(UNSEEN) == set()


async def test_the_library_may_be_loaded_by_somebody_else(single: Server) -> None:
    """A user who may not load functions is let in once another has, and told what is missing before."""
    _users([single])
    single.call("ACL", "SETUSER", USER, "-function|load", "+function|list")
    with pytest.raises(Misuse, match="FUNCTION LOAD"):
        await open_store(_limited(single.url), partitions=FEW)
    await (await open_store(single.url, partitions=FEW)).close()
    await (await open_store(_limited(single.url), partitions=FEW)).close()


async def test_nothing_else_is_reached(single: Server) -> None:
    """The documented user sees no other key, no other channel and no other command."""
    _users([single])
    single.call("SET", "other", "1")
    line = Line(single.port)
    line("AUTH", USER, PASSWORD)
    for command in (
        ("GET", "other"),
        ("SSUBSCRIBE", "other"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "SET", "maxmemory", "1mb"),
        ("FUNCTION", "FLUSH"),
        ("EVAL", "return 1", 0),
    ):
        with pytest.raises(hiredis.ReplyError, match="NOPERM"):
            line(*command)
    line.close()
