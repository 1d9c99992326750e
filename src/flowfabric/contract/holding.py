"""What every backend works out of a fenced command before its store sees it: what counts as the same call again.

Pure functions of the command. Whether a call is a repetition, and whether it is accepted, is for the rules.
"""

from __future__ import annotations

import hashlib

from flowfabric.contract.execution import ExecutionComplete, ExecutionDelay, ExecutionFail
from flowfabric.contract.states import CancelSource


def complete_digest(command: ExecutionComplete) -> str:
    """Return what makes two completions the same; empty without a result."""
    payload = command.result
    return _digest(payload.content_type, payload.data) if payload is not None else ""


def fail_digest(command: ExecutionFail) -> str:
    """Return what makes two failures the same."""
    return _digest(command.failure_class.value, command.category, command.message)


def delay_digest(command: ExecutionDelay) -> str:
    """Return what makes two delays the same."""
    return _digest(command.delay_until_ms)


def actor_of(source: CancelSource, actor: str) -> str | None:
    """Name who acted, unless it was the holder of the lease."""
    return actor or (source.value if source is not CancelSource.LEASE_HOLDER else None)


def _digest(*parts: object) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass")
        hashed.update(len(data).to_bytes(8, "big"))
        hashed.update(data)
    return hashed.hexdigest()[:32]
