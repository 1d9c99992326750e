"""Rules of streams: who may append, frame ids, what is trimmed, the summary document."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec.structs import replace

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    DocumentTooLarge,
    FrameSequenceGap,
    InvalidInput,
    Refused,
    StaleOwnerCannotAppend,
    StreamClosed,
)
from flowfabric.contract.execution import ExecutionRecord
from flowfabric.contract.payloads import Fence
from flowfabric.contract.states import FrameMode, LifecyclePhase, OwnershipState
from flowfabric.contract.stream import FrameInput, FramesAppended, StreamAppend, StreamRecord
from flowfabric.contract.summary import PatchError, decode_patch, merge_patch
from flowfabric.rules.decision import Loaded


class NewFrame(msgspec.Struct, frozen=True):
    """One frame to store."""

    ms: int
    seq: int
    frame: FrameInput
    summary_version: int | None


class AppendDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What to write, and what to answer."""

    refusal: Refused | None = None
    reply: FramesAppended | None = None
    stream: StreamRecord | None = None
    """Store this as the attempt's stream record; absent: nothing changes."""
    frames: tuple[NewFrame, ...] = ()
    trim: tuple[tuple[FrameMode, int], ...] = ()
    """Remove this many of the oldest frames of a mode, after the insert. Of durable and summary frames the store
    notes the newest removed id in `trimmed_ms`, `trimmed_seq`."""
    record: ExecutionRecord | None = None
    """Store this as the execution's record: its stream timer changed."""


def owner_refusal(loaded: Loaded, attempt_index: int, fence: Fence | None, now_ms: int) -> Refused | None:
    """Refuse whoever is not the holder of the live lease on the attempt whose stream this is."""
    record = loaded.record
    if record.state.lifecycle_phase is not LifecyclePhase.ACTIVE:
        return StreamClosed(public_state=record.state.public_state.value)
    lease, attempt = record.lease, record.attempt
    definition = loaded.definition
    if (
        fence is None
        or lease is None
        or attempt is None
        or record.state.ownership_state is not OwnershipState.LEASED
        or lease.expires_at_ms <= now_ms
        or attempt.attempt_index != attempt_index
        or attempt.attempt_id != fence.attempt_id
        or lease.lease_id != fence.lease_id
        or lease.lease_epoch != fence.lease_epoch
        or (fence.lane is not None and fence.lane != definition.lane)
        or (fence.route is not None and fence.route != definition.route)
    ):
        return StaleOwnerCannotAppend()
    if attempt.stream_closed_at_ms is not None:
        return StreamClosed(closed_at_ms=attempt.stream_closed_at_ms)
    return None


def _best_effort(stream: StreamRecord, count: int, ttl_ms: int, now_ms: int) -> StreamRecord:
    """Update the smoothed append rate and how many lossy frames it justifies keeping."""
    if stream.rate_at_ms is None:
        rate = limits.BEST_EFFORT_FRAMES_MIN / (ttl_ms / 1_000 * 2)
    else:
        elapsed_s = max(now_ms - stream.rate_at_ms, 1) / 1_000
        alpha = limits.BEST_EFFORT_RATE_ALPHA
        rate = alpha * (count / elapsed_s) + (1 - alpha) * stream.append_rate
    wanted = math.ceil(rate * ttl_ms / 1_000 * 2)
    return replace(
        stream,
        append_rate=rate,
        rate_at_ms=now_ms,
        best_effort_cap=max(limits.BEST_EFFORT_FRAMES_MIN, min(limits.BEST_EFFORT_FRAMES_MAX, wanted)),
        expires_at_ms=now_ms + 2 * ttl_ms,
    )


