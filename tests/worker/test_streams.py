"""Frames arrive once, in order, before the end of the attempt is reported, whatever happens on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ResultCompleted, ResultFailed
from flowfabric.contract.stream import Frame, FramePage, StreamTail
from flowfabric.worker import App, Context, RetryableError, SyncContext, Worker
from tests.worker.rig import Rig, until

app = App("streams")
gate: list[asyncio.Event] = []


@app.task
async def counts(ctx: Context, to: int) -> None:
    for number in range(to):
        await ctx.stream(number)


@app.task
def counts_in_thread(ctx: SyncContext, to: int) -> None:
    for number in range(to):
        ctx.stream(number)


@app.task(stream="durable")
async def counts_durably(ctx: Context, to: int) -> None:
    for number in range(to):
        await ctx.stream(number)


@app.task
async def counts_together(ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(300):
            group.create_task(ctx.stream({"number": number, "padding": "x" * 20_000}))


@app.task
async def pauses(ctx: Context) -> None:
    await ctx.stream("again" if ctx.is_resumed else "first")
    if not ctx.is_resumed:
        await ctx.delay("1ms")


@app.task(retries=1, backoff="1ms")
async def fails_once(ctx: Context) -> None:
    await ctx.stream(ctx.attempt)
    if ctx.attempt == 0:
        raise RetryableError


@app.task
async def shows_live(ctx: Context) -> None:
    await ctx.stream("early")
    await gate[0].wait()


@app.task
async def shows_flushed(ctx: Context) -> None:
    await ctx.stream(b"\x00\x01", type="bytes", content_type="image/png")
    await ctx.stream("text", content_type="text/plain", correlation_id="c-1")
    await ctx.stream({"live": 1}, mode="best_effort", ttl="5s")
    await ctx.flush()


@app.task
async def summarises_too_much(ctx: Context) -> str:
    for number in range(20):
        await ctx.stream({f"key{number}": "x" * 60_000}, mode="summary")
    return "stored"


def values(frames: list[Frame]) -> list[Any]:
    return [msgspec.json.decode(frame.payload.data) for frame in frames]


@pytest.mark.parametrize("task", [counts, counts_in_thread, counts_durably])
async def test_frames_are_in_order_and_complete(backend: Backend, rig: Rig, task: Any) -> None:
    """All frames are stored, in the order written, with sequences from 1, before the attempt ends."""
    async with Worker(backend, app):
        execution_id = await rig.submit(task, to=700)
        assert isinstance(await rig.result(execution_id), ResultCompleted)
        frames = await rig.frames(execution_id)
    assert values(frames) == list(range(700))
    assert [frame.sequence for frame in frames] == list(range(1, 701))


async def test_large_frames_are_bounded_in_memory_and_batches(backend: Backend, rig: Rig) -> None:
    """Many large frames written at once are split into batches within the bounds, and none is lost."""
    async with Worker(backend, app):
        execution_id = await rig.submit(counts_together)
        assert isinstance(await rig.result(execution_id), ResultCompleted)
        frames = await rig.frames(execution_id)
    assert sorted(value["number"] for value in values(frames)) == list(range(300))
    assert [frame.sequence for frame in frames] == list(range(1, 301))


async def test_a_resumed_attempt_continues_its_stream(backend: Backend, rig: Rig) -> None:
    """After a delay the same attempt's frames go on where they ended."""
    async with Worker(backend, app):
        execution_id = await rig.submit(pauses)
        await rig.result(execution_id)
        frames = await rig.frames(execution_id)
    assert values(frames) == ["first", "again"]
    assert [(frame.attempt_index, frame.sequence) for frame in frames] == [(0, 1), (0, 2)]


async def test_each_attempt_has_its_own_sequences(backend: Backend, rig: Rig) -> None:
    """A retry starts a new stream; the frames of the failed attempt stay."""
    async with Worker(backend, app):
        execution_id = await rig.submit(fails_once)
        await rig.result(execution_id)
        frames = await rig.frames(execution_id)
    assert [(frame.attempt_index, frame.sequence) for frame in frames] == [(0, 1), (1, 1)]
    assert values(frames) == [0, 1]


async def test_buffered_frames_are_live(backend: Backend, rig: Rig) -> None:
    """A buffered frame reaches viewers while the handler is still running, without a flush."""
    gate[:] = [asyncio.Event()]
    async with Worker(backend, app):
        execution_id = await rig.submit(shows_live)
        page: FramePage | None = None

        async def seen() -> bool:
            nonlocal page
            page = await backend.stream.tail(
                StreamTail(execution_id=execution_id, attempt_index=0, wait_ms=5_000)
            )
            return bool(page.frames)

        await until(seen)
        gate[0].set()
        await rig.result(execution_id)
    assert page is not None
    assert values([frame for frame in page.frames if frame.sequence]) == ["early"]
    assert page.closed_at_ms is None


async def test_a_refused_frame_fails_the_attempt(backend: Backend, rig: Rig) -> None:
    """A buffered frame that the store refuses later fails the attempt: it is never reported as complete."""
    async with Worker(backend, app):
        ended = await rig.run(summarises_too_much)
    assert isinstance(ended, ResultFailed)
    assert "summary_too_large" in ended.message


async def test_frames_keep_their_type_and_bytes(backend: Backend, rig: Rig) -> None:
    """Bytes, media types, frame types, modes and correlation ids come back as they were written."""
    async with Worker(backend, app):
        execution_id = await rig.submit(shows_flushed)
        assert isinstance(await rig.result(execution_id), ResultCompleted)
        frames = await rig.frames(execution_id)
    assert [(f.frame_type, f.payload.content_type, f.payload.data, f.mode) for f in frames] == [
        ("bytes", "image/png", b"\x00\x01", "durable"),
        ("event", "text/plain", b"text", "durable"),
        ("event", "application/json", b'{"live":1}', "best_effort"),
    ]
    assert frames[1].correlation_id == "c-1"
