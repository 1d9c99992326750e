"""The summary document of an attempt: how merge patches add up to it.

Pure functions of document and patch; when a summary frame is accepted, and what is stored, is for the rules. What must
stay true: every backend merges with these functions, so that a document is the same bytes everywhere.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from flowfabric.contract import limits

NULL_SENTINEL: Final = "__ff_null__"
"""A leaf string in a merge patch that stores a JSON null, which a plain null cannot (it deletes)."""


class PatchError(ValueError):
    """The merge patch cannot be applied."""


def merge_patch(document: Any, patch: Any, depth: int = 1) -> Any:
    """Apply an RFC 7396 merge patch; the string `__ff_null__` as a value stores a null."""
    if depth > limits.SUMMARY_DEPTH_MAX + 1:
        raise PatchError("patch_depth_exceeded")
    if not isinstance(patch, dict):
        return None if patch == NULL_SENTINEL else patch
    merged: dict[str, Any] = dict(document) if isinstance(document, dict) else {}  # pyright: ignore[reportUnknownArgumentType]
    for key, value in patch.items():  # pyright: ignore[reportUnknownVariableType]
        if value is None:
            merged.pop(key, None)  # pyright: ignore[reportUnknownArgumentType]
        else:
            merged[key] = merge_patch(merged.get(key), value, depth + 1)  # pyright: ignore[reportUnknownArgumentType]
    return merged


def decode_patch(data: bytes) -> dict[str, Any]:
    """Read a merge patch, whose root is an object."""
    try:
        patch: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise PatchError("not well-formed JSON") from error
    if not isinstance(patch, dict):
        raise PatchError("the root must be an object")
    return patch  # pyright: ignore[reportUnknownVariableType]
