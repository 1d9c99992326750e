"""Rules of lanes."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from flowfabric.contract.ids import Lane
from flowfabric.contract.lane import LaneInfo, LaneSetState, LaneStateSet
from flowfabric.contract.states import LaneState


class LaneDecision(msgspec.Struct, frozen=True):
    """The lane to store and the answer."""

    lane: LaneInfo
    reply: LaneStateSet


def first_use(lane: Lane, now_ms: int) -> LaneInfo:
    """Build the lane that exists from its first use on."""
    return LaneInfo(lane=lane, state=LaneState.ACTIVE, created_at_ms=now_ms, changed_at_ms=now_ms, routes=0)


def set_state(existing: LaneInfo | None, command: LaneSetState, now_ms: int) -> LaneDecision:
    """Set a lane's state; setting the state it has changes nothing."""
    before = existing if existing is not None else first_use(command.lane, now_ms)
    after = before
    if before.state is not command.state:
        after = replace(before, state=command.state, changed_at_ms=now_ms)
    return LaneDecision(after, LaneStateSet(lane=command.lane, state=command.state, previous=before.state))
