"""stream.append: frames in order, once, bounded. Fences are in `test_fences`."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    DocumentTooLarge,
    FrameSequenceGap,
    InvalidFrameType,
    InvalidInput,
    Refused,
    RetentionLimitExceeded,
    StaleOwnerCannotAppend,
)
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import StreamPolicy
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import FrameInput, FramesAppended
from tests.conformance.world import TTL_MS, World, frame, policy, retrying

BEST_EFFORT, SUMMARY = FrameMode.BEST_EFFORT, FrameMode.SUMMARY


async def test_frames_come_back_as_they_were_written(world: World) -> None:
    """Every field and byte of a frame can be read back, with its id and instant.

    Acceptance: frame-fields-round-trip
    """
    lease = await world.leased()
    given = FrameInput(
        sequence=1,
        payload=Payload(bytes(range(256)), "application/octet-stream"),
        frame_type="token batch",
        correlation_id="order 7",
    )
    reply = await world.stream.append(lease, frames=(given,))
    assert reply == FramesAppended(
        last_frame_id=f"{world.now_ms}-0", last_sequence=1, frame_count=1, duplicates=0, summary_version=None
    )
    (stored,) = await world.frames(lease.execution_id, 0)
    assert (stored.frame_id, stored.attempt_index, stored.sequence) == (reply.last_frame_id, 0, 1)
    assert (stored.payload, stored.frame_type, stored.correlation_id) == (
        given.payload,
        "token batch",
        "order 7",
    )
    assert (stored.mode, stored.at_ms, stored.ttl_ms) == ("durable", world.now_ms, None)


async def test_ids_increase_strictly(world: World) -> None:
    """Frame ids increase strictly within a millisecond, over time, and when the clock jumps back.

    Acceptance: frame-ids-increase-strictly
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1), frame(2)))
    world.clock.advance(5)
    await world.stream.append(lease, frames=(frame(3),))
    world.clock.advance(-3)
    await world.stream.append(lease, frames=(frame(4), frame(5)))
    ids = [
        tuple(int(part) for part in item.frame_id.split("-"))
        for item in await world.frames(lease.execution_id, 0)
    ]
    assert ids == sorted(set(ids)) and len(ids) == 5


async def test_a_repeated_append_adds_nothing(world: World) -> None:
    """The last append again answers the same id; frames known from before are counted as duplicates.

    Acceptance: repeated-append-is-deduplicated
    """
    lease = await world.leased()
    first = await world.stream.append(lease, frames=(frame(1), frame(2)))
    world.clock.advance(5)
    again = await world.unchanged(world.stream.append(lease, frames=(frame(1), frame(2))))
    assert (again.last_frame_id, again.last_sequence) == (first.last_frame_id, 2)
    assert (again.frame_count, again.duplicates) == (2, 2)
    mixed = await world.stream.append(lease, frames=(frame(2), frame(3)))
    assert (mixed.last_sequence, mixed.frame_count, mixed.duplicates) == (3, 3, 1)
    late = await world.unchanged(world.stream.append(lease, frames=(frame(1),)))
    assert (late.last_frame_id, late.duplicates) == (mixed.last_frame_id, 1)


async def test_a_gap_is_refused(world: World) -> None:
    """A sequence that skips is refused and names the one expected.

    Acceptance: frame-sequence-gap-is-refused
    """
    lease = await world.leased()
    await world.refused(FrameSequenceGap, world.stream.append(lease, frames=(frame(2),)), expected=1)
    await world.stream.append(lease, frames=(frame(1),))
    await world.refused(FrameSequenceGap, world.stream.append(lease, frames=(frame(3),)), expected=2)


async def test_racing_appends_of_the_same_frames_store_them_once(world: World) -> None:
    """The same append several times at once stores each frame once.

    Acceptance: racing-appends-store-once
    """
    lease = await world.leased()
    frames = (frame(1), frame(2), frame(3))
    replies = await world.race(*(world.stream.append(lease, frames=frames) for _ in range(5)))
    assert len({reply.last_frame_id for reply in replies}) == 1
    assert sorted(reply.duplicates for reply in replies) == [0, 3, 3, 3, 3]
    assert [item.sequence for item in await world.frames(lease.execution_id, 0)] == [1, 2, 3]


