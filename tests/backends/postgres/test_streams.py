"""Streams in tables: appends that share statements, bounds of each mode by itself, pages of one snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest

from flowfabric.backends import connect, frame_pages
from flowfabric.backends.clock import ManualClock
from flowfabric.contract import limits
from flowfabric.contract.errors import FrameSequenceGap, StaleOwnerCannotAppend
from flowfabric.contract.lease import Lease
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import StreamPolicy
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import Frame, FrameInput, FramePage
from tests.backends.postgres.work import FEW
from tests.conformance.world import World, frame, policy, retrying

DURABLE, SUMMARY, LOSSY = FrameMode.DURABLE, FrameMode.SUMMARY, FrameMode.BEST_EFFORT
MODES: Final = (DURABLE, LOSSY, SUMMARY, LOSSY, DURABLE)


@pytest.fixture
async def world(place: str, clock: ManualClock) -> AsyncIterator[World]:
    """A store; after the test every stored invariant must hold."""
    backend = await connect(place, clock=clock, partitions=FEW)
    found = World(backend, clock)
    yield found
    report = await backend.maintenance.fsck()
    await backend.close()
    assert not report.findings


@pytest.fixture
async def raw(world: World, place: str) -> AsyncIterator[Any]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(place)
    yield connection
    await connection.close()


def mixed(first: int, count: int, data: bytes = b"{}") -> tuple[FrameInput, ...]:
    """Make frames of all modes in turn."""
    made: list[FrameInput] = []
    for number in range(first, first + count):
        mode = MODES[number % len(MODES)]
        made.append(frame(number, data, mode=mode, ttl_ms=60_000 if mode is LOSSY else None))
    return tuple(made)


async def kept(raw: Any, lease: Lease) -> list[int]:
    """Count the rows of an attempt's frames: durable, summary, best-effort."""
    rows = await raw.fetch(
        "SELECT mode, count(*) FROM ff.frame JOIN ff.execution USING (seq) "
        "WHERE id = $1 AND frame.attempt_index = $2 GROUP BY mode",
        lease.execution_id[-36:],
        lease.attempt_index,
    )
    counts = dict(rows)
    return [counts.get(mode.value, 0) for mode in (DURABLE, SUMMARY, LOSSY)]


def sequences(found: tuple[Frame, ...]) -> list[int]:
    return [item.sequence for item in found]


async def leases(world: World, count: int) -> list[Lease]:
    """Create and claim some executions."""
    for _ in range(count):
        await world.create()
    return list(await world.claim(max_tasks=count))


async def test_lossy_frames_never_evict_durable_ones(world: World, raw: Any) -> None:
    """Whatever is appended lossily, every durable and summary frame within its own bound stays."""
    lease = await world.leased(policy=policy(stream_policy=StreamPolicy(retention_maxlen=10)))
    await world.stream.append(lease, frames=tuple(frame(number) for number in range(1, 11)))
    for first in range(11, 2_011, 500):
        lossy = [frame(number, mode=LOSSY, ttl_ms=1) for number in range(first, first + 500)]
        await world.stream.append(lease, frames=tuple(lossy))
        world.clock.advance(1_000)
    assert await kept(raw, lease) == [10, 0, limits.BEST_EFFORT_FRAMES_MIN]
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
        world.clock.advance(first % 2)
    assert await kept(raw, lease) == [5, 30, 0]
    durable = [number for number in range(1, 91) if number % 3]
    left = sorted([*durable[-5:], *range(3, 91, 3)])
    page = await world.stream.read(lease.execution_id, attempt_index=0, limit=1_000)
    assert (sequences(page.frames), page.trimmed) == (left, True)
    newest_gone = durable[-6]
    at = next(item for item in page.frames if item.sequence > newest_gone)
    later = await world.stream.tail(lease.execution_id, attempt_index=0, after=at.frame_id)
    assert not later.trimmed


async def test_each_mode_is_bounded_by_itself(world: World, raw: Any) -> None:
    """Durable, summary and lossy frames that alternate past all three bounds leave the newest of each."""
    lease = await world.leased(policy=policy(stream_policy=StreamPolicy(retention_maxlen=7)))
    for first in range(1, 1_001, 20):
        await world.stream.append(lease, frames=mixed(first, 20))
        world.clock.advance(3)
    assert (await kept(raw, lease))[:2] == [7, limits.SUMMARY_FRAMES_KEPT]
    found = await world.frames(lease.execution_id, 0)
    for mode, most in ((DURABLE, 7), (SUMMARY, limits.SUMMARY_FRAMES_KEPT)):
        made = [number for number in range(1, 1_001) if MODES[number % len(MODES)] is mode]
        assert [item.sequence for item in found if item.mode is mode] == made[-most:]
    lossy = [item.sequence for item in found if item.mode is LOSSY]
    made = [number for number in range(1, 1_001) if MODES[number % len(MODES)] is LOSSY]
    assert lossy == made[-len(lossy) :]


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
    most = frame_pages.PAGE_BYTES_MAX // limits.FRAME_BYTES_MAX
    for index in (0, None):
        page = await world.stream.read(lease.execution_id, attempt_index=index, limit=1_000)
        assert len(sequences(page.frames)) == most + (index is None)
    assert len(await world.frames(lease.execution_id, 0)) == 300


