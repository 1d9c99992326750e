"""Behind a proxy that lends connections for one transaction: everything works but for being told, and that is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import pytest
from structlog.testing import capture_logs

from flowfabric.backends.postgres import listen
from flowfabric.contract.execution import ExecutionReadResult
from flowfabric.contract.ids import Kind
from flowfabric.contract.stream import FrameInput, StreamAppend, StreamTail
from flowfabric.engine.supervisor import Engine
from tests.backends.postgres.pooler import PGBOUNCER, Pooler, SmallPooler, pgbouncer, small_pooler
from tests.backends.postgres.work import asleep, listener_of, opened
from tests.backends.working import PATIENCE_S, WAIT_MS, claim, complete, create, gone, served, until, waiting
from tests.postgres.servers import Node

LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.fixture(params=["small", *(["pgbouncer"] if PGBOUNCER else [])])
async def pooler(request: pytest.FixtureRequest, node: Node) -> AsyncIterator[Pooler]:
    """A proxy before the session's server."""
    if request.param == "small":
        async with small_pooler(node.port) as small:
            yield small
    else:
        async with pgbouncer(node.url) as real:
            yield real


def through(node: Node, pooler: Pooler, options: str) -> str:
    """Return the server's URL with the proxy's port."""
    parts = urlsplit(node.url)
    netloc = f"{parts.netloc.rpartition(':')[0]}:{pooler.port}"
    return urlunsplit(parts._replace(netloc=netloc, query=options))


async def test_everything_works_but_for_being_told(node: Node, pooler: Pooler) -> None:
    """Work is created, claimed and done, streams are followed and timers fire; waiting calls look by themselves."""
    with capture_logs() as logs:
        async with opened(through(node, pooler, "pooler=transaction"), 2) as (one, other):
            assert not (await other.capabilities()).push
            engine = Engine(one)
            await engine.start()
            tasks = [waiting(other, f"w{number}") for number in range(12)]
            delayed = await create(one, delay_until_ms=await one.now_ms() + 200)
            created = await asyncio.gather(*(create(one) for _ in range(11)))
            leases = await served(*tasks)
            assert sorted(lease.execution_id for lease in leases) == sorted([delayed, *created])
            first, *others = leases
            tail = asyncio.create_task(
                other.stream.tail(StreamTail(execution_id=first.execution_id, after="0:0-1", wait_ms=WAIT_MS))
            )
            reads = [
                asyncio.create_task(
                    other.execution.read_result(
                        ExecutionReadResult(execution_id=lease.execution_id, wait_ms=WAIT_MS)
                    )
                )
                for lease in others
            ]
            await one.stream.append(
                StreamAppend(
                    execution_id=first.execution_id,
                    attempt_index=0,
                    fence=first.fence,
                    frames=(FrameInput(sequence=1),),
                )
            )
            async with asyncio.timeout(PATIENCE_S):
                assert len((await tail).frames) == 1
                await asyncio.gather(*(complete(one, lease, b"1") for lease in others))
                results = await asyncio.gather(*reads)
            assert {result.result.data for result in results} == {b"1"}  # type: ignore[union-attr]
            await engine.stop(5)
            assert not (await one.maintenance.fsck()).findings
    said = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert said.count("no_push") == 2


async def test_the_listener_goes_past_the_proxy(node: Node, pooler: Pooler) -> None:
    """With the server's own address for the listener, whoever waits is told as without a proxy."""
    options = f"pooler=transaction&listener=127.0.0.1:{node.port}"
    async with opened(through(node, pooler, options), 2) as (one, other):
        assert (await other.capabilities()).push
        task = waiting(other)
        await asleep(other, count=1)
        execution_id = await create(one)
        async with asyncio.timeout(1):
            assert [lease.execution_id for lease in await task] == [execution_id]


async def test_a_proxy_that_nobody_mentioned_is_noticed(
    node: Node, pooler: Pooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a listener's address leads to a proxy, that is found out; nothing is left behind on its connections."""
    monkeypatch.setattr(listen, "PROBE_TIMEOUT_S", 0.3)
    async with (
        opened(f"{node.url}?listener=127.0.0.1:{pooler.port}") as (one,),
        opened(through(node, pooler, "pooler=transaction"), 4) as others,
    ):
        # The proxy's connections are there before the listener's: it is one client among others.
        await asyncio.gather(*(create(other, kind=Kind("other")) for other in others))
        with capture_logs() as logs:
            assert not (await one.capabilities()).push
            task = waiting(one, kinds=(Kind("k"),))
            execution_id = await create(one)
            assert [lease.execution_id for lease in await served(task)] == [execution_id]
        assert [entry["event"] for entry in logs] == ["no_push"]
        assert not listener_of(one)._held
        assert node.one(LOCKS) == 0
        if isinstance(pooler, SmallPooler):
            assert pooler.lost
        await gone(task)


async def test_many_callers_share_few_connections(node: Node, pooler: Pooler) -> None:
    """More callers than the proxy has connections, in several processes, get everything done."""
    async with opened(through(node, pooler, "pooler=transaction&pool_size=8"), 3) as backends:
        await asyncio.gather(*(create(backends[number % 3]) for number in range(120)))
        done: list[str] = []

        async def work(number: int) -> None:
            while leases := await claim(backends[number % 3], f"w{number}", max_tasks=4):
                for lease in leases:
                    await complete(backends[number % 3], lease)
                    done.append(lease.execution_id)

        async with asyncio.timeout(2 * PATIENCE_S):
            await asyncio.gather(*(work(number) for number in range(12)))
        await until(lambda: len(set(done)) == 120)
