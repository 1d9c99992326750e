"""Submitting, watching and fetching, over a store and over a server alike."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import pytest

import flowfabric
from flowfabric import (
    App,
    Client,
    ExecutionPolicy,
    Misuse,
    ResultTimeout,
    RetryPolicy,
    SubmitManyFailed,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
)
from flowfabric.contract.errors import (
    ExecutionNotActive,
    ExecutionNotFound,
    ExecutionNotTerminal,
    IdempotencyConflict,
    InvalidInput,
    InvalidTagKey,
)
from flowfabric.contract.execution import ExecutionReadContext
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import FailureClass, PublicState
from tests.client.working import claim, claim_one, complete, fail, write

UNKNOWN_ID = "{fp:7}:00000000-0000-4000-8000-000000000000"


@dataclass
class Report:
    """What `Census` returns."""

    lines: int


class Census:
    """A typed task, as small as one can be."""

    name = "census"
    defaults = None

    def encode_arguments(self, arguments: Mapping[str, Any], /) -> Payload:
        return Payload(msgspec.json.encode({"path": arguments["path"]}))

    def decode_result(self, result: Payload, /) -> Report:
        return msgspec.json.decode(result.data, type=Report)


async def test_a_task_by_name_goes_as_a_json_object(client: Client) -> None:
    """Keyword arguments of a task known by name are its input, one JSON object."""
    run = await client.submit("count", path="a.py", limit=3, tags={"app.customer": "acme"}, priority=7)
    read = await client.stores.execution.read_context(ExecutionReadContext(execution_id=run.id))
    assert msgspec.json.decode(read.input.data) == {"path": "a.py", "limit": 3}
    described = await run.describe()
    assert (described.kind, described.priority, described.tags) == ("count", 7, {"app.customer": "acme"})
    assert await run.state() is PublicState.WAITING
    assert not run.duplicate


async def test_arguments_named_like_options_go_in_arguments(client: Client) -> None:
    """An argument whose name is an option of submit is passed in `arguments`; giving one twice is refused."""
    run = await client.submit("count", arguments={"lane": "left"}, path="b")
    read = await client.stores.execution.read_context(ExecutionReadContext(execution_id=run.id))
    assert msgspec.json.decode(read.input.data) == {"lane": "left", "path": "b"}
    with pytest.raises(Misuse, match=r"given twice.*path"):
        await client.submit("count", arguments={"path": "a"}, path="b")
    with pytest.raises(Misuse, match="JSON"):
        await client.submit("count", path=object())


async def test_the_result_is_what_the_task_returned(client: Client) -> None:
    """A run of a typed task decodes its result by the task; by name it is plain JSON, or the type asked for."""
    run = await client.submit(Census(), path="a.py")
    lease = await claim_one(client.stores)
    await complete(client.stores, lease, {"lines": 12})
    report: Report = await run.result(timeout=10)
    assert report == Report(12)
    again = client.run(run.id)
    assert await again.result() == {"lines": 12}
    assert await again.result(type=Report) == Report(12)
    with pytest.raises(Misuse, match="does not decode"):
        await again.result(type=int)


async def test_a_waiting_result_arrives_with_the_end(client: Client) -> None:
    """Who waits for a result is answered when the run completes; no result is None."""
    run = await client.submit("count")
    waiting = asyncio.create_task(run.result(timeout=30))
    await complete(client.stores, await claim_one(client.stores))
    assert await waiting is None


async def test_a_result_that_takes_too_long_is_a_timeout(client: Client) -> None:
    """Waiting longer than the timeout raises a TimeoutError, and the run goes on."""
    run = await client.submit("count")
    with pytest.raises(TimeoutError) as caught:
        await run.result(timeout="50ms")
    assert isinstance(caught.value, ResultTimeout)
    assert caught.value.details["execution_id"] == run.id
    assert await run.state() is PublicState.WAITING


async def test_a_failed_task_raises_its_failure(client: Client) -> None:
    """The failure's class, category and message reach whoever asks for the result."""
    run = await client.submit("count")
    await fail(
        client.stores, await claim_one(client.stores), FailureClass.PERMANENT, "bad_input", "no such file"
    )
    with pytest.raises(TaskFailed, match="no such file") as caught:
        await run.result()
    assert caught.value.failure_class is FailureClass.PERMANENT
    assert caught.value.category == "bad_input"
    assert caught.value.execution_id == run.id
    assert await run.state() is PublicState.FAILED


async def test_a_cancelled_task_says_who_and_why(client: Client) -> None:
    """Cancelling works while a worker holds the run, twice is once, and the result says so."""
    run = await client.submit("count")
    await claim_one(client.stores)
    assert not (await run.cancel("not needed", actor="ann")).already
    assert (await run.cancel()).already
    with pytest.raises(TaskCancelled, match="not needed") as caught:
        await run.result()
    assert caught.value.details["reason"] == "not needed"


