"""Payloads: bytes with a media type, and the fence that proves who may act.

Payload bytes come back identical. How they look over JSON (`input`, or `input_base64` with `content_type`) is the
business of `flowfabric.contract.wire`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flowfabric.contract import ids
from flowfabric.contract.errors import InvalidInput, PartialFence
from flowfabric.contract.ids import AttemptId, Lane, LeaseId

JSON_CONTENT_TYPE: Final = "application/json"
BINARY_CONTENT_TYPE: Final = "application/octet-stream"


class Payload(msgspec.Struct, frozen=True):
    """Bytes and their media type."""

    data: bytes
    content_type: str = JSON_CONTENT_TYPE

    def check(self, field: str, bytes_max: int) -> None:
        """Refuse a payload that is too large or whose media type is malformed."""
        if len(self.data) > bytes_max:
            raise InvalidInput(f"{field} is at most {bytes_max} bytes", field=field)
        if self.content_type is not JSON_CONTENT_TYPE and self.content_type != JSON_CONTENT_TYPE:
            ids.check_content_type(self.content_type)


class Fence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Proof of holding one particular lease: all three parts, or the call is refused.

    `lane` and `route` come with the claim and go back with every call, so that a backend can find the execution's
    index entries without reading first; when given, they must match.
    """

    lease_id: LeaseId | None = None
    lease_epoch: int | None = None
    attempt_id: AttemptId | None = None
    lane: Lane | None = None
    route: str | None = None

    def check(self) -> None:
        """Refuse a fence with a part missing or malformed."""
        if self.lease_id is None or self.lease_epoch is None or self.attempt_id is None:
            raise PartialFence
        ids.check_uuid(self.lease_id, "lease_id")
        ids.check_uuid(self.attempt_id, "attempt_id")
        ids.check_range(self.lease_epoch, "lease_epoch", 0, 2**53 - 1)
