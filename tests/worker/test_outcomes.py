"""However a handler ends, the store learns it: results, failures by class and category, retries."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import pytest

from flowfabric.contract.attempt import AttemptList
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ResultCompleted, ResultFailed
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import FailureClass
from flowfabric.worker import App, Context, PermanentError, RetryableError, SyncContext, Worker
from tests.worker.rig import Rig

app = App("outcomes")


@app.task
async def double(n: int) -> int:
    return 2 * n


@app.task
def double_in_thread(n: int) -> int:
    return 2 * n


@app.task
async def echo(data: bytes) -> bytes:
    return data


@app.task(retries=1, backoff="1ms")
async def fails(how: str) -> Any:
    return end(how)


@app.task(retries=1, backoff="1ms")
def fails_in_thread(how: str) -> Any:
    return end(how)


@app.task(retries=1, backoff="1ms", retry_on={"special"})
async def listed() -> None:
    raise PermanentError("no", category="special")


@app.task(retries=5, backoff="1ms")
async def third_time(ctx: Context) -> list[int]:
    if ctx.attempt < 2:
        raise ConnectionError("refused")
    return [ctx.attempt, ctx.retry_count, ctx.max_retries]


@app.task(timeout="50ms")
async def hangs() -> None:
    await asyncio.Event().wait()


@app.task(timeout="50ms")
def hangs_in_thread(ctx: SyncContext) -> None:
    while not ctx.is_cancelled:
        time.sleep(0.01)  # sleeps: a plain function that waits to be cancelled has nothing to await


def end(how: str) -> Any:
    match how:
        case "value":
            try:
                raise KeyError("id")
            except KeyError as error:
                raise ValueError("bad row") from error
        case "permanent":
            raise PermanentError("cannot work")
        case "named":
            raise PermanentError("cannot work", category="no_such_file")
        case "retryable":
            raise RetryableError("not now", category="rate_limit")
        case "exit":
            sys.exit(3)
        case "result":
            return object()
        case "large":
            return "x" * 2_000_000
        case "cancelled":
            raise asyncio.CancelledError
        case _:
            raise ValueError("\x00\ud800")


@pytest.mark.parametrize("task", [double, double_in_thread])
async def test_async_and_plain_functions_run(backend: Backend, rig: Rig, task: Any) -> None:
    """Both kinds of functions are given typed arguments, and their results are stored."""
    async with Worker(backend, app):
        ended = await rig.run(task, n=21)
    assert isinstance(ended, ResultCompleted)
    assert task.decode_result(ended.result) == 42


async def test_bytes_go_in_and_out_as_they_are(backend: Backend, rig: Rig) -> None:
    """Bytes in and out are stored as bytes, not as JSON."""
    async with Worker(backend, app):
        ended = await rig.run(echo, data=b"\x00\xff")
    assert isinstance(ended, ResultCompleted)
    assert ended.result == Payload(b"\x00\xff", "application/octet-stream")


@pytest.mark.parametrize("task", [fails, fails_in_thread], ids=["async", "thread"])
@pytest.mark.parametrize(
    ("how", "failure_class", "category", "message", "attempts"),
    [
        ("value", FailureClass.TRANSIENT, "handler_error", "ValueError: bad row: KeyError: 'id'", 2),
        ("permanent", FailureClass.PERMANENT, "permanent_error", "cannot work", 1),
        ("named", FailureClass.PERMANENT, "no_such_file", "cannot work", 1),
        ("retryable", FailureClass.TRANSIENT, "rate_limit", "not now", 2),
        ("exit", FailureClass.INFRA_CRASH, "handler_crash", "SystemExit: 3", 2),
        ("cancelled", FailureClass.TRANSIENT, "handler_error", "CancelledError", 2),
        ("result", FailureClass.PERMANENT, "result_encode_error", "object has no JSON form", 1),
        ("large", FailureClass.PERMANENT, "result_encode_error", "2000002 bytes", 1),
        ("odd", FailureClass.TRANSIENT, "handler_error", "ValueError: \\0\\ud800", 2),
    ],
)
async def test_each_way_to_fail_has_its_class_and_category(
    backend: Backend,
    rig: Rig,
    task: Any,
    how: str,
    failure_class: FailureClass,
    category: str,
    message: str,
    attempts: int,
) -> None:
    """The class decides about the retry; the category and the chain of causes say what happened."""
    async with Worker(backend, app):
        execution_id = await rig.submit(task, how=how)
        ended = await rig.result(execution_id)
    assert isinstance(ended, ResultFailed)
    assert (ended.failure_class, ended.category) == (failure_class, category)
    assert message in ended.message
    made = await backend.attempt.list(AttemptList(execution_id=execution_id))
    assert len(made.attempts) == attempts


@pytest.mark.parametrize("data", [b'{"n":"x"}', b"{}", b'{"n":1,"m":2}', b"[]", b"7"])
async def test_input_that_does_not_fit_fails_for_good(backend: Backend, rig: Rig, data: bytes) -> None:
    """Input that the signature refuses fails the execution at once, without a retry, with the decode error."""
    async with Worker(backend, app):
        ended = await rig.run(double, raw=data)
    assert isinstance(ended, ResultFailed)
    assert (ended.failure_class, ended.category) == (FailureClass.PERMANENT, "payload_decode_error")
    assert ended.message.startswith("input: ")


async def test_a_listed_category_is_retried(backend: Backend, rig: Rig) -> None:
    """A category listed in retry_on is retried although the failure is permanent."""
    async with Worker(backend, app):
        ended = await rig.run(listed)
    assert isinstance(ended, ResultFailed)
    assert ended.attempt_index == 1


async def test_retries_lead_to_success(backend: Backend, rig: Rig) -> None:
    """A handler that fails twice and then works completes, and knows which attempt it is."""
    async with Worker(backend, app):
        ended = await rig.run(third_time)
    assert isinstance(ended, ResultCompleted)
    assert third_time.decode_result(ended.result) == [2, 2, 5]


@pytest.mark.parametrize("task", [hangs, hangs_in_thread])
@pytest.mark.parametrize("timers", [True, False])
async def test_an_attempt_that_takes_too_long_fails_as_timed_out(task: Any, timers: bool) -> None:
    """The worker itself stops an attempt at its timeout; the engine's timers are not needed for it."""
    from tests.worker.rig import opened

    async with opened(engine=timers) as (rig, backend), Worker(backend, app):
        ended = await rig.run(task)
    assert isinstance(ended, ResultFailed)
    assert ended.failure_class is FailureClass.TIMEOUT


async def test_a_kind_nobody_here_handles_is_left_alone(backend: Backend, rig: Rig) -> None:
    """A worker claims only kinds it has a task for; others keep waiting with their attempts untouched."""
    other = await rig.submit("somebody_elses")
    async with Worker(backend, app):
        await rig.run(double, n=1)
        snapshot = await rig.describe(other)
    assert snapshot.total_attempt_count == 0
    assert snapshot.public_state == "waiting"


async def test_defaults_are_published(backend: Backend, rig: Rig) -> None:
    """A worker publishes its tasks' options, and later creates of the kind take them."""
    async with Worker(backend, app):
        snapshot = await rig.describe(await rig.submit("third_time"))
    assert snapshot.kind_known
    assert snapshot.policy.retry_policy is not None
    assert snapshot.policy.retry_policy.max_retries == 5