async def test_attempts_have_streams_of_their_own(world: World) -> None:
    """Each attempt counts its sequences from 1, and its frames are only in its own stream.

    Acceptance: streams-are-isolated-by-attempt
    """
    lease = await world.leased(policy=retrying(delay_ms=0))
    await world.stream.append(lease, frames=(frame(1, b'"a"'), frame(2, b'"b"')))
    await world.execution.fail(lease)
    retry = await world.claim_one()
    assert retry.frame_sequence == 0
    await world.stream.append(retry, frames=(frame(1, b'"c"'),))
    assert [item.payload.data for item in await world.frames(lease.execution_id, 1)] == [b'"c"']


async def test_only_to_the_attempt_under_the_fence(world: World) -> None:
    """Another attempt index than the lease's is refused."""
    lease = await world.leased()
    call = world.stream.append(lease, attempt_index=1, frames=(frame(1),))
    await world.refused(StaleOwnerCannotAppend, call)


async def test_the_lease_tells_where_the_stream_stands(world: World) -> None:
    """A claim that continues an attempt carries the last sequence, so that the SDK goes on after it."""
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1), frame(2)))
    await world.execution.wait_children(lease)
    assert (await world.claim_one()).frame_sequence == 2


# Bounds -----------------------------------------------------------------------------------------------------------


async def test_a_frame_holds_64_kib(world: World) -> None:
    """65,536 bytes are accepted, one more is refused and nothing of the call is stored.

    Acceptance: frame-size-is-bounded
    """
    lease = await world.leased()
    kind = "application/octet-stream"
    large = FrameInput(sequence=2, payload=Payload(b"x" * (limits.FRAME_BYTES_MAX + 1), kind))
    call = world.stream.append(lease, frames=(frame(1), large))
    await world.refused(RetentionLimitExceeded, call, limit_bytes=limits.FRAME_BYTES_MAX)
    whole = FrameInput(sequence=1, payload=Payload(b"x" * limits.FRAME_BYTES_MAX, kind))
    await world.stream.append(lease, frames=(whole,))
    assert (await world.frames(lease.execution_id, 0))[0].payload == whole.payload


@pytest.mark.parametrize("count", [1, limits.FRAMES_PER_APPEND_MAX])
async def test_a_call_holds_one_to_a_thousand_frames(world: World, count: int) -> None:
    """Up to 1,000 frames go in one call."""
    lease = await world.leased()
    reply = await world.stream.append(lease, frames=tuple(frame(number + 1) for number in range(count)))
    assert reply.frame_count == count
    assert len(await world.frames(lease.execution_id, 0)) == count


MALFORMED: dict[str, tuple[dict[str, Any] | None, type[Refused]]] = {
    "sequence 0": ({"sequence": 0}, InvalidInput),
    "sequence too large": ({"sequence": limits.INTEGER_MAX + 1}, InvalidInput),
    "type empty": ({"frame_type": ""}, InvalidFrameType),
    "type long": ({"frame_type": "t" * 65}, InvalidFrameType),
    "type blank first": ({"frame_type": " t"}, InvalidFrameType),
    "type not ASCII": ({"frame_type": "\u00e9"}, InvalidFrameType),
    "type newline": ({"frame_type": "a\nb"}, InvalidFrameType),
    "type reserved": ({"frame_type": "attempt_started"}, InvalidFrameType),
    "media type": ({"payload": Payload(b"", "x")}, InvalidInput),
    "ttl missing": ({"mode": BEST_EFFORT}, InvalidInput),
    "ttl zero": ({"mode": BEST_EFFORT, "ttl_ms": 0}, InvalidInput),
    "ttl long": ({"mode": BEST_EFFORT, "ttl_ms": limits.BEST_EFFORT_TTL_MAX_MS + 1}, InvalidInput),
    "ttl misplaced": ({"ttl_ms": 5}, InvalidInput),
    "correlation long": ({"correlation_id": "c" * 129}, InvalidInput),
    "summary not JSON": ({"mode": SUMMARY, "payload": Payload(b"{}", "text/plain")}, InvalidInput),
    "summary root": ({"mode": SUMMARY, "payload": Payload(b"[1]")}, InvalidInput),
    "summary broken": ({"mode": SUMMARY, "payload": Payload(b'{"a":')}, InvalidInput),
    "summary not UTF-8": ({"mode": SUMMARY, "payload": Payload(b'{"a":"\xff"}')}, InvalidInput),
    "no frames": (None, InvalidInput),
}


