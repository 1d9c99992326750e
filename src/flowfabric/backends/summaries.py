"""Summary frames on their way into a store that cannot merge documents itself.

The adapter merges upon the stream as it last saw it; the store takes what came out only while the stream is still
there. What must stay true: what is wrong with a patch is told to the store, which says it only if no other refusal
comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from flowfabric.contract import limits
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import FrameInput, StreamRecord
from flowfabric.contract.summary import PatchError, decode_patch, merge_patch

MERGES_MAX: Final = 8
"""How often a summary is merged again when the stream moved on meanwhile."""


class Merge(msgspec.Struct, frozen=True, kw_only=True):
    """What summary frames add up to, upon the stream as it was at `seen`."""

    seen: int
    version: int
    document: bytes | None = None
    """None: none of the frames that are new changes it, or there is a fault."""
    fault: str | None = None
    """Code of the refusal, unless another one comes first."""
    message: str = ""


def has_summary(frames: Sequence[FrameInput]) -> bool:
    """Say whether there is something to merge."""
    return any(frame.mode is FrameMode.SUMMARY for frame in frames)


def merge_frames(stream: StreamRecord, frames: Sequence[FrameInput]) -> Merge:
    """Apply the patches among the frames that are new to a stream's document.

    A gap is for the store to refuse: there is nothing to merge then.
    """
    fresh = frames[max(stream.last_sequence + 1 - frames[0].sequence, 0) :]
    base = Merge(seen=stream.last_sequence, version=stream.version)
    document: Any = None
    try:
        for frame in fresh:
            if frame.mode is not FrameMode.SUMMARY:
                continue
            patch = decode_patch(frame.payload.data)
            if document is None:
                document = msgspec.json.decode(stream.document)
            document = merge_patch(document, patch)
    except PatchError as error:
        return msgspec.structs.replace(base, fault="invalid_input", message=f"summary patch: {error}")
    if document is None:
        return base
    encoded = msgspec.json.encode(document)
    if len(encoded) > limits.SUMMARY_BYTES_MAX:
        return msgspec.structs.replace(base, fault="summary_too_large")
    return msgspec.structs.replace(base, document=encoded)


def summary_versions(merge: Merge | None, frames: Sequence[FrameInput]) -> list[int | None]:
    """Return the version that each frame makes: None for all but the summary frames that are new."""
    found: list[int | None] = []
    version = merge.version if merge is not None else 0
    for frame in frames:
        if merge is not None and frame.mode is FrameMode.SUMMARY and frame.sequence > merge.seen:
            version += 1
            found.append(version)
        else:
            found.append(None)
    return found
