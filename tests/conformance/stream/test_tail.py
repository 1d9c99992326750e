"""stream.tail: the frames after a cursor, waiting for one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput, InvalidOffset, Unavailable
from flowfabric.contract.stream import FramePage
from tests.conformance.world import PATIENCE_S, TTL_MS, World, frame, retrying


async def tailing(world: World, subject: Any, **fields: Any) -> asyncio.Task[FramePage]:
    """Start a tail that waits, and see to it that it really does."""
    task = asyncio.create_task(world.stream.tail(subject, wait_ms=limits.WAIT_MAX_MS, **fields))
    await asyncio.sleep(0.02)  # sleeps: so that the tail is really waiting when the frame comes
    assert not task.done()
    return task


def sequences(page: FramePage) -> list[int]:
    """Return the sequences of a page's frames."""
    return [item.sequence for item in page.frames]


async def test_the_cursor_is_excluded(world: World) -> None:
    """Only frames after the cursor are shown; without one, from the beginning."""
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1), frame(2), frame(3)))
    page = await world.stream.tail(lease, limit=1)
    assert sequences(page) == [1]
    page = await world.stream.tail(lease, after=page.next_cursor)
    assert sequences(page) == [2, 3]
    page = await world.stream.tail(lease, after=page.next_cursor)
    assert sequences(page) == []
    assert sequences(await world.stream.tail(lease, after="0-0")) == [1, 2, 3]


async def test_without_a_wait_it_answers_at_once(world: World) -> None:
    """A tail that does not wait is a peek.

    Acceptance: tail-without-wait-is-a-peek
    """
    lease = await world.leased()
    page = await asyncio.wait_for(world.stream.tail(lease), PATIENCE_S)
    assert (page.frames, page.closed_at_ms) == ((), None)


async def test_waiting_in_vain_is_empty(world: World) -> None:
    """When the wait is over without a frame the page is empty and the cursor stays.

    Acceptance: tail-times-out-empty
    """
    lease = await world.leased()
    reply = await world.stream.append(lease, frames=(frame(1),))
    page = await world.stream.tail(lease, after=reply.last_frame_id, wait_ms=30)
    assert (page.frames, page.next_cursor) == ((), reply.last_frame_id)


@pytest.mark.parametrize("whole_run", [False, True])
async def test_an_append_wakes_it(world: World, whole_run: bool) -> None:
    """A frame wakes every tail that waits for it, of the attempt and of the run.

    Acceptance: tail-is-woken-by-append
    """
    lease = await world.leased()
    subject = lease.execution_id if whole_run else lease
    cursor = (await world.stream.tail(subject)).next_cursor
    tasks = [await tailing(world, subject, after=cursor) for _ in range(3)]
    await world.stream.append(lease, frames=(frame(1), frame(2)))
    for task in tasks:
        assert sequences(await asyncio.wait_for(task, PATIENCE_S)) == [1, 2]


async def test_with_frames_there_it_does_not_wait(world: World) -> None:
    """Frames after the cursor are shown at once, however long the wait."""
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1),))
    page = await asyncio.wait_for(world.stream.tail(lease, wait_ms=limits.WAIT_MAX_MS), PATIENCE_S)
    assert sequences(page) == [1]


@pytest.mark.parametrize("name", ["execution.complete", "execution.fail", "execution.cancel"])
async def test_the_end_wakes_it(world: World, name: str) -> None:
    """Closing the stream wakes a waiting tail, which is told why.

    Acceptance: tail-is-woken-by-close
    """
    lease = await world.leased()
    task = await tailing(world, lease)
    await world.call(name, lease)
    page = await asyncio.wait_for(task, PATIENCE_S)
    assert (page.frames, page.closed_at_ms) == ((), world.now_ms)


async def test_a_lost_lease_wakes_it(world: World) -> None:
    """A lease that runs out closes the stream and wakes its tails."""
    lease = await world.leased()
    task = await tailing(world, lease)
    await world.advance(TTL_MS)
    assert (await asyncio.wait_for(task, PATIENCE_S)).closed_reason == "lease_expired"