def append(loaded: Loaded, stream: StreamRecord | None, command: StreamAppend, now_ms: int) -> AppendDecision:
    """Append the frames that are new; frames appended before are skipped, a gap is refused."""
    refusal = owner_refusal(loaded, command.attempt_index, command.fence, now_ms)
    if refusal is not None:
        return AppendDecision(refusal=refusal)
    before = stream if stream is not None else StreamRecord()
    first = command.frames[0].sequence
    if first > before.last_sequence + 1:
        return AppendDecision(
            refusal=FrameSequenceGap(
                f"the next frame's sequence is {before.last_sequence + 1}, not {first}",
                expected=before.last_sequence + 1,
            )
        )
    fresh = command.frames[before.last_sequence + 1 - first :]
    duplicates = len(command.frames) - len(fresh)
    if not fresh:
        return AppendDecision(reply=_reply(before, duplicates))
    ms, seq = before.last_ms, before.last_seq
    document: dict[str, Any] | None = None
    version = before.version
    new: list[NewFrame] = []
    for frame in fresh:
        ms, seq = (now_ms, 0) if now_ms > ms else (ms, seq + 1)
        summary_version: int | None = None
        if frame.mode is FrameMode.SUMMARY:
            try:
                patch = decode_patch(frame.payload.data)
                if document is None:
                    document = msgspec.json.decode(before.document)
                document = merge_patch(document, patch)
            except PatchError as error:
                return AppendDecision(refusal=InvalidInput(f"summary patch: {error}", field="payload"))
            version += 1
            summary_version = version
        new.append(NewFrame(ms, seq, frame, summary_version))
    after = replace(
        before,
        frame_count=before.frame_count + len(fresh),
        last_sequence=fresh[-1].sequence,
        last_ms=ms,
        last_seq=seq,
    )
    if document is not None:
        encoded = msgspec.json.encode(document)
        if len(encoded) > limits.SUMMARY_BYTES_MAX:
            return AppendDecision(refusal=DocumentTooLarge(limit_bytes=limits.SUMMARY_BYTES_MAX))
        after = replace(
            after,
            document=msgspec.Raw(encoded),
            version=version,
            first_applied_at_ms=before.first_applied_at_ms if before.version else now_ms,
            last_updated_at_ms=now_ms,
        )
    after, trim = _count(loaded, after, fresh, now_ms)
    record = loaded.record
    due_ms = record.stream_due_at_ms
    changed: ExecutionRecord | None = None
    if after.expires_at_ms is not None and (due_ms is None or after.expires_at_ms < due_ms):
        changed = replace(record, stream_due_at_ms=after.expires_at_ms)
    return AppendDecision(
        reply=_reply(after, duplicates), stream=after, frames=tuple(new), trim=trim, record=changed
    )


def _count(
    loaded: Loaded, stream: StreamRecord, fresh: tuple[FrameInput, ...], now_ms: int
) -> tuple[StreamRecord, tuple[tuple[FrameMode, int], ...]]:
    """Count the new frames by mode and say how many old ones each mode's bound removes."""
    policy = loaded.definition.policy.stream_policy
    maxlen = policy.retention_maxlen if policy is not None else limits.STREAM_MAXLEN_DEFAULT
    durable = sum(1 for frame in fresh if frame.mode is FrameMode.DURABLE)
    summary = sum(1 for frame in fresh if frame.mode is FrameMode.SUMMARY)
    lossy = [frame for frame in fresh if frame.mode is FrameMode.BEST_EFFORT]
    if lossy:
        stream = _best_effort(stream, len(lossy), lossy[-1].ttl_ms or limits.BEST_EFFORT_TTL_MIN_MS, now_ms)
    counts = {
        FrameMode.DURABLE: (stream.durable_kept + durable, maxlen),
        FrameMode.SUMMARY: (stream.summary_kept + summary, limits.SUMMARY_FRAMES_KEPT),
        FrameMode.BEST_EFFORT: (stream.best_effort_kept + len(lossy), stream.best_effort_cap),
    }
    trim = tuple((mode, kept - most) for mode, (kept, most) in counts.items() if kept > most)
    kept = {mode: min(count, most) for mode, (count, most) in counts.items()}
    lasting = kept[FrameMode.DURABLE] + kept[FrameMode.SUMMARY] > 0
    stream = replace(
        stream,
        durable_kept=kept[FrameMode.DURABLE],
        summary_kept=kept[FrameMode.SUMMARY],
        best_effort_kept=kept[FrameMode.BEST_EFFORT],
        expires_at_ms=None if lasting else stream.expires_at_ms,
    )
    return stream, trim


def _reply(stream: StreamRecord, duplicates: int) -> FramesAppended:
    return FramesAppended(
        last_frame_id=f"{stream.last_ms}-{stream.last_seq}",
        last_sequence=stream.last_sequence,
        frame_count=stream.frame_count,
        duplicates=duplicates,
        summary_version=stream.version or None,
    )
