"""A worker that knows nothing but a server's URL loses nothing when replies get lost or the server goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from flowfabric.client.http import HttpStores
from flowfabric.contract.attempt import AttemptList
from flowfabric.contract.backend import Backend, Stores
from flowfabric.contract.errors import Misuse
from flowfabric.contract.execution import ExecutionCancel, ResultCancelled, ResultCompleted, ResultFailed
from flowfabric.contract.lease import LeaseHistory
from flowfabric.contract.states import CancelSource
from flowfabric.server.run import running
from flowfabric.worker import App, Context, Worker
from tests.client.cutting import Cut, CuttingProxy, cutting
from tests.worker.rig import Rig, opened, until

app = App("http")
seen: list[Any] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    seen.clear()


@app.task
async def streams(ctx: Context, to: int) -> int:
    for number in range(to):
        await ctx.stream(number)
    return to


@app.task(retries=1, backoff="1ms")
async def fails(ctx: Context) -> str:
    if ctx.attempt == 0:
        raise ValueError("first")
    return "second"


@app.task
async def pauses(ctx: Context) -> bool:
    if not ctx.is_resumed:
        await ctx.delay("1ms")
    return ctx.is_resumed


@app.task
async def waits(ctx: Context) -> None:
    seen.append(ctx)
    try:
        await asyncio.Event().wait()
    finally:
        seen.append(ctx.cancel_reason)


@app.task
async def blocks(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251  # sleeps: blocking the event loop is what is tested
    return "done"


@app.task
async def returns_much() -> str:
    return "x" * (1024 * 1024 - 10)


def worker_of(url: str, **options: Any) -> Worker:
    async def another() -> Stores:
        return HttpStores(url, attempt_timeout_s=0.5)

    return Worker(HttpStores(url, attempt_timeout_s=0.5), app, stores_factory=another, **options)


@asynccontextmanager
async def behind_proxy() -> AsyncGenerator[tuple[Rig, Backend, CuttingProxy]]:
    """A server, and a proxy in front of it that loses what a test says."""
    async with opened() as (rig, backend), running(backend, engine=False) as url:
        port = int(url.rpartition(":")[2])
        async with cutting(port) as proxy:
            yield rig, backend, proxy


@asynccontextmanager
async def working(url: str, **options: Any) -> AsyncGenerator[Worker]:
    worker = worker_of(url, **options)
    async with worker:
        yield worker
    await worker.stores.close()


LOSSES = [Cut.REPLY, Cut.REQUEST, Cut.MIDDLE, Cut.SILENCE, Cut.BUSY]


@pytest.mark.parametrize("cut", LOSSES)
@pytest.mark.parametrize("path", ["/claim", "/complete", "/stream", "/workers "])
async def test_lost_calls_are_repeated_and_happen_once(path: str, cut: Cut) -> None:
    """A claim, append, completion or registration whose request or reply is lost is repeated and happens once."""
    async with behind_proxy() as (rig, backend, proxy):
        execution_id = await rig.submit(streams, to=5)
        proxy.cut(path.strip(), cut, times=1)
        async with working(proxy.url, claim_wait_ms=500):
            ended = await rig.result(execution_id)
        assert isinstance(ended, ResultCompleted)
        frames = await rig.frames(execution_id)
        assert [msgspec.json.decode(frame.payload.data) for frame in frames] == [0, 1, 2, 3, 4]
        attempts = await backend.attempt.list(AttemptList(execution_id=execution_id))
        assert len(attempts.attempts) == 1


@pytest.mark.parametrize("cut", LOSSES)
async def test_a_lost_failure_is_reported_once(cut: Cut) -> None:
    """A failure whose report is lost is repeated: one retry follows, not two."""
    async with behind_proxy() as (rig, _, proxy):
        execution_id = await rig.submit(fails, policy=fails.defaults.policy)
        proxy.cut("/fail", cut, times=1)
        async with working(proxy.url, claim_wait_ms=500):
            assert isinstance(await rig.result(execution_id), ResultCompleted)
        assert (await rig.describe(execution_id)).retry_count == 1


@pytest.mark.parametrize("cut", LOSSES)
async def test_a_lost_delay_is_asked_for_once(cut: Cut) -> None:
    """A delay whose reply is lost is repeated, and the attempt resumes once."""
    async with behind_proxy() as (rig, _, proxy):
        execution_id = await rig.submit(pauses)
        proxy.cut("/delay", cut, times=1)
        async with working(proxy.url, claim_wait_ms=500):
            ended = await rig.result(execution_id)
        assert isinstance(ended, ResultCompleted)
        assert ended.attempt_index == 0


async def test_renewals_over_http_survive_a_blocked_loop() -> None:
    """The renewal thread has a connection of its own: a handler that blocks the worker's loop keeps its lease."""
    async with opened() as (rig, backend):
        served = asyncio.Event()
        urls: list[str] = []
        stop = asyncio.Event()

        async def serve() -> None:
            async with running(backend, engine=False) as url:
                urls.append(url)
                served.set()
                await stop.wait()

        serving = asyncio.create_task(serve())
        await served.wait()
        # The worker gets a loop of its own, so that blocking it does not block the server too.
        execution_id = await rig.submit(blocks, seconds=1.0)

        def work() -> None:
            async def run() -> None:
                async with working(urls[0], lease_ttl="300ms") as worker:
                    await until(lambda: worker.attempts_ended == 1)

            asyncio.run(run())

        await asyncio.to_thread(work)
        assert isinstance(await rig.result(execution_id), ResultCompleted)
        history = await backend.lease.history(LeaseHistory(execution_id=execution_id))
        assert [event.name for event in history.events if event.name == "expired"] == []
        stop.set()
        await serving


