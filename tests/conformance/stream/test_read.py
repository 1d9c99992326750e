"""stream.read: frames between two cursors, of one attempt or of the whole run."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput, InvalidOffset
from flowfabric.contract.policies import StreamPolicy
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import ATTEMPT_STARTED
from tests.conformance import situations
from tests.conformance.world import TTL_MS, World, frame, policy, retrying


def sequences(page: Any) -> list[int]:
    """Return the sequences of a page's frames."""
    return [item.sequence for item in page.frames]


@pytest.mark.parametrize("situation", [situations.waiting, situations.leased, situations.completed])
async def test_a_stream_never_written_to_is_empty(world: World, situation: situations.Situation) -> None:
    """Without frames the page is empty, not an error, also for an attempt that does not exist.

    Acceptance: unwritten-stream-is-empty
    """
    execution_id = await situation(world)
    for index in (0, 5):
        page = await world.stream.read(execution_id, attempt_index=index)
        assert (page.frames, page.trimmed) == ((), False)


async def test_cursors_are_included(world: World) -> None:
    """`start` and `end` name the first and last frame of the page; a bare millisecond means its first frame."""
    lease = await world.leased()
    for number in range(1, 6):
        await world.stream.append(lease, frames=(frame(number),))
        world.clock.advance(1)
    ids = [item.frame_id for item in await world.frames(lease.execution_id, 0)]

    async def read(**fields: Any) -> list[int]:
        return sequences(await world.stream.read(lease, **fields))

    assert await read() == [1, 2, 3, 4, 5]
    assert await read(start=ids[1], end=ids[3]) == [2, 3, 4]
    assert await read(start=ids[4], end=ids[4]) == [5]
    assert await read(start=ids[3], end=ids[1]) == []
    assert await read(start=ids[1].split("-")[0], end="end") == [2, 3, 4, 5]
    assert await read(start="0") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("limit", [1, 2, 3, 10_000])
async def test_reading_on_loses_nothing(world: World, limit: int) -> None:
    """Reading on after a page's `next_cursor` shows every frame once, in order.

    Acceptance: reading-resumes-after-the-last-id
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=tuple(frame(number) for number in range(1, 8)))
    page = await world.stream.read(lease, limit=limit)
    found = sequences(page)
    while True:
        page = await world.stream.tail(lease, after=page.next_cursor, limit=min(limit, 1_000))
        if not page.frames:
            break
        found += sequences(page)
    assert found == [1, 2, 3, 4, 5, 6, 7]


async def test_the_close_is_told(world: World) -> None:
    """Once the attempt's stream is closed, when and why is told, with the frames.

    Acceptance: close-is-visible-to-read-and-tail
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1),))
    page = await world.stream.read(lease)
    assert (page.closed_at_ms, page.closed_reason) == (None, None)
    world.clock.advance(5)
    await world.execution.complete(lease)
    for page in (await world.stream.read(lease), await world.stream.tail(lease)):
        assert (sequences(page), page.closed_at_ms, page.closed_reason) == (
            [1],
            world.now_ms,
            "attempt_success",
        )