async def test_an_ended_run_cannot_be_cancelled(client: Client) -> None:
    """Cancelling what completed is refused."""
    run = await client.submit("count")
    await complete(client.stores, await claim_one(client.stores))
    with pytest.raises(ExecutionNotActive):
        await run.cancel()


async def test_the_same_key_is_the_same_run(client: Client) -> None:
    """A second submit under a key finds the first run; other content under the key is refused."""
    first = await client.submit("count", path="a", idempotency_key="a@1")
    again = await client.submit("count", path="a", idempotency_key="a@1")
    assert again.id == first.id
    assert again.duplicate and not first.duplicate
    with pytest.raises(IdempotencyConflict):
        await client.submit("count", path="b", idempotency_key="a@1")


async def test_delays_count_from_the_stores_clock(client: Client) -> None:
    """A delayed run waits; its instant is the delay after the store's present."""
    run = await client.submit("count", delay=timedelta(hours=1), deadline="2h")
    described = await run.describe()
    assert described.public_state is PublicState.DELAYED
    assert described.not_before_ms is not None and described.deadline_at_ms is not None
    assert abs(described.not_before_ms - described.created_at_ms - 3_600_000) < 5_000
    assert abs(described.deadline_at_ms - described.created_at_ms - 7_200_000) < 5_000


async def test_a_run_past_its_deadline_has_expired(client: Client) -> None:
    """A deadline that has passed ends the run as expired, and its result says so."""
    run = await client.submit("count", deadline=0)
    from flowfabric.contract.execution import ExecutionExpire
    from flowfabric.contract.states import ExpireReason

    await client.stores.execution.expire(
        ExecutionExpire(execution_id=run.id, reason=ExpireReason.EXECUTION_DEADLINE)
    )
    with pytest.raises(TaskExpired):
        await run.result()


async def test_a_stream_is_read_live_to_its_end(client: Client) -> None:
    """Frames arrive as they are written, decoded, and the stream ends with the run."""
    run = await client.submit("count")
    lease = await claim_one(client.stores)
    await write(client.stores, lease, {"n": 1})
    values: list[Any] = []
    cursors: list[str] = []
    async for frame in run.stream():
        values.append(frame.value)
        cursors.append(frame.cursor)
        if len(values) == 1:
            await write(client.stores, lease, {"n": 2}, {"n": 3}, first=2)
        elif len(values) == 3:
            await complete(client.stores, lease)
    assert values == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert [frame.value async for frame in run.stream(start=cursors[0])] == values[1:]
    assert [frame.value async for frame in run.stream(follow=False)] == values


async def test_a_stream_that_is_not_followed_ends_at_once(client: Client) -> None:
    """Without following, the frames there are now are all."""
    run = await client.submit("count")
    assert [frame async for frame in run.stream(follow=False)] == []
    await write(client.stores, await claim_one(client.stores), 1, 2)
    assert [frame.value async for frame in run.stream(follow=False)] == [1, 2]
    marked = [frame.frame_type async for frame in run.stream(follow=False, markers=True)]
    assert marked == ["attempt_started", "event", "event"]


async def test_a_stream_goes_on_over_attempts(client: Client) -> None:
    """The stream of a run holds the frames of the failed attempt and of the one that followed."""
    policy = ExecutionPolicy(
        retry_policy=RetryPolicy(max_retries=1, backoff=flowfabric.FixedBackoff(delay_ms=0))
    )
    run = await client.submit("count", policy=policy)
    first = await claim_one(client.stores)
    await write(client.stores, first, "first")
    await fail(client.stores, first, FailureClass.TRANSIENT, "flaky", "again")
    from flowfabric.contract.execution import ExecutionPromote

    await client.stores.execution.promote(ExecutionPromote(execution_id=run.id))
    second = await claim_one(client.stores)
    await write(client.stores, second, "second")
    await complete(client.stores, second)
    assert [(frame.attempt_index, frame.value) async for frame in run.stream()] == [
        (0, "first"),
        (1, "second"),
    ]
    assert [attempt.attempt_index for attempt in await run.attempts()] == [0, 1]


async def test_a_finished_run_can_be_replayed(client: Client) -> None:
    """Replaying runs the same id again; a run that has not ended is refused."""
    run = await client.submit("count")
    with pytest.raises(ExecutionNotTerminal):
        await run.replay()
    await complete(client.stores, await claim_one(client.stores), 1)
    assert (await run.replay(actor="ann")).replay_count == 1
    await complete(client.stores, await claim_one(client.stores), 2)
    assert await run.result() == 2


