"""execution.read_result: how it ended, and waiting for the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import ExecutionNotTerminal, InvalidInput, Unavailable
from flowfabric.contract.execution import ResultCancelled, ResultCompleted, ResultExpired, ResultFailed
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import CancelSource, FailureClass
from tests.conformance import situations
from tests.conformance.world import PATIENCE_S, World, payload


@pytest.mark.parametrize(
    "result",
    [Payload(b"{}"), Payload(b"", "text/plain"), Payload(b"\xff\xfe\x00", "application/octet-stream"), None],
    ids=["json", "empty", "binary", "none"],
)
async def test_a_completed_execution_gives_its_result(world: World, result: Payload | None) -> None:
    """After completion every reader gets the exact bytes and media type, or none if there was no result.

    Acceptance: result-bytes-are-identical
    """
    lease = await world.completed(result)
    replies = [await world.execution.read_result(lease.execution_id) for _ in range(2)]
    assert (
        replies
        == [
            ResultCompleted(
                execution_id=lease.execution_id, completed_at_ms=world.now_ms, attempt_index=0, result=result
            )
        ]
        * 2
    )


@pytest.mark.parametrize("situation", situations.LIVE.values(), ids=situations.LIVE)
async def test_before_the_end_there_is_none(world: World, situation: situations.Situation) -> None:
    """In every situation before the end the answer is execution_not_terminal, which is worth asking again.

    Acceptance: result-before-the-end-is-refused
    """
    execution_id = await situation(world)
    refusal = await world.refused(ExecutionNotTerminal, world.execution.read_result(execution_id))
    assert refusal.retryable


async def test_a_failed_execution_says_why(world: World) -> None:
    """A failure has its class, category and message."""
    lease = await world.leased()
    await world.execution.fail(
        lease, failure_class=FailureClass.PERMANENT, category="decode_error", message="line 1: \u2717"
    )
    assert await world.execution.read_result(lease.execution_id) == ResultFailed(
        execution_id=lease.execution_id,
        completed_at_ms=world.now_ms,
        attempt_index=0,
        failure_class=FailureClass.PERMANENT,
        category="decode_error",
        message="line 1: \u2717",
    )


async def test_a_cancelled_execution_says_by_whom(world: World) -> None:
    """A cancellation has its reason and who asked for it."""
    execution_id = await world.create()
    await world.execution.cancel(
        execution_id, source=CancelSource.OPERATOR_OVERRIDE, reason="wrong input", actor="ops"
    )
    assert await world.execution.read_result(execution_id) == ResultCancelled(
        execution_id=execution_id, completed_at_ms=world.now_ms, reason="wrong input", cancelled_by="ops"
    )


async def test_an_expired_execution_says_what_ran_out(world: World) -> None:
    """An execution that ran out of time names the timer."""
    execution_id = await situations.expired(world)
    assert await world.execution.read_result(execution_id) == ResultExpired(
        execution_id=execution_id, completed_at_ms=world.now_ms, reason="execution_deadline"
    )


async def test_a_replay_takes_the_result_away(world: World) -> None:
    """After a replay there is no result until the new run ends, and then it is the new run's."""
    lease = await world.completed(payload("1"))
    await world.execution.replay(lease.execution_id)
    await world.refused(ExecutionNotTerminal, world.execution.read_result(lease.execution_id))
    await world.execution.complete(await world.claim_one(), result=payload("2"))
    reply = await world.execution.read_result(lease.execution_id)
    assert (reply.result, reply.attempt_index) == (payload("2"), 1)


ENDINGS: dict[str, dict[str, Any]] = {
    "execution.complete": {"result": Payload(b"7")},
    "execution.fail": {"failure_class": FailureClass.PERMANENT},
    "execution.cancel": {},
}


@pytest.mark.parametrize(("name", "fields"), ENDINGS.items(), ids=ENDINGS)
async def test_the_end_wakes_whoever_waits(world: World, name: str, fields: dict[str, Any]) -> None:
    """Every way to end wakes all callers that wait for the result.

    Acceptance: result-wait-is-woken-by-the-end
    """
    lease = await world.leased()
    waiting = [
        asyncio.create_task(world.execution.read_result(lease.execution_id, wait_ms=limits.WAIT_MAX_MS))
        for _ in range(3)
    ]
    await asyncio.sleep(0.02)  # sleeps: so that the readers are really waiting when the end comes
    assert not any(task.done() for task in waiting)
    await world.call(name, lease, **fields)
    replies = await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S)
    assert replies == [await world.execution.read_result(lease.execution_id)] * 3


async def test_a_timer_wakes_whoever_waits(world: World) -> None:
    """A deadline that ends the execution wakes callers that wait for the result."""
    execution_id = await world.create(deadline_at_ms=world.now_ms + 1_000)
    waiting = asyncio.create_task(world.execution.read_result(execution_id, wait_ms=limits.WAIT_MAX_MS))
    await asyncio.sleep(0.02)  # sleeps: so that the reader is really waiting when the end comes
    await world.advance(1_000)
    reply = await asyncio.wait_for(waiting, PATIENCE_S)
    assert type(reply) is ResultExpired


async def test_waiting_in_vain_is_refused(world: World) -> None:
    """A wait that is over before the end is refused as if there had been no wait."""
    execution_id = await world.create()
    await world.refused(ExecutionNotTerminal, world.execution.read_result(execution_id, wait_ms=20))


async def test_a_caller_that_gives_up_leaves_nothing_behind(world: World) -> None:
    """Cancelling a waiting call disturbs neither the store nor other callers."""
    lease = await world.leased()
    tasks = [
        asyncio.create_task(world.execution.read_result(lease.execution_id, wait_ms=limits.WAIT_MAX_MS))
        for _ in range(2)
    ]
    await asyncio.sleep(0.02)  # sleeps: so that the readers are really waiting
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    await world.execution.complete(lease)
    assert type(await asyncio.wait_for(tasks[1], PATIENCE_S)) is ResultCompleted


async def test_closing_the_store_ends_the_wait(closing: World) -> None:
    """A call that waits when the store is closed is told that the store is unavailable."""
    execution_id = await closing.create()
    waiting = asyncio.create_task(closing.execution.read_result(execution_id, wait_ms=limits.WAIT_MAX_MS))
    await asyncio.sleep(0.02)  # sleeps: so that the reader is really waiting
    await closing.backend.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, PATIENCE_S)


@pytest.mark.parametrize("wait_ms", [-1, limits.WAIT_MAX_MS + 1])
async def test_the_wait_is_bounded(world: World, wait_ms: int) -> None:
    """A wait below zero or above 30 seconds is refused; 30 seconds are accepted."""
    lease = await world.completed()
    await world.refused(InvalidInput, world.execution.read_result(lease.execution_id, wait_ms=wait_ms))
    await world.execution.read_result(lease.execution_id, wait_ms=limits.WAIT_MAX_MS)
