"""Streams: merge patches, counts and what is trimmed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from flowfabric.contract import limits
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy, StreamPolicy
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import FrameInput, StreamAppend, StreamRecord
from flowfabric.contract.summary import NULL_SENTINEL, PatchError, merge_patch
from flowfabric.rules import stream
from tests.rules.driving import EXECUTION_ID, Drive, Step

# The examples published with the merge patch standard, (document, patch, result), for object patches.
PUBLISHED: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


@pytest.mark.parametrize(("document", "patch", "result"), PUBLISHED, ids=str)
def test_published_examples(document: Any, patch: Any, result: Any) -> None:
    """Merge patches give what the standard's examples give."""
    assert merge_patch(document, patch) == result


def _plain(value: Any) -> Any:
    """The standard's own algorithm, for values without nulls and sentinels."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if value == NULL_SENTINEL else value


@given(document=OBJECTS, patch=OBJECTS)
def test_a_patch_is_idempotent(document: dict[str, Any], patch: dict[str, Any]) -> None:
    """Applying a patch twice is applying it once, and neither input is changed."""
    copies = json.dumps([document, patch])
    once = merge_patch(document, patch)
    assert merge_patch(once, patch) == once
    assert json.dumps([document, patch]) == copies


@given(document=OBJECTS)
def test_an_empty_document_takes_everything(document: dict[str, Any]) -> None:
    """A document is the result of patching nothing with it."""
    assert merge_patch({}, document) == _plain(document)


@given(document=OBJECTS)
def test_nulls_delete_everything(document: dict[str, Any]) -> None:
    """Nulls for every key leave nothing."""
    assert merge_patch(document, dict.fromkeys(document)) == {}


def test_the_sentinel_is_a_null_only_as_a_value() -> None:
    """The sentinel stores a null as a value; as a key and inside lists it is plain text."""
    assert merge_patch({}, {"a": NULL_SENTINEL}) == {"a": None}
    assert merge_patch({}, {NULL_SENTINEL: 1, "l": [NULL_SENTINEL]}) == {
        NULL_SENTINEL: 1,
        "l": [NULL_SENTINEL],
    }


@pytest.mark.parametrize("extra", [0, 1, 50])
def test_depth_is_bounded(extra: int) -> None:
    """Objects nested as deep as the bound are merged, deeper ones refused."""
    nested: dict[str, Any] = {}
    for _ in range(limits.SUMMARY_DEPTH_MAX - 1 + extra):
        nested = {"a": nested}
    if extra:
        with pytest.raises(PatchError):
            for _ in range(2):
                merge_patch(nested, {"a": nested})
                merge_patch({}, {"a": {"a": nested}})
    else:
        assert merge_patch({}, nested) == nested


MODES = st.sampled_from(FrameMode)


@given(
    appends=st.lists(st.tuples(st.integers(0, 3_000), st.lists(MODES, min_size=1, max_size=30)), max_size=25),
    maxlen=st.integers(1, 40),
)
def test_counts_agree_with_what_is_kept(appends: list[tuple[int, list[FrameMode]]], maxlen: int) -> None:
    """Kept counts, trims and ids agree with a plain list of frames, and no mode evicts another."""
    policy = ExecutionPolicy(stream_policy=StreamPolicy(retention_maxlen=maxlen))
    drive = Drive(ExecutionCreate(kind="k", policy=policy))  # type: ignore[arg-type]
    drive.step(Step("lease.claim", 0, {"worker_id": "w", "lease_ttl_ms": 86_400_000}))
    record: StreamRecord | None = None
    kept: dict[FrameMode, list[tuple[int, int]]] = {mode: [] for mode in FrameMode}
    sequence, now_ms, last = 0, drive.now_ms, (0, -1)
    for wait_ms, modes in appends:
        now_ms += wait_ms
        frames = tuple(
            FrameInput(
                sequence=sequence + number + 1,
                payload=Payload(b"{}"),
                mode=mode,
                ttl_ms=1_000 if mode is FrameMode.BEST_EFFORT else None,
            )
            for number, mode in enumerate(modes)
        )
        command = StreamAppend(
            execution_id=EXECUTION_ID, attempt_index=0, fence=drive.fences[-1], frames=frames
        )
        command.check()
        decision = stream.append(drive.loaded, record, command, now_ms)
        assert decision.refusal is None and decision.stream is not None and decision.reply is not None
        record = decision.stream
        for new in decision.frames:
            assert (new.ms, new.seq) > last
            last = (new.ms, new.seq)
            kept[new.frame.mode].append(last)
        for mode, count in decision.trim:
            assert count > 0
            del kept[mode][:count]
        sequence += len(frames)
        assert record.frame_count == decision.reply.frame_count == sequence
        assert {
            FrameMode.DURABLE: record.durable_kept,
            FrameMode.SUMMARY: record.summary_kept,
            FrameMode.BEST_EFFORT: record.best_effort_kept,
        } == {mode: len(frames) for mode, frames in kept.items()}
        assert record.durable_kept <= maxlen and record.summary_kept <= limits.SUMMARY_FRAMES_KEPT
        assert limits.BEST_EFFORT_FRAMES_MIN <= record.best_effort_cap <= limits.BEST_EFFORT_FRAMES_MAX
        lasting = bool(kept[FrameMode.DURABLE] or kept[FrameMode.SUMMARY])
        assert (record.expires_at_ms is None) == (lasting or not kept[FrameMode.BEST_EFFORT])
