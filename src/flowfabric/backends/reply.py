"""Refusals that a store's functions return as values become exceptions here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowfabric.contract.errors import Corrupt, Detail, FlowFabricError, from_code


def text(value: Any) -> str:
    """Return a reply's text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _detail(value: Any) -> Detail:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or isinstance(value, (int, float, bool, str)):
        return value
    if isinstance(value, list):
        return [text(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    raise Corrupt("a function refused with details that cannot be read")


def refusal(code: str, message: Any, details: Sequence[Any]) -> FlowFabricError:
    """Build the error that a returned code names; `details` are names and values in turn."""
    names = [text(name) for name in details[::2]]
    found = dict(zip(names, (_detail(value) for value in details[1::2]), strict=True))
    return from_code(code, text(message) if message else None, found)
