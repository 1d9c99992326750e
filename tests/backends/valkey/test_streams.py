"""Streams on native streams: three per attempt, merged for readers, bounded each by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from flowfabric.backends import frame_pages
from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import frames
from flowfabric.backends.valkey.backend import open_backend
from flowfabric.backends.valkey.wire import connect, parse_url
from flowfabric.contract import limits
from flowfabric.contract.lease import Lease
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import StreamPolicy
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import Frame, FrameInput
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.stored import Keys
from tests.conformance.world import World, frame, policy, retrying

DURABLE, SUMMARY, LOSSY = FrameMode.DURABLE, FrameMode.SUMMARY, FrameMode.BEST_EFFORT
MODES: Final = (DURABLE, LOSSY, SUMMARY, LOSSY, DURABLE)


@pytest.fixture
async def world(place: str, clock: ManualClock) -> AsyncIterator[World]:
    """A store; after the test every stored invariant must hold."""
    backend = await open_backend(place, clock=clock, partitions=FEW)
    found = World(backend, clock)
    yield found
    report = await backend.maintenance.fsck()
    await backend.close()
    assert not report.findings


@pytest.fixture
async def raw(place: str) -> AsyncIterator[Any]:
    client = await connect(parse_url(place))
    yield client
    await client.close()


def mixed(first: int, count: int, data: bytes = b"{}") -> tuple[FrameInput, ...]:
    """Make frames of all modes in turn."""
    made: list[FrameInput] = []
    for number in range(first, first + count):
        mode = MODES[number % len(MODES)]
        made.append(frame(number, data, mode=mode, ttl_ms=60_000 if mode is LOSSY else None))
    return tuple(made)


async def lengths(raw: Any, lease: Lease) -> list[int]:
    """Count the entries of an attempt's native streams: durable, summary, best-effort."""
    keys = Keys(raw, lease.execution_id)
    names = frames.keys_of(keys.partition, keys.uuid, lease.attempt_index)
    return [await keys("XLEN", names[mode]) for mode in (DURABLE, SUMMARY, LOSSY)]


def sequences(found: tuple[Frame, ...]) -> list[int]:
    return [item.sequence for item in found]


async def test_modes_have_streams_of_their_own(world: World, raw: Any) -> None:
    """Frames lie in native streams by mode, whose ids are those that readers see; read, they are in one order."""
    lease = await world.leased()
    await world.stream.append(lease, frames=mixed(1, 20))
    assert await lengths(raw, lease) == [8, 4, 8]
    page = await world.stream.read(lease.execution_id, attempt_index=0)
    assert sequences(page.frames) == list(range(1, 21))
    keys = Keys(raw, lease.execution_id)
    entries = await keys("XRANGE", keys.partition.durable(keys.uuid, 0), "-", "+")
    assert [entry[0].decode() for entry in entries] == [
        item.frame_id for item in page.frames if item.mode is DURABLE
    ]
    without = await world.stream.read(lease.execution_id, attempt_index=0, visibility="exclude_best_effort")
    assert sequences(without.frames) == [item.sequence for item in page.frames if item.mode is not LOSSY]


async def test_lossy_frames_never_evict_durable_ones(world: World, raw: Any) -> None:
    """Whatever is appended lossily, every durable and summary frame within its own bound stays."""
    lease = await world.leased(policy=policy(stream_policy=StreamPolicy(retention_maxlen=10)))
    await world.stream.append(lease, frames=(*[frame(number) for number in range(1, 11)],))
    for first in range(11, 2_011, 500):
        lossy = [frame(number, mode=LOSSY, ttl_ms=1) for number in range(first, first + 500)]
        await world.stream.append(lease, frames=tuple(lossy))
        world.clock.advance(1_000)
    assert await lengths(raw, lease) == [10, 0, limits.BEST_EFFORT_FRAMES_MIN]
    found = await world.frames(lease.execution_id, 0)
    assert sequences(found)[:10] == list(range(1, 11))
    assert not (await world.stream.read(lease.execution_id, attempt_index=0)).trimmed


