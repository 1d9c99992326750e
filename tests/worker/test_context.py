"""What handlers can ask and say through their context, async and blocking."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import Misuse
from flowfabric.contract.execution import ResultCompleted, ResultFailed
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy
from flowfabric.contract.states import FailureClass, PublicState
from flowfabric.contract.stream import StreamReadSummary, Summary
from flowfabric.testing import embedded
from flowfabric.worker import App, Context, SyncContext, Worker
from tests.worker.rig import Rig, until

app = App("context")
stray: list[Context] = []


def about(ctx: Context | SyncContext) -> dict[str, Any]:
    left = ctx.time_left
    return {
        "execution_id": ctx.execution_id,
        "namespace": ctx.namespace,
        "kind": ctx.kind,
        "lane": ctx.lane,
        "tags": ctx.tags,
        "attempt": [ctx.attempt, ctx.attempt_index, ctx.attempt_type, ctx.is_resumed],
        "retries": [ctx.retry_count, ctx.max_retries],
        "key": ctx.idempotency_key,
        "token": ctx.fencing_token,
        "trace": ctx.trace_id,
        "left": left is not None and timedelta(0) < left <= timedelta(minutes=1),
        "ends": [ctx.attempt_timeout_at_ms is not None, ctx.deadline_at_ms is not None],
        "cancelled": [ctx.is_cancelled, ctx.cancel_reason],
        "health": [ctx.is_lease_healthy, ctx.consecutive_renewal_failures],
    }


@app.task(lane="slow", retries=2, timeout="1m")
async def tell(ctx: Context) -> dict[str, Any]:
    ctx.raise_if_cancelled()
    return about(ctx)


@app.task(lane="slow", retries=2, timeout="1m")
def tell_in_thread(ctx: SyncContext) -> dict[str, Any]:
    ctx.raise_if_cancelled()
    return about(ctx)


@app.task
async def report(ctx: Context) -> None:
    await ctx.progress(percent=40)
    await ctx.progress(message="half way")


@app.task
def report_in_thread(ctx: SyncContext) -> None:
    ctx.progress(percent=40)
    ctx.progress(message="half way")


@app.task
async def misreports(ctx: Context) -> None:
    await ctx.progress(percent=101)


@app.task
async def waits_a_day(ctx: Context) -> list[Any]:
    if not ctx.is_resumed:
        await ctx.delay("24h")
    return [ctx.attempt, ctx.is_resumed]


@app.task
def waits_in_thread(ctx: SyncContext) -> list[Any]:
    if not ctx.is_resumed:
        ctx.delay(timedelta(days=1))
    return [ctx.attempt, ctx.is_resumed]


@app.task
async def waits_until(ctx: Context, at: datetime) -> bool:
    if not ctx.is_resumed:
        await ctx.delay(until=at)
    return ctx.is_resumed


@app.task
async def waits_for_children(ctx: Context) -> bool:
    if not ctx.is_resumed:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.wait_children())
    return ctx.is_resumed


@app.task
async def swallows(ctx: Context) -> str:
    with contextlib.suppress(BaseException):
        await ctx.delay("1h")
    return "went on"


@app.task
async def summarises(ctx: Context) -> None:
    await ctx.stream({"files": 1, "open": True}, type="sum", mode="summary")
    await ctx.stream({"files": 2, "open": None}, type="sum", mode="summary")


@app.task
async def misuses(ctx: Context, how: str) -> None:
    match how:
        case "type":
            await ctx.stream(1, type="")
        case "large":
            await ctx.stream(b"x" * 65_537)
        case "ttl":
            await ctx.stream(1, ttl=5)
        case "patch":
            await ctx.stream([1], mode="summary")
        case "deep":
            deep: dict[str, Any] = {}
            for _ in range(16):
                deep = {"d": deep}
            await ctx.stream(deep, mode="summary")
        case "value":
            await ctx.stream(object())
        case "delay":
            await ctx.delay()
        case _:
            await ctx.delay(until=datetime(2030, 1, 1))


@app.task
async def keeps_context(ctx: Context) -> None:
    stray.append(ctx)


@pytest.mark.parametrize("task", [tell, tell_in_thread])
async def test_a_handler_knows_what_it_runs_for(backend: Backend, rig: Rig, task: Any) -> None:
    """The context says which execution, attempt and lease this is, and how long it may take."""
    traceparent = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    async with Worker(backend, app):
        execution_id = await rig.submit(
            task, tags={"app.customer": "acme"}, idempotency_key="key-1", traceparent=traceparent
        )
        ended = await rig.result(execution_id)
    assert isinstance(ended, ResultCompleted)
    assert task.decode_result(ended.result) == {
        "execution_id": execution_id,
        "namespace": "default",
        "kind": task.name,
        "lane": "slow",
        "tags": {"app.customer": "acme"},
        "attempt": [0, 0, "initial", False],
        "retries": [0, 2],
        "key": "key-1",
        "token": 1,
        "trace": "ab" * 16,
        "left": True,
        "ends": [True, False],
        "cancelled": [False, None],
        "health": [True, 0],
    }


@pytest.mark.parametrize("task", [report, report_in_thread])
async def test_progress_is_stored(backend: Backend, rig: Rig, task: Any) -> None:
    """Progress is there for others to see; what is not given keeps its value."""
    async with Worker(backend, app):
        execution_id = await rig.submit(task)
        await rig.result(execution_id)
        progress = (await rig.describe(execution_id)).progress
    assert progress is not None
    assert (progress.percent, progress.message) == (40, "half way")


async def test_malformed_progress_is_the_handlers_error(backend: Backend, rig: Rig) -> None:
    """A percentage out of range raises in the handler."""
    async with Worker(backend, app):
        ended = await rig.run(misreports)
    assert isinstance(ended, ResultFailed)
    assert "percent is 0 to 100" in ended.message


@pytest.mark.parametrize("task", [waits_a_day, waits_in_thread])
async def test_a_delay_gives_the_worker_back_and_the_attempt_continues(task: Any) -> None:
    """After ctx.delay the worker is free; when the time has come the same attempt runs from its top, resumed."""
    async with embedded() as ff:
        rig = Rig(ff.backend)
        async with Worker(ff.backend, app) as worker:
            execution_id = await rig.submit(task)
            await rig.until_state(execution_id, PublicState.DELAYED)
            await until(lambda: worker.running == 0)
            await ff.advance(hours=23)
            assert (await rig.describe(execution_id)).public_state is PublicState.DELAYED
            await ff.advance(hours=1, seconds=1)
            ended = await rig.result(execution_id)
    assert isinstance(ended, ResultCompleted)
    assert task.decode_result(ended.result) == [0, True]


async def test_a_delay_until_an_instant() -> None:
    """ctx.delay takes a point in time; one in the past means now."""
    async with embedded() as ff:
        rig = Rig(ff.backend)
        async with Worker(ff.backend, app):
            ended = await rig.run(waits_until, at=datetime(2001, 1, 1, tzinfo=UTC))
    assert isinstance(ended, ResultCompleted)
    assert ended.result == Payload(b"true")


async def test_waiting_for_children_that_do_not_exist_resumes_at_once(backend: Backend, rig: Rig) -> None:
    """ctx.wait_children ends the run, also from inside a task group; with nothing to wait for it resumes."""
    async with Worker(backend, app):
        ended = await rig.run(waits_for_children)
    assert isinstance(ended, ResultCompleted)
    assert ended.result == Payload(b"true")


async def test_a_swallowed_pause_is_reported(backend: Backend, rig: Rig) -> None:
    """A handler that catches what ctx.delay raises and goes on fails for good, with an explanation."""
    async with Worker(backend, app):
        ended = await rig.run(swallows)
    assert isinstance(ended, ResultFailed)
    assert (ended.failure_class, ended.category) == (FailureClass.PERMANENT, "pause_swallowed")
    assert "ctx.delay()" in ended.message


async def test_summary_frames_add_up_to_a_document(backend: Backend, rig: Rig) -> None:
    """Summary frames merge into the attempt's summary document."""
    async with Worker(backend, app):
        execution_id = await rig.submit(summarises)
        await rig.result(execution_id)
    summary = await backend.stream.read_summary(StreamReadSummary(execution_id=execution_id, attempt_index=0))
    assert isinstance(summary, Summary)
    assert bytes(summary.document) == b'{"files":2}'
    assert [frame.mode for frame in await rig.frames(execution_id)] == ["summary", "summary"]


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("type", "invalid_frame_type"),
        ("large", "retention_limit_exceeded"),
        ("ttl", "best_effort"),
        ("patch", "merge patch"),
        ("deep", "at most 16 levels"),
        ("value", "cannot be streamed"),
        ("delay", "one of a duration or until"),
        ("naive", "no time zone"),
    ],
)
async def test_misuse_raises_where_it_happens(backend: Backend, rig: Rig, how: str, part: str) -> None:
    """A malformed frame or delay raises in the handler, at the call."""
    async with Worker(backend, app):
        ended = await rig.run(misuses, how=how)
    assert isinstance(ended, ResultFailed)
    assert part in ended.message


async def test_a_context_is_good_for_one_run(backend: Backend, rig: Rig) -> None:
    """After the attempt has ended its context refuses to act."""
    async with Worker(backend, app):
        await rig.run(keeps_context)
        with pytest.raises(Misuse, match="has ended"):
            await stray.pop().stream(1)


async def test_policies_given_at_create_win(backend: Backend, rig: Rig) -> None:
    """The handler sees the effective policy, in which what the creator said comes first."""
    from flowfabric.contract.policies import RetryPolicy

    async with Worker(backend, app):
        ended = await rig.run(tell, policy=ExecutionPolicy(retry_policy=RetryPolicy(max_retries=7)))
    assert isinstance(ended, ResultCompleted)
    assert tell.decode_result(ended.result)["retries"] == [0, 7]