async def test_the_close_by_expiry_is_told(world: World) -> None:
    """A lost lease closes its attempt's stream.

    Acceptance: close-is-visible-after-lease-expiry
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1),))
    await world.advance(TTL_MS)
    for page in (await world.stream.read(lease), await world.stream.tail(lease)):
        assert (page.closed_at_ms, page.closed_reason) == (world.now_ms, "lease_expired")


async def test_a_run_is_all_attempts_in_order(world: World) -> None:
    """Without an attempt the frames of all attempts are read in order, each attempt with a marker at its start.

    Acceptance: run-stream-spans-attempts
    """
    lease = await world.leased(policy=retrying(delay_ms=0))
    await world.stream.append(lease, frames=(frame(1, b'"a"'), frame(2, b'"b"')))
    await world.execution.fail(lease)
    retry = await world.claim_one()
    await world.stream.append(retry, frames=(frame(1, b'"c"'),))
    page = await world.stream.read(lease.execution_id)
    shown = [
        (item.attempt_index, item.frame_type if item.frame_type == ATTEMPT_STARTED else item.payload.data)
        for item in page.frames
    ]
    assert shown == [
        (0, ATTEMPT_STARTED),
        (0, b'"a"'),
        (0, b'"b"'),
        (1, ATTEMPT_STARTED),
        (1, b'"c"'),
    ]
    assert page.closed_at_ms is None
    await world.execution.complete(retry)
    page = await world.stream.read(lease.execution_id)
    assert (page.closed_at_ms, page.closed_reason) == (world.now_ms, "attempt_success")


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_reading_a_run_on_loses_nothing(world: World, limit: int) -> None:
    """Reading a run page by page shows every frame and marker once, over attempt boundaries.

    Acceptance: run-stream-pages-lose-nothing
    """
    lease = await world.leased(policy=retrying(delay_ms=0))
    for attempt in range(3):
        await world.stream.append(lease, frames=(frame(1), frame(2)))
        if attempt < 2:
            await world.execution.fail(lease)
            lease = await world.claim_one()
    whole = await world.frames(lease.execution_id)
    found: list[Any] = []
    cursor: str | None = None
    while True:
        page = await world.stream.tail(lease.execution_id, after=cursor, limit=limit)
        assert len(page.frames) <= limit
        if not page.frames:
            break
        found += page.frames
        cursor = page.next_cursor
    assert tuple(found) == whole
    assert len(whole) == 9


async def test_best_effort_frames_can_be_left_out(world: World) -> None:
    """With `exclude_best_effort` only durable and summary frames are shown, and paging still gets past the others.

    Acceptance: visibility-filter-excludes-best-effort
    """
    lease = await world.leased()
    frames = tuple(
        frame(number, mode=FrameMode.BEST_EFFORT, ttl_ms=5_000) if number % 3 else frame(number)
        for number in range(1, 10)
    )
    await world.stream.append(lease, frames=frames)
    page = await world.stream.read(lease, visibility="exclude_best_effort")
    assert sequences(page) == [3, 6, 9]
    assert sequences(await world.stream.read(lease)) == list(range(1, 10))
    found: list[int] = []
    cursor: str | None = None
    for _ in range(20):
        page = await world.stream.tail(lease, after=cursor, limit=2, visibility="exclude_best_effort")
        found += sequences(page)
        if page.next_cursor == cursor:
            break
        cursor = page.next_cursor
    assert found == [3, 6, 9]


async def test_what_was_trimmed_is_told(world: World) -> None:
    """A reader whose next frames were removed before it could read them is told so; one who saw them is not.

    Acceptance: trimming-is-told-to-readers
    """
    lease = await world.leased(policy=policy(stream_policy=StreamPolicy(retention_maxlen=2)))
    first = await world.stream.append(lease, frames=(frame(1),))
    page = await world.stream.read(lease)
    assert not page.trimmed
    await world.stream.append(lease, frames=(frame(2), frame(3)))
    assert not (await world.stream.tail(lease, after=first.last_frame_id)).trimmed
    await world.stream.append(lease, frames=(frame(4),))
    behind = await world.stream.tail(lease, after=first.last_frame_id)
    assert (behind.trimmed, sequences(behind)) == (True, [3, 4])
    assert (await world.stream.read(lease)).trimmed


MALFORMED_CURSORS = ["", "-", "+", "x", "1-", "-1", "1-2-3", "01-1", "1 - 2", "1" * 30, "\u0661-1", "0:1-2"]


@pytest.mark.parametrize("cursor", MALFORMED_CURSORS)
async def test_malformed_cursors_are_refused(world: World, cursor: str) -> None:
    """Text that is no cursor of an attempt is invalid_offset at either end.

    Acceptance: malformed-stream-cursor-is-refused
    """
    lease = await world.leased()
    await world.refused(InvalidOffset, world.stream.read(lease, start=cursor))
    await world.refused(InvalidOffset, world.stream.read(lease, end=cursor))


@pytest.mark.parametrize("cursor", ["1-2", "x:1-2", "0:1", "01:1-2", "0:1-2 "])
async def test_a_run_has_cursors_of_its_own(world: World, cursor: str) -> None:
    """Over a run a cursor names the attempt, too."""
    lease = await world.leased()
    await world.refused(InvalidOffset, world.stream.read(lease.execution_id, start=cursor))


async def test_the_ends_are_not_swapped(world: World) -> None:
    """`end` is no start and `start` no end."""
    lease = await world.leased()
    await world.refused(InvalidOffset, world.stream.read(lease, start="end"))
    await world.refused(InvalidOffset, world.stream.read(lease, end="start"))


@pytest.mark.parametrize(
    "fields",
    [
        {"limit": 0},
        {"limit": limits.FRAME_READ_MAX + 1},
        {"attempt_index": -1},
        {"attempt_index": limits.COUNT_MAX + 1},
    ],
    ids=str,
)
async def test_numbers_are_bounded(world: World, fields: dict[str, Any]) -> None:
    """A page of zero or more than 10,000 frames and an impossible attempt are refused; that comes before cursors.

    Acceptance: frame-limits-are-refused-not-clamped
    """
    lease = await world.leased()
    await world.refused(InvalidInput, world.stream.read(lease, **fields))
    await world.refused(InvalidInput, world.stream.read(lease, **fields, start="nonsense"))
    await world.stream.read(lease, limit=limits.FRAME_READ_MAX)