async def test_many_are_submitted_in_order(client: Client) -> None:
    """A batch larger than a chunk becomes runs in the order of its items, and progress is reported."""
    reports: list[tuple[int, int]] = []
    runs = await client.submit_many(
        "count",
        [{"n": n} for n in range(25)],
        keys=[f"k{n}" for n in range(25)],
        chunk=10,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert reports == [(10, 25), (20, 25), (25, 25)]
    for n in (0, 9, 10, 24):
        read = await client.stores.execution.read_context(ExecutionReadContext(execution_id=runs[n].id))
        assert msgspec.json.decode(read.input.data) == {"n": n}
    again = await client.submit_many(
        "count", [{"n": n} for n in range(25)], keys=[f"k{n}" for n in range(25)]
    )
    assert [run.id for run in again] == [run.id for run in runs]
    assert all(run.duplicate for run in again)
    assert await client.submit_many("count", []) == []


async def test_refused_items_do_not_take_the_others_along(client: Client) -> None:
    """Items that are refused are raised as a group with their index; the others are submitted and in its `runs`."""
    await client.submit("count", n=0, idempotency_key="k1")
    with pytest.raises(SubmitManyFailed, match="1 of 3") as caught:
        await client.submit_many("count", [{"n": 0}, {"n": 1}, {"n": 2}], keys=["k0", "k1", "k2"])
    (refused,) = caught.value.exceptions
    assert isinstance(refused, IdempotencyConflict)
    assert refused.details["index"] == 1
    runs = caught.value.runs
    assert runs[1] is None
    assert await runs[2].state() is PublicState.WAITING
    matched, rest = caught.value.split(IdempotencyConflict)
    assert isinstance(matched, SubmitManyFailed) and matched.runs is runs and rest is None
    with pytest.raises(Misuse, match="2 keys"):
        await client.submit_many("count", [{}], keys=["a", "b"])
    with pytest.raises(TypeError, match="unknown options: prioriti"):
        await client.submit_many("count", [{}], prioriti=1)  # type: ignore[call-arg]


async def test_runs_are_listed_newest_first(client: Client) -> None:
    """Listing goes through all pages and filters by lane, kind, state and tag."""
    await client.submit_many("one", [{"n": n} for n in range(3)], lane="left", tags={"app.part": "a"})
    await client.submit("two", lane="left")
    await client.submit("two", lane="right")
    assert len([info async for info in client.list(lane="left")]) == 4
    assert [info.kind async for info in client.list(lane="left", kind="two")] == ["two"]
    assert len([info async for info in client.list(tag="app.part=a", state="waiting")]) == 3
    assert [info async for info in client.list(namespace="other")] == []
    with pytest.raises(Misuse, match="no state"):
        [info async for info in client.list(state="tired")]


async def test_refusals_have_their_own_classes(client: Client) -> None:
    """What the domain refuses is raised as its class, over a server as from a store."""
    with pytest.raises(ExecutionNotFound):
        await client.run(UNKNOWN_ID).describe()
    with pytest.raises(ExecutionNotFound):
        await client.run(UNKNOWN_ID).result(timeout=1)
    with pytest.raises(ExecutionNotFound):
        [frame async for frame in client.run(UNKNOWN_ID).stream()]
    with pytest.raises(InvalidTagKey):
        await client.submit("count", tags={"Bad": "x"})
    with pytest.raises(InvalidInput):
        client.run("abc")
    with pytest.raises(InvalidInput):
        await client.submit("not a name")


async def test_claims_through_the_client_see_what_was_submitted(client: Client) -> None:
    """Work submitted in one lane is not seen in another."""
    await client.submit("count", lane="left")
    assert await claim(client.stores, "right") == ()
    assert len(await claim(client.stores, "left")) == 1


async def test_ids_can_be_chosen(client: Client) -> None:
    """An id minted by the caller makes repeating a submit safe without a key."""
    partitions = (await client.stores.capabilities()).partitions
    from flowfabric.contract.ids import mint_execution_id

    chosen = mint_execution_id(partitions)
    assert (await client.submit("count", execution_id=chosen)).id == chosen
    assert (await client.submit("count", execution_id=chosen)).duplicate


TRACED = """
import asyncio, flowfabric
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())

async def main():
    async with flowfabric.connect("sqlite:///:memory:") as ff:
        with trace.get_tracer("test").start_as_current_span("order") as span:
            run = await ff.submit("count")
            many = await ff.submit_many("count", [{}])
        for one in (run, *many):
            found = (await one.describe()).traceparent
            assert found.split("-")[1] == f"{span.get_span_context().trace_id:032x}", found
        assert (await (await ff.submit("count")).describe()).traceparent is None

asyncio.run(main())
"""


def test_a_submit_carries_the_current_trace() -> None:
    """A run submitted inside an OpenTelemetry span belongs to its trace; outside of one it has none."""
    subprocess.run([sys.executable, "-c", TRACED], check=True, timeout=30)


async def test_a_task_object_brings_its_defaults(client: Client) -> None:
    """Submitting a task object applies its own lane, retries and priority even before any worker has published them."""
    app = App("defaults")

    @app.task(name="brings", lane="own", retries=7, timeout="9s", priority=3)
    async def brings() -> None:
        return None

    run = await client.submit(brings, priority=5)
    described = await run.describe()
    assert (described.lane, described.priority, described.kind_known) == ("own", 5, False)
    assert described.policy.retry_policy is not None
    assert described.policy.retry_policy.max_retries == 7
    assert described.policy.timeout_policy is not None
    assert described.policy.timeout_policy.attempt_timeout_ms == 9_000