@pytest.mark.parametrize(("fields", "refusal"), MALFORMED.values(), ids=MALFORMED)
async def test_malformed_frames_are_refused(
    world: World, fields: dict[str, Any] | None, refusal: type[Refused]
) -> None:
    """A malformed frame is refused with its code and nothing of the call is stored, whatever came before it."""
    lease = await world.leased()
    if fields is None:
        await world.refused(refusal, world.stream.append(lease, frames=()))
        return
    await world.refused(
        refusal, world.stream.append(lease, frames=(FrameInput(**{"sequence": 1, **fields}),))
    )
    if "sequence" not in fields:
        second = FrameInput(**{"sequence": 2, **fields})
        await world.refused(refusal, world.stream.append(lease, frames=(frame(1), second)))


async def test_too_many_or_scattered_frames_are_refused(world: World) -> None:
    """More than 1,000 frames and sequences that do not follow each other are refused."""
    lease = await world.leased()
    many = tuple(frame(number + 1) for number in range(limits.FRAMES_PER_APPEND_MAX + 1))
    await world.refused(InvalidInput, world.stream.append(lease, frames=many))
    for sequences in ((1, 3), (2, 1), (1, 1)):
        scattered = tuple(frame(sequence) for sequence in sequences)
        await world.refused(InvalidInput, world.stream.append(lease, frames=scattered))


async def test_the_type_is_accepted_at_its_bounds(world: World) -> None:
    """Types of 1 and of 64 printable characters are accepted, and a correlation id of 128."""
    lease = await world.leased()
    frames = (frame(1, frame_type="t"), frame(2, frame_type="t" * 64, correlation_id="c" * 128))
    assert (await world.stream.append(lease, frames=frames)).frame_count == 2


async def test_guards_answer_in_their_order(world: World) -> None:
    """Malformed frames come before the owner, the owner before a gap."""
    lease = await world.leased()
    await world.lease.revoke(lease)
    bad_type = world.stream.append(lease, frames=(frame(5, frame_type=""),))
    await world.refused(InvalidFrameType, bad_type)
    large = Payload(b"x" * (limits.FRAME_BYTES_MAX + 1))
    both = FrameInput(sequence=5, payload=large, frame_type="")
    await world.refused(RetentionLimitExceeded, world.stream.append(lease, frames=(both,)))
    await world.refused(StaleOwnerCannotAppend, world.stream.append(lease, frames=(frame(5),)))


# What is kept -----------------------------------------------------------------------------------------------------


async def test_the_oldest_durable_frames_make_room(world: World) -> None:
    """Of durable frames the latest `retention_maxlen` are kept; the count of frames ever written goes on.

    Acceptance: maxlen-trims-the-oldest
    """
    lease = await world.leased(policy=policy(stream_policy=StreamPolicy(retention_maxlen=3)))
    reply = await world.stream.append(lease, frames=tuple(frame(number) for number in range(1, 6)))
    assert reply.frame_count == 5
    assert [item.sequence for item in await world.frames(lease.execution_id, 0)] == [3, 4, 5]
    await world.stream.append(lease, frames=(frame(6),))
    assert [item.sequence for item in await world.frames(lease.execution_id, 0)] == [4, 5, 6]