async def test_a_run_reads_on_over_many_attempts(world: World) -> None:
    """The stream of a run goes over all its attempts, those without frames too, page by page."""
    lease = await world.leased(policy=retrying(60, 0))
    for number in range(60):
        if number % 10 == 0:
            await world.stream.append(lease, frames=(frame(1), frame(2)))
        await world.execution.fail(lease)
        lease = await world.claim_one()
    whole = await world.frames(lease.execution_id)
    markers = [item.attempt_index for item in whole if item.sequence == 0]
    assert (markers, len(whole)) == (list(range(61)), 61 + 12)
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
    last = 2_000

    async def write() -> None:
        for first in range(1, last, 10):
            await world.stream.append(lease, frames=mixed(first, 10))

    writing = asyncio.create_task(write())
    seen: list[int] = []
    after, previous = None, 0
    while not seen or seen[-1] < last:
        page: FramePage = await world.stream.tail(
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


async def test_a_late_committer_is_not_skipped(world: World, raw: Any, place: str) -> None:
    """While a transaction that appended has not committed, the next append waits for it: ids appear in their order."""
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1),))
    assert lease.fence is not None
    fence = lease.fence
    slow = raw.transaction()
    await slow.start()
    await raw.fetch(
        "SELECT * FROM ff.stream_append(ARRAY[$1::int], ARRAY[$2::uuid], ARRAY[0], ARRAY[$3::uuid], ARRAY[$4::bigint], "
        "ARRAY[$5::uuid], ARRAY[null::text], ARRAY[null::text], ARRAY[2::bigint], ARRAY[1], ARRAY[null::bigint], "
        "ARRAY[null::bytea], ARRAY[null::text], ARRAY[null::text], ARRAY['durable'], ARRAY[null::bigint], "
        "ARRAY['event'], ARRAY['text/plain'], ARRAY[null::text], ARRAY[null::bigint], ARRAY['late'::bytea])",
        int(lease.execution_id[4 : lease.execution_id.index("}")]),
        lease.execution_id[-36:],
        fence.lease_id,
        fence.lease_epoch,
        fence.attempt_id,
    )
    world.clock.advance(50)
    other = World(await connect(place, clock=world.clock), world.clock)
    later = asyncio.create_task(other.stream.append(lease, frames=(frame(2), frame(3))))
    reader = asyncio.create_task(
        world.stream.tail(lease.execution_id, attempt_index=0, after=None, limit=1, wait_ms=0)
    )
    seen = await reader
    assert sequences(seen.frames) == [1]
    done, _ = await asyncio.wait({later}, timeout=0.3)
    assert not done, "it waits for the row"
    assert not (
        await world.stream.tail(lease.execution_id, attempt_index=0, after=seen.next_cursor)
    ).frames, "nothing with a later id is visible yet"
    await slow.commit()
    assert (await later).duplicates == 1
    page = await world.stream.tail(lease.execution_id, attempt_index=0, after=seen.next_cursor)
    assert sequences(page.frames) == [2, 3]
    await other.backend.close()


async def test_appends_at_the_same_time_share_statements(world: World) -> None:
    """Appends to several executions that come together are sent together, each with an outcome of its own."""
    held = await leases(world, 12)
    gone = held.pop()
    await world.execution.complete(gone)
    backend: Any = world.backend
    batches = backend._store.calls._batches
    send, sent = batches._send, list[int]()

    async def counting(statement: str, arguments: Any, deadline: float) -> Any:
        if "stream_append" in statement:
            sent.append(len(arguments[0]))
        return await send(statement, arguments, deadline)

    batches._send = counting
    try:
        outcomes = await world.race(
            *(
                world.stream.append(lease, frames=mixed(1, 5 + number))
                for number, lease in enumerate(held)
                if number
            ),
            world.stream.append(held[0], frames=(frame(7),)),
            world.stream.append(gone, frames=(frame(1),)),
        )
    finally:
        batches._send = send
    *good, gap, closed = outcomes
    assert isinstance(gap, FrameSequenceGap)
    assert closed.code == "stream_closed"
    assert [outcome.frame_count for outcome in good] == [5 + number for number in range(1, len(held))]
    for number, lease in enumerate(held[1:], 1):
        found = await world.frames(lease.execution_id, 0)
        assert sequences(found) == list(range(1, 6 + number))
        assert [item.mode for item in found] == [item.mode for item in mixed(1, 5 + number)]
    assert sum(sent) == 12
    assert len(sent) < 12