async def test_a_run_goes_on_with_the_next_attempt(world: World) -> None:
    """A tail of the run is woken by the next attempt's marker and frames, and by the end of the run.

    Acceptance: run-tail-follows-retries
    """
    lease = await world.leased(policy=retrying(delay_ms=0))
    await world.stream.append(lease, frames=(frame(1),))
    page = await world.stream.tail(lease.execution_id)
    await world.execution.fail(lease)
    page = await world.stream.tail(lease.execution_id, after=page.next_cursor)
    assert (page.frames, page.closed_at_ms) == ((), None)
    task = await tailing(world, lease.execution_id, after=page.next_cursor)
    retry = await world.claim_one()
    page = await asyncio.wait_for(task, PATIENCE_S)
    assert [(item.attempt_index, item.frame_type) for item in page.frames] == [(1, "attempt_started")]
    task = await tailing(world, lease.execution_id, after=page.next_cursor)
    await world.stream.append(retry, frames=(frame(1),))
    page = await asyncio.wait_for(task, PATIENCE_S)
    assert [(item.attempt_index, item.sequence) for item in page.frames] == [(1, 1)]
    task = await tailing(world, lease.execution_id, after=page.next_cursor)
    await world.execution.complete(retry)
    page = await asyncio.wait_for(task, PATIENCE_S)
    assert page.closed_reason == "attempt_success"


async def test_frames_may_follow_the_close_marker(world: World) -> None:
    """The close is told on every page; the last frames are there to be read on, until a page is empty.

    Acceptance: read-on-after-the-close
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=tuple(frame(number) for number in range(1, 6)))
    await world.execution.complete(lease)
    found: list[int] = []
    cursor: str | None = None
    while True:
        page = await world.stream.tail(lease, after=cursor, limit=2, wait_ms=limits.WAIT_MAX_MS)
        assert page.closed_reason == "attempt_success"
        if not page.frames:
            break
        found += sequences(page)
        cursor = page.next_cursor
    assert found == [1, 2, 3, 4, 5]


async def test_tails_do_not_delay_appends(world: World) -> None:
    """While many tails wait, an append is as fast as ever.

    Acceptance: tails-do-not-delay-appends
    """
    lease = await world.leased()
    quiet = await world.leased(lane="other")
    tasks = [await tailing(world, quiet) for _ in range(50)]
    started = time.perf_counter()
    await world.stream.append(lease, frames=(frame(1),))
    assert time.perf_counter() - started < 0.5
    await world.stream.append(quiet, frames=(frame(1),))
    for task in tasks:
        assert sequences(await asyncio.wait_for(task, PATIENCE_S)) == [1]


async def test_frames_of_others_do_not_end_the_wait(world: World) -> None:
    """Frames of other executions, and those filtered out, leave a tail waiting."""
    lease = await world.leased()
    other = await world.leased(lane="other")
    task = await tailing(world, lease, visibility="exclude_best_effort")
    await world.stream.append(other, frames=(frame(1),))
    await asyncio.sleep(0.05)  # sleeps: so that a wrong wake-up would show
    assert not task.done()
    await world.stream.append(lease, frames=(frame(1),))
    assert sequences(await asyncio.wait_for(task, PATIENCE_S)) == [1]


async def test_a_caller_that_gives_up_leaves_nothing_behind(world: World) -> None:
    """Cancelling a waiting tail disturbs nobody."""
    lease = await world.leased()
    gone, task = [await tailing(world, lease) for _ in range(2)]
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await world.stream.append(lease, frames=(frame(1),))
    assert sequences(await asyncio.wait_for(task, PATIENCE_S)) == [1]


async def test_closing_the_store_ends_the_wait(closing: World) -> None:
    """A tail that waits when the store is closed is told that the store is unavailable.

    Acceptance: shutdown-ends-tails-with-unavailable
    """
    lease = await closing.leased()
    task = await tailing(closing, lease)
    await closing.backend.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(task, PATIENCE_S)


@pytest.mark.parametrize("cursor", ["start", "end", "-", "+", "", "x", "1-2-3"])
async def test_open_ended_cursors_are_refused(world: World, cursor: str) -> None:
    """A tail's cursor is concrete: neither `start` nor `end` nor nonsense.

    Acceptance: tail-refuses-open-ended-cursors
    """
    lease = await world.leased()
    await world.refused(InvalidOffset, world.stream.tail(lease, after=cursor))
    await world.refused(InvalidOffset, world.stream.tail(lease.execution_id, after=cursor))


@pytest.mark.parametrize(
    "fields",
    [
        {"limit": 0},
        {"limit": limits.PAGE_MAX + 1},
        {"wait_ms": -1},
        {"wait_ms": limits.WAIT_MAX_MS + 1},
        {"attempt_index": -1},
    ],
    ids=str,
)
async def test_numbers_are_bounded(world: World, fields: dict[str, Any]) -> None:
    """Pages of zero or more than 1,000 frames and waits over 30 seconds are refused; that comes before cursors."""
    lease = await world.leased()
    await world.refused(InvalidInput, world.stream.tail(lease, **fields))
    await world.refused(InvalidInput, world.stream.tail(lease, **fields, after="nonsense"))