async def test_a_lossy_burst_never_evicts_durable_frames(world: World) -> None:
    """Best-effort frames make room among themselves; durable and summary frames stay.

    Acceptance: best-effort-never-evicts-durable
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1), frame(2, b"{}", mode=SUMMARY)))
    burst = tuple(frame(number, mode=BEST_EFFORT, ttl_ms=1_000) for number in range(3, 503))
    await world.stream.append(lease, frames=burst)
    kept = await world.frames(lease.execution_id, 0)
    assert [item.sequence for item in kept[:2]] == [1, 2]
    lossy = [item.sequence for item in kept[2:]]
    assert len(lossy) == limits.BEST_EFFORT_FRAMES_MIN
    assert lossy == list(range(503 - len(lossy), 503))


async def test_a_fast_lossy_stream_keeps_more(world: World) -> None:
    """How many best-effort frames are kept follows the rate of appends: it climbs above 64, falls back, is bounded.

    Acceptance: best-effort-window-follows-the-rate
    """
    lease = await world.leased(lease_ttl_ms=limits.LEASE_TTL_MAX_MS)
    sequence = 0

    async def kept(count: int, step_ms: int, ttl_ms: int = 10_000, size: int = 1) -> int:
        nonlocal sequence
        for _ in range(count):
            world.clock.advance(step_ms)
            frames = tuple(
                frame(sequence + number + 1, mode=BEST_EFFORT, ttl_ms=ttl_ms) for number in range(size)
            )
            sequence += size
            await world.stream.append(lease, frames=frames)
        return len(await world.frames(lease.execution_id, 0))

    fast = await kept(40, 10, size=20)
    assert fast > limits.BEST_EFFORT_FRAMES_MIN
    slow = await kept(80, 5_000)
    assert slow == limits.BEST_EFFORT_FRAMES_MIN
    bounded = await kept(20, 1, ttl_ms=60_000, size=1_000)
    assert limits.BEST_EFFORT_FRAMES_MAX * 0.9 < bounded <= limits.BEST_EFFORT_FRAMES_MAX


async def test_a_durable_frame_makes_the_stream_last(world: World) -> None:
    """A stream of lossy frames expires; one durable frame in it and it lasts.

    Acceptance: durable-frame-removes-the-expiry
    """
    lease = await world.leased(lease_ttl_ms=60_000)
    await world.stream.append(lease, frames=(frame(1, mode=BEST_EFFORT, ttl_ms=1_000),))
    await world.stream.append(lease, frames=(frame(2),))
    await world.advance(30_000)
    assert len(await world.frames(lease.execution_id, 0)) == 2


async def test_each_lossy_append_pushes_the_expiry(world: World) -> None:
    """The expiry of a lossy stream counts from its latest append."""
    lease = await world.leased(lease_ttl_ms=60_000)
    for number in range(1, 4):
        await world.stream.append(lease, frames=(frame(number, mode=BEST_EFFORT, ttl_ms=1_000),))
        await world.advance(1_500)
    assert len(await world.frames(lease.execution_id, 0)) == 3
    await world.advance(500)
    assert await world.frames(lease.execution_id, 0) == ()


async def test_the_document_is_bounded(world: World) -> None:
    """A patch that would make the summary document larger than 1 MiB is refused and changes nothing."""
    lease = await world.leased()
    big = "x" * 60_000
    for number in range(17):
        patch = f'{{"k{number}": "{big}"}}'.encode()
        await world.stream.append(lease, frames=(frame(number + 1, patch, mode=SUMMARY),))
    patch = f'{{"k17": "{big}"}}'.encode()
    call = world.stream.append(lease, frames=(frame(18, patch, mode=SUMMARY),))
    await world.refused(DocumentTooLarge, call, limit_bytes=limits.SUMMARY_BYTES_MAX)
    await world.stream.append(lease, frames=(frame(18, b'{"k0": null}', mode=SUMMARY),))


async def test_appending_is_no_heartbeat(world: World) -> None:
    """Appending does not extend the lease."""
    lease = await world.leased()
    world.clock.advance(TTL_MS - 1)
    await world.stream.append(lease, frames=(frame(1),))
    await world.advance(1)
    await world.refused(StaleOwnerCannotAppend, world.stream.append(lease, frames=(frame(2),)))
