"""stream.read_summary: the document that an attempt's merge patches add up to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.lease import Lease
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import NoSummary
from tests.conformance import situations
from tests.conformance.world import World, frame, retrying


async def patch(world: World, lease: Lease, sequence: int, document: Any) -> Any:
    """Append one merge patch."""
    data = json.dumps(document).encode()
    return await world.stream.append(lease, frames=(frame(sequence, data, mode=FrameMode.SUMMARY),))


async def document(world: World, lease: Lease) -> Any:
    """Read the document."""
    return json.loads(bytes((await world.stream.read_summary(lease)).document))


async def test_patches_add_up(world: World) -> None:
    """Each patch is merged, counted as a version, and kept as a frame that carries it.

    Acceptance: summary-merges-patches
    """
    lease = await world.leased()
    first_ms = world.now_ms
    reply = await patch(world, lease, 1, {"a": 1, "b": {"c": 1, "d": [1, 2]}})
    assert reply.summary_version == 1
    world.clock.advance(5)
    reply = await patch(world, lease, 2, {"a": None, "b": {"d": [3]}, "e": "new"})
    assert reply.summary_version == 2
    summary = await world.stream.read_summary(lease)
    assert json.loads(bytes(summary.document)) == {"b": {"c": 1, "d": [3]}, "e": "new"}
    assert (summary.version, summary.patch_kind) == (2, "json_merge_patch")
    assert (summary.first_applied_at_ms, summary.last_updated_at_ms) == (first_ms, world.now_ms)
    frames = await world.frames(lease.execution_id, 0)
    assert [(item.mode.value, item.summary_version) for item in frames] == [("summary", 1), ("summary", 2)]


async def test_a_null_is_stored_by_its_sentinel(world: World) -> None:
    """`null` deletes; the string `__ff_null__` as a value stores a null.

    Acceptance: summary-null-sentinel
    """
    lease = await world.leased()
    await patch(world, lease, 1, {"a": "__ff_null__", "b": {"c": "__ff_null__"}, "d": 1})
    await patch(world, lease, 2, {"d": None})
    assert await document(world, lease) == {"a": None, "b": {"c": None}}


async def test_without_summary_frames_there_is_none(world: World) -> None:
    """Attempts without summary frames, and attempts that do not exist, have no summary.

    Acceptance: no-summary-is-none
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1),))
    for index in (0, 7):
        assert await world.stream.read_summary(lease, attempt_index=index) == NoSummary()


async def test_it_survives_the_trimming_of_its_frames(world: World) -> None:
    """Of summary frames the latest 64 are kept; the document holds all of them.

    Acceptance: summary-survives-trimming
    """
    lease = await world.leased()
    for number in range(1, limits.SUMMARY_FRAMES_KEPT + 11):
        await patch(world, lease, number, {f"k{number}": number})
    frames = await world.frames(lease.execution_id, 0)
    assert len(frames) == limits.SUMMARY_FRAMES_KEPT
    assert len(await document(world, lease)) == limits.SUMMARY_FRAMES_KEPT + 10


async def test_it_survives_the_end(world: World) -> None:
    """After the end the document is still there; a retry starts one of its own."""
    lease = await world.leased(policy=retrying(delay_ms=0))
    await patch(world, lease, 1, {"a": 1})
    await world.execution.fail(lease)
    retry = await world.claim_one()
    await patch(world, retry, 1, {"b": 2})
    await world.execution.complete(retry)
    assert await document(world, lease) == {"a": 1}
    assert await document(world, retry) == {"b": 2}


async def test_several_patches_in_one_call_apply_in_order(world: World) -> None:
    """Patches of one call apply one after the other; other frames among them do not count as versions."""
    lease = await world.leased()
    frames = (
        frame(1, b'{"a": 1}', mode=FrameMode.SUMMARY),
        frame(2),
        frame(3, b'{"a": 2, "b": 1}', mode=FrameMode.SUMMARY),
    )
    reply = await world.stream.append(lease, frames=frames)
    assert (reply.summary_version, reply.frame_count) == (2, 3)
    assert await document(world, lease) == {"a": 2, "b": 1}


async def test_a_repeated_patch_is_applied_once(world: World) -> None:
    """The same append again changes neither document nor version."""
    lease = await world.leased()
    await patch(world, lease, 1, {"a": [1]})
    await world.unchanged(patch(world, lease, 1, {"a": [1]}))
    assert (await world.stream.read_summary(lease)).version == 1


async def test_one_bad_patch_applies_none(world: World) -> None:
    """With one malformed patch among good ones nothing of the call is applied."""
    lease = await world.leased()
    frames = (
        frame(1, b'{"a": 1}', mode=FrameMode.SUMMARY),
        frame(2, b"[]", mode=FrameMode.SUMMARY),
    )
    await world.refused(InvalidInput, world.stream.append(lease, frames=frames))
    assert await world.stream.read_summary(lease) == NoSummary()


@pytest.mark.parametrize(("depth", "accepted"), [(limits.SUMMARY_DEPTH_MAX, True), (30, False)])
async def test_the_depth_is_bounded(world: World, depth: int, accepted: bool) -> None:
    """A patch nested 16 deep is applied, a deeper one refused.

    Acceptance: summary-depth-is-bounded
    """
    lease = await world.leased()
    nested: Any = {}
    for _ in range(depth - 1):
        nested = {"a": nested}
    if accepted:
        await patch(world, lease, 1, nested)
        assert await document(world, lease) == nested
    else:
        await world.refused(InvalidInput, patch(world, lease, 1, nested))


@pytest.mark.parametrize("index", [-1, limits.COUNT_MAX + 1])
async def test_the_index_is_bounded(world: World, index: int) -> None:
    """A negative or far too large index is refused."""
    execution_id = await situations.waiting(world)
    await world.refused(InvalidInput, world.stream.read_summary(execution_id, attempt_index=index))