async def test_an_append_is_one_round_trip_without_a_summary(world: World) -> None:
    """Durable and lossy frames cost one statement; a summary frame costs one look more."""
    lease = await world.leased()
    backend: Any = world.backend
    calls = backend._store.calls
    run, statements = calls._run, list[str]()

    async def counting(statement: str, *arguments: Any, **named: Any) -> Any:
        statements.append(statement)
        return await run(statement, *arguments, **named)

    calls._run = counting
    try:
        await world.stream.append(lease, frames=(frame(1), frame(2, mode=LOSSY, ttl_ms=5)))
        assert len(statements) == 1
        await world.stream.append(lease, frames=(frame(3, b"{}", mode=SUMMARY),))
        assert len(statements) == 3
        await world.stream.tail(lease.execution_id)
        assert len(statements) == 4
    finally:
        calls._run = run


async def test_racing_summaries_are_merged_once_each(world: World, place: str) -> None:
    """Two processes that append the same summary frames at once under one fence merge each of them once."""
    lease = await world.leased()
    other = World(await connect(place, clock=world.clock), world.clock)
    for number in range(1, 12):
        patch = f'{{"k{number}": {number}}}'.encode()
        made = (frame(number, patch, mode=SUMMARY),)
        outcomes = await world.race(
            *(way.stream.append(lease, frames=made) for way in (world, other, world, other))
        )
        assert sorted(outcome.duplicates for outcome in outcomes) == [0, 1, 1, 1]
        assert {outcome.summary_version for outcome in outcomes} == {number}
    found = await world.stream.read_summary(lease.execution_id, attempt_index=0)
    assert bytes(found.document).count(b"k") == 11
    await other.backend.close()


async def test_a_tail_wakes_at_once_on_another_process(world: World, place: str) -> None:
    """A tail waits on one connection to the store while another one appends: it is told, it does not poll."""
    lease = await world.leased()
    other = World(await connect(place, clock=world.clock), world.clock)
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(other.stream.tail(lease.execution_id, attempt_index=0, wait_ms=20_000))
    await asyncio.sleep(0.5)  # sleeps: until the tail listens; without that the first look finds the frame
    started = loop.time()
    await world.stream.append(lease, frames=(frame(1),))
    page = await waiting
    assert sequences(page.frames) == [1]
    assert loop.time() - started < 2
    await other.backend.close()


async def test_what_is_refused_leaves_nothing(world: World, raw: Any) -> None:
    """An append whose lease is over writes neither frames nor streams, and the one beside it is carried out."""
    lease, other = await leases(world, 2)
    await world.stream.append(lease, frames=(frame(1),))
    before = await raw.fetch("SELECT s.* FROM ff.stream s")
    world.clock.advance(5_000)
    await world.lease.renew(other, lease_ttl_ms=60_000)
    world.clock.advance(30_000)
    refused, done = await world.race(
        world.stream.append(lease, frames=(frame(2),)), world.stream.append(other, frames=(frame(1),))
    )
    assert isinstance(refused, StaleOwnerCannotAppend)
    assert done.frame_count == 1
    after = await raw.fetch("SELECT s.* FROM ff.stream s ORDER BY frame_count, seq")
    assert [row for row in after if row["seq"] == before[0]["seq"]] == before
    assert await kept(raw, lease) == [1, 0, 0]


async def test_frames_are_dropped_in_bounded_steps(world: World, raw: Any) -> None:
    """Frames go oldest first and as many at once as was said; counts and what readers are told agree at every step."""
    lease = await world.leased(policy=retrying(1, 0))
    await world.stream.append(lease, frames=mixed(1, 100))
    await world.execution.fail(lease)
    lease = await world.claim_one()
    await world.stream.append(lease, frames=mixed(1, 50))
    await world.execution.complete(lease)
    seq = await raw.fetchval("SELECT seq FROM ff.execution")
    left = 150
    while left:
        found = await raw.fetchrow("SELECT * FROM ff._drop_frames($1, NULL, 40)", seq)
        left -= found["dropped"]
        assert await raw.fetchval("SELECT count(*) FROM ff.frame") == left
        kept_now = await raw.fetchval(
            "SELECT sum(durable_kept + summary_kept + best_effort_kept) FROM ff.stream"
        )
        assert kept_now == left
        assert found["is_done"] == (left == 0)
        page = await world.stream.read(lease.execution_id, limit=1_000)
        assert page.trimmed
        assert not (await world.backend.maintenance.fsck()).findings
    ends = await raw.fetch("SELECT trimmed_ms = last_ms AND trimmed_seq = last_seq FROM ff.stream")
    assert [row[0] for row in ends] == [True, True]
