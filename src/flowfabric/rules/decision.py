"""What a rule returns, and what it is given.

A rule never raises a refusal: it returns a `Decision` with one, because some refusals come with writes that must
survive (a late renewal records the expiry *and* is refused). A backend applies the writes of a decision, then answers
with its reply or raises its refusal.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

import msgspec

from flowfabric.contract.attempt import AttemptRecord
from flowfabric.contract.errors import Refused
from flowfabric.contract.execution import ExecutionRecord, Loaded
from flowfabric.contract.lease import LeaseEvent
from flowfabric.contract.payloads import Payload

__all__ = ["Decision", "Loaded"]

Reply = TypeVar("Reply")


class Decision(msgspec.Struct, Generic[Reply], frozen=True, kw_only=True):
    """What to write, and what to answer."""

    reply: Reply | None = None
    refusal: Refused | None = None
    """Answer with this instead of the reply, after the writes below."""
    record: ExecutionRecord | None = None
    """Store this; absent: the execution's record is unchanged."""
    superseded: AttemptRecord | None = None
    """Keep this former attempt beside the record, which holds a newer one."""
    events: tuple[LeaseEvent, ...] = ()
    """Append these to the execution's history (`event_id` is assigned by the store)."""
    result: Payload | None = None
    """Store this as the execution's result."""
    clear_result: bool = False
    delete: Literal["expired_frames", "frames", "execution"] | None = None
    """Remove the frames of lossy streams that expired, all the execution's frames, or the execution with everything
    that belongs to it."""