@pytest.mark.parametrize("step", [1, 2, 7, 30])
async def test_bounds_are_exact(world: World, raw: Any, step: int) -> None:
    """However many are appended at once, exactly the newest frames of each mode stay, and the gap is reported."""
    lease = await world.leased(policy=policy(stream_policy=StreamPolicy(retention_maxlen=5)))
    for first in range(1, 91, step):
        made = [
            frame(number, b"{}", mode=SUMMARY if number % 3 == 0 else DURABLE)
            for number in range(first, min(first + step, 91))
        ]
        await world.stream.append(lease, frames=tuple(made))
    assert await lengths(raw, lease) == [5, 30, 0]
    durable = [number for number in range(1, 91) if number % 3]
    kept = sorted([*durable[-5:], *range(3, 91, 3)])
    page = await world.stream.read(lease.execution_id, attempt_index=0, limit=1_000)
    assert (sequences(page.frames), page.trimmed) == (kept, True)
    newest_gone = durable[-6]
    at = next(item for item in page.frames if item.sequence > newest_gone)
    later = await world.stream.tail(lease.execution_id, attempt_index=0, after=at.frame_id)
    assert not later.trimmed


async def test_pages_are_read_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page larger than one look at each native stream holds the same frames, whatever the pieces."""
    lease = await world.leased()
    for first in range(1, 1_001, 100):
        await world.stream.append(lease, frames=mixed(first, 100))
        world.clock.advance(1)
    whole = (await world.stream.read(lease.execution_id, attempt_index=0, limit=1_000)).frames
    assert sequences(whole) == [number for number in range(1, 1_001) if number in sequences(whole)]
    for first_piece, piece in ((1, 1), (3, 50), (64, 1_000)):
        monkeypatch.setattr(frames, "FIRST_CHUNK", first_piece)
        monkeypatch.setattr(frames, "CHUNK_MAX", piece)
        for limit in (1, 10, 333):
            assert (
                await world.stream.read(lease.execution_id, attempt_index=0, limit=limit)
            ).frames == whole[:limit]


async def test_large_frames_come_in_pages_of_bounded_bytes(world: World) -> None:
    """A page holds at most 8 MiB of payloads; the next one goes on where it ended."""
    lease = await world.leased()
    data = b"x" * limits.FRAME_BYTES_MAX
    for first in range(1, 301, 50):
        made = [
            FrameInput(
                sequence=number,
                payload=Payload(data, "text/plain"),
                mode=MODES[number % 2],
                ttl_ms=60_000 if MODES[number % 2] is LOSSY else None,
            )
            for number in range(first, first + 50)
        ]
        await world.stream.append(lease, frames=tuple(made))
    page = await world.stream.read(lease.execution_id, attempt_index=0, limit=1_000)
    most = frame_pages.PAGE_BYTES_MAX // limits.FRAME_BYTES_MAX
    assert len(page.frames) == most
    assert len(await world.frames(lease.execution_id, 0)) == 300


async def test_a_run_reads_on_over_many_attempts(world: World) -> None:
    """The stream of a run goes over all its attempts, those without frames too, page by page."""
    lease = await world.leased(policy=retrying(150, 0))
    for number in range(150):
        if number % 10 == 0:
            await world.stream.append(lease, frames=(frame(1), frame(2)))
        await world.execution.fail(lease)
        lease = await world.claim_one()
    whole = await world.frames(lease.execution_id)
    markers = [item.attempt_index for item in whole if item.sequence == 0]
    assert (markers, len(whole)) == (list(range(151)), 151 + 30)
    for limit in (1, 7, 64):
        found: list[Frame] = []
        after = None
        while page := await world.stream.tail(lease.execution_id, after=after, limit=limit):
            if not page.frames:
                break
            assert len(page.frames) <= limit
            found += page.frames
            after = page.next_cursor
        assert tuple(found) == whole


async def test_readers_miss_nothing_while_frames_are_appended_and_trimmed(world: World) -> None:
    """A reader that follows a busy stream sees every frame in order, or is told that some are gone."""
    lease = await world.leased(policy=policy(stream_policy=StreamPolicy(retention_maxlen=50)))
    last = 3_000

    async def write() -> None:
        for first in range(1, last, 10):
            await world.stream.append(lease, frames=mixed(first, 10))

    writing = asyncio.create_task(write())
    seen: list[int] = []
    after, previous = None, 0
    while not seen or seen[-1] < last:
        page = await world.stream.tail(
            lease.execution_id, attempt_index=0, after=after, limit=40, wait_ms=5_000
        )
        lasting = [item for item in page.frames if item.mode is not LOSSY]
        for item in page.frames:
            assert not seen or item.sequence > seen[-1]
            seen.append(item.sequence)
        if lasting and not page.trimmed:
            expected = [
                number
                for number in range(previous + 1, lasting[-1].sequence + 1)
                if MODES[number % len(MODES)] is not LOSSY
            ]
            assert [item.sequence for item in lasting] == expected
        if page.frames:
            previous = page.frames[-1].sequence
        after = page.next_cursor
    await writing


async def test_an_append_is_one_round_trip_without_a_summary(world: World) -> None:
    """Durable and lossy frames cost one call; a summary frame costs one look more."""
    lease = await world.leased()
    key = Keys(None, lease.execution_id).hash  # type: ignore[arg-type]
    backend: Any = world.backend
    client = backend._store.client
    execute, count = client.execute, 0

    async def counting(slot: int, commands: Any, **named: Any) -> Any:
        nonlocal count
        count += any(key in command for command in commands)
        return await execute(slot, commands, **named)

    client.execute = counting
    try:
        await world.stream.append(lease, frames=(frame(1), frame(2, mode=LOSSY, ttl_ms=5)))
        assert count == 1
        await world.stream.append(lease, frames=(frame(3, b"{}", mode=SUMMARY),))
        assert count == 3
    finally:
        client.execute = execute


async def test_racing_summaries_are_merged_once_each(world: World) -> None:
    """Two processes that append the same summary frames at once under one fence merge each of them once."""
    lease = await world.leased()
    for number in range(1, 20):
        patch = f'{{"k{number}": {number}}}'.encode()
        made = (frame(number, patch, mode=SUMMARY),)
        outcomes = await world.race(*(world.stream.append(lease, frames=made) for _ in range(4)))
        assert sorted(outcome.duplicates for outcome in outcomes) == [0, 1, 1, 1]
        assert {outcome.summary_version for outcome in outcomes} == {number}
    found = await world.stream.read_summary(lease.execution_id, attempt_index=0)
    assert bytes(found.document).count(b"k") == 19


async def test_a_tail_wakes_at_once_on_another_process(world: World, place: str) -> None:
    """A tail waits on one connection to the store while another one appends: it is told, it does not poll."""
    lease = await world.leased()
    other = World(await open_backend(place, clock=world.clock), world.clock)
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(other.stream.tail(lease.execution_id, attempt_index=0, wait_ms=20_000))
    await asyncio.sleep(0.3)  # sleeps: until the tail listens; without that the first look finds the frame
    started = loop.time()
    await world.stream.append(lease, frames=(frame(1),))
    page = await waiting
    assert sequences(page.frames) == [1]
    assert loop.time() - started < 2
    await other.backend.close()


async def test_what_functions_refuse_leaves_nothing(world: World, raw: Any) -> None:
    """An append whose lease is over writes neither frames nor records."""
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1),))
    keys = Keys(raw, lease.execution_id)
    before = (await lengths(raw, lease), await keys("HGETALL", keys.hash))
    world.clock.advance(60_000)
    outcomes = await world.race(*(world.stream.append(lease, frames=(frame(2),)) for _ in range(3)))
    assert {outcome.code for outcome in outcomes} == {"stale_owner_cannot_append"}
    assert (await lengths(raw, lease), await keys("HGETALL", keys.hash)) == before