async def test_an_operators_cancel_reaches_a_worker_over_http() -> None:
    """Cancelling reaches a handler on the far side of a server within a renewal interval."""
    async with opened() as (rig, backend), running(backend, engine=False) as url:
        async with working(url, lease_ttl="600ms") as worker:
            execution_id = await rig.submit(waits)
            await until(lambda: len(seen) == 1)
            await backend.execution.cancel(
                ExecutionCancel(execution_id=execution_id, source=CancelSource.OPERATOR_OVERRIDE)
            )
            await until(lambda: len(seen) == 2)
            await until(lambda: worker.running == 0)
        assert seen[1] == "cancelled"
        assert isinstance(await rig.result(execution_id), ResultCancelled)


async def test_a_worker_outlives_its_server() -> None:
    """While the server is away the worker waits; when it is back, work goes on without a restart."""
    async with opened() as (rig, backend):
        async with running(backend, engine=False) as url:
            port = int(url.rpartition(":")[2])
            async with cutting(port) as proxy:
                worker = worker_of(proxy.url, claim_wait_ms=200)
                await worker.start()
                assert isinstance(await rig.run(streams, to=1), ResultCompleted)
                public = proxy.port
        execution_id = await rig.submit(streams, to=2)
        async with running(backend, engine=False) as url, cutting(int(url.rpartition(":")[2]), public):
            assert isinstance(await rig.result(execution_id), ResultCompleted)
            await worker.stop()
            await worker.stores.close()


async def test_a_client_of_one_loop_needs_a_factory() -> None:
    """A worker over an HTTP client says that the renewal thread needs one of its own."""
    stores = HttpStores("http://127.0.0.1:9")
    with pytest.raises(Misuse, match="stores_factory="):
        await Worker(stores, app).start()
    await stores.close()


async def test_a_result_too_large_for_a_request_fails_for_good() -> None:
    """A result that fits the store but not one request is a permanent failure with a message, not a loop."""
    async with opened() as (rig, backend), running(backend, engine=False) as url, working(url):
        ended = await rig.run(returns_much)
    assert isinstance(ended, ResultFailed)
    assert ended.category == "result_encode_error"


async def test_a_worker_that_waits_for_its_server_can_be_stopped() -> None:
    """While nothing answers where its server should be, a worker waits; asked to stop, it stops."""

    async def another() -> Stores:
        return HttpStores("http://127.0.0.1:1")

    stores = await another()
    worker = Worker(stores, app, concurrency=1, stores_factory=another)
    running_worker = asyncio.create_task(worker.run())
    await asyncio.sleep(0.2)  # sleeps: it tries in vain, and says so to nobody here
    assert not running_worker.done()
    worker.request_stop()
    await asyncio.wait_for(running_worker, 20)
    with pytest.raises(Misuse, match="started before"):
        await worker.start()
    await worker.stop()
    await stores.close()
