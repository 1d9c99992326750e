"""execution.trim: retention removes what is over, and never what lives."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import ExecutionNotFound
from flowfabric.contract.execution import ExecutionTrimmed
from flowfabric.contract.policies import StreamPolicy
from flowfabric.contract.states import FrameMode
from tests.conformance import situations
from tests.conformance.world import World, frame, payload, policy


async def status(world: World, execution_id: str) -> str:
    """Trim by hand and return what was done."""
    return (await world.execution.trim(execution_id)).status


@pytest.mark.parametrize("retention_ms", [None, 5_000, 0])
async def test_a_finished_execution_is_removed_when_its_retention_is_over(
    world: World, retention_ms: int | None
) -> None:
    """The record is removed a day after the end, or as its policy says, and then nothing of it is found.

    Acceptance: retention-removes-everything
    """
    lease = await world.leased(policy=policy(retention_ms=retention_ms) if retention_ms is not None else None)
    await world.stream.append(lease, frames=(frame(1), frame(2, b"{}", mode=FrameMode.SUMMARY)))
    await world.execution.complete(lease, result=payload("1"))
    most_ms = limits.RETENTION_DEFAULT_MS if retention_ms is None else retention_ms
    if most_ms:
        world.clock.advance(most_ms - 1)
        assert await status(world, lease.execution_id) == "not_due"
        assert (await world.execution.read_result(lease.execution_id)).result == payload("1")
        world.clock.advance(1)
    reply = await world.execution.trim(lease.execution_id)
    assert reply == ExecutionTrimmed(execution_id=lease.execution_id, status="deleted")
    assert await world.listed() == []
    for name in (
        "execution.describe",
        "execution.read_result",
        "lease.history",
        "attempt.list",
        "stream.read",
    ):
        await world.refused(ExecutionNotFound, world.call(name, lease.execution_id))
    await world.refused(ExecutionNotFound, world.execution.trim(lease.execution_id))


async def test_the_timers_remove_by_themselves(world: World) -> None:
    """The engine's timers remove what is over without anybody asking."""
    kept = await world.completed(policy=policy(retention_ms=10_000))
    await world.completed(policy=policy(retention_ms=5_000))
    await world.advance(5_000)
    assert await world.listed() == [kept.execution_id]
    await world.advance(5_000)
    assert await world.listed() == []


@pytest.mark.parametrize("situation", situations.LIVE.values(), ids=situations.LIVE)
async def test_a_live_execution_is_never_removed(world: World, situation: situations.Situation) -> None:
    """However old, an execution that has not ended is not trimmed."""
    execution_id = await situation(world)
    world.clock.advance(10 * limits.RETENTION_DEFAULT_MS)
    reply = await world.unchanged(world.execution.trim(execution_id))
    assert reply.status == "not_due"


async def test_frames_may_go_before_the_record(world: World) -> None:
    """With `stream_policy.retention_ttl_ms` the frames go that long after the end, the record stays.

    Acceptance: frames-retention-trims-frames-only
    """
    policies = policy(stream_policy=StreamPolicy(retention_ttl_ms=1_000), retention_ms=5_000)
    lease = await world.leased(policy=policies)
    await world.stream.append(lease, frames=(frame(1), frame(2, b'{"a": 1}', mode=FrameMode.SUMMARY)))
    await world.execution.complete(lease, result=payload("1"))
    world.clock.advance(999)
    assert await status(world, lease.execution_id) == "not_due"
    world.clock.advance(1)
    assert await status(world, lease.execution_id) == "frames_deleted"
    assert await status(world, lease.execution_id) == "not_due"
    page = await world.stream.read(lease.execution_id, attempt_index=0)
    assert (page.frames, page.closed_reason) == ((), "attempt_success")
    assert (await world.execution.read_result(lease.execution_id)).result == payload("1")
    await world.advance(4_000)
    assert await world.listed() == []


async def test_frames_do_not_outlive_the_record(world: World) -> None:
    """A longer retention of frames than of the record has no effect: everything goes with the record."""
    policies = policy(stream_policy=StreamPolicy(retention_ttl_ms=9_000), retention_ms=1_000)
    lease = await world.leased(policy=policies)
    await world.stream.append(lease, frames=(frame(1),))
    await world.execution.complete(lease)
    assert await world.advance(1_000) == 1
    assert await world.listed() == []


async def test_lossy_streams_expire_while_the_execution_lives(world: World) -> None:
    """Frames of a stream that holds nothing but best-effort frames go twice their ttl after the last append.

    Acceptance: best-effort-streams-expire
    """
    lease = await world.leased(lease_ttl_ms=60_000)
    lossy = frame(1, mode=FrameMode.BEST_EFFORT, ttl_ms=1_000)
    await world.stream.append(lease, frames=(lossy,))
    await world.advance(1_999)
    assert len(await world.frames(lease.execution_id, 0)) == 1
    await world.advance(1)
    assert await world.frames(lease.execution_id, 0) == ()
    await world.stream.append(lease, frames=(frame(2),))
    assert [item.sequence for item in await world.frames(lease.execution_id, 0)] == [2]


async def test_racing_trims_remove_once(world: World) -> None:
    """Of several trims at once one removes; the others do not find it."""
    lease = await world.completed(policy=policy(retention_ms=0))
    outcomes = await world.race(*(world.execution.trim(lease.execution_id) for _ in range(4)))
    assert sorted(getattr(outcome, "status", None) or outcome.code for outcome in outcomes) == [
        "deleted",
        "execution_not_found",
        "execution_not_found",
        "execution_not_found",
    ]
