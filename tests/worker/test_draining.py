"""A worker that stops lets handlers finish, or hands their executions back, and loses none."""

from __future__ import annotations

import asyncio
import time

import pytest

from flowfabric.contract.attempt import AttemptList
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ResultCompleted
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.states import PublicState
from flowfabric.worker import App, Context, SyncContext, Worker
from tests.worker.rig import Rig, until

app = App("draining")
started: list[int] = []
gate: list[asyncio.Event] = []


@pytest.fixture(autouse=True)
async def _clean() -> None:
    started.clear()
    gate[:] = [asyncio.Event()]


@app.task
async def finishes_when_told(ctx: Context) -> str:
    started.append(ctx.attempt)
    await gate[0].wait()
    return "finished"


@app.task
async def resumable(ctx: Context) -> str:
    started.append(ctx.attempt)
    if ctx.attempt == 0:
        await asyncio.Event().wait()
    return f"attempt {ctx.attempt}"


@app.task
async def finishes_when_cancelled(ctx: Context) -> str:
    started.append(ctx.attempt)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return f"wrapped up: {ctx.cancel_reason}"
    return "never"


@app.task
def watches(ctx: SyncContext) -> str:
    started.append(ctx.attempt)
    while ctx.attempt == 0:
        ctx.raise_if_cancelled()
        time.sleep(0.005)  # sleeps: a plain function that waits to be cancelled has nothing to await
    return f"attempt {ctx.attempt}"


@app.task
async def quick() -> None:
    await asyncio.sleep(0.001)


async def test_running_handlers_may_finish(backend: Backend, rig: Rig) -> None:
    """Within the drain timeout handlers run to their end and report; nothing new is claimed meanwhile."""
    worker = Worker(backend, app)
    await worker.start()
    first = await rig.submit(finishes_when_told)
    await until(lambda: started == [0])
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0)
    second = await rig.submit(finishes_when_told)
    gate[0].set()
    await stopping
    assert isinstance(await rig.result(first), ResultCompleted)
    assert (await rig.describe(second)).total_attempt_count == 0


@pytest.mark.parametrize("task", [resumable, watches])
async def test_handlers_that_take_too_long_are_handed_back(backend: Backend, rig: Rig, task: object) -> None:
    """At the drain timeout handlers are cancelled and their executions handed back: another worker goes on at once."""
    assert task in (resumable, watches)
    chosen = resumable if task is resumable else watches
    first = Worker(backend, app)
    await first.start()
    execution_id = await rig.submit(chosen)
    await until(lambda: started == [0])
    await first.stop(drain_timeout=0)
    assert (await rig.describe(execution_id)).current_lease is None
    async with Worker(backend, app):
        ended = await rig.result(execution_id)
    assert isinstance(ended, ResultCompleted)
    assert chosen.decode_result(ended.result) == "attempt 1"
    attempts = (await backend.attempt.list(AttemptList(execution_id=execution_id))).attempts
    assert [attempt.attempt_type for attempt in attempts] == ["initial", "reclaim"]


async def test_a_handler_may_use_its_cancellation_to_finish(backend: Backend, rig: Rig) -> None:
    """A handler that returns a value when it is cancelled by a drain has finished: its result counts."""
    worker = Worker(backend, app)
    await worker.start()
    execution_id = await rig.submit(finishes_when_cancelled)
    await until(lambda: started == [0])
    await worker.stop(drain_timeout=0)
    ended = await rig.result(execution_id)
    assert isinstance(ended, ResultCompleted)
    assert finishes_when_cancelled.decode_result(ended.result) == "wrapped up: draining"


async def test_being_asked_twice_hurries(backend: Backend, rig: Rig) -> None:
    """The first request drains, a second one cancels what still runs at once."""
    worker = Worker(backend, app, drain_timeout="10m")
    running = asyncio.create_task(worker.run())
    execution_id = await rig.submit(resumable)
    await until(lambda: started == [0])
    worker.request_stop()
    await asyncio.sleep(0.02)
    assert not running.done()
    worker.request_stop()
    await asyncio.wait_for(running, 10)
    assert (await rig.describe(execution_id)).public_state is PublicState.ACTIVE
    assert (await rig.describe(execution_id)).current_lease is None


async def test_stopping_an_idle_worker_is_immediate(backend: Backend, rig: Rig) -> None:
    """A worker that waits for work stops at once, and stopping twice is stopping once."""
    worker = Worker(backend, app)
    await worker.start()
    begun = time.monotonic()
    await asyncio.gather(worker.stop(), worker.stop())
    await worker.stop()
    assert time.monotonic() - begun < 2.0


async def test_leases_that_arrive_while_stopping_are_handed_back(backend: Backend, rig: Rig) -> None:
    """Whatever a claim brings while the worker stops is handed back: it runs elsewhere at once, not after the TTL."""
    ids: list[ExecutionId] = []
    for _ in range(25):
        worker = Worker(backend, app, concurrency=4)
        await worker.start()
        ids += await asyncio.gather(*(rig.submit(quick) for _ in range(3)))
        await worker.stop(drain_timeout=0)
    for execution_id in ids:
        assert (await rig.describe(execution_id)).current_lease is None
    async with asyncio.timeout(10), Worker(backend, app):
        for execution_id in ids:
            assert isinstance(await rig.result(execution_id), ResultCompleted)


async def test_cancelling_run_drains_too(backend: Backend, rig: Rig) -> None:
    """Cancelling the task that runs the worker stops it in order."""
    worker = Worker(backend, app)
    running = asyncio.create_task(worker.run())
    execution_id = await rig.submit(finishes_when_told)
    await until(lambda: started == [0])
    running.cancel()
    gate[0].set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert isinstance(await rig.result(execution_id), ResultCompleted)
