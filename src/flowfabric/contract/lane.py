"""Lanes: named queues. A lane exists from first use."""

from __future__ import annotations

from typing import Protocol

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.ids import Lane
from flowfabric.contract.manifest import Kind, Repeatable, Scope, operation, reading
from flowfabric.contract.states import LaneState


class LaneInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One lane."""

    lane: Lane
    state: LaneState
    created_at_ms: int
    changed_at_ms: int
    """When its state was last set."""
    routes: int
    """Distinct combinations of kind and required capabilities seen, at most 1,000."""


class LaneList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """List lanes by name."""

    cursor: str | None = None
    limit: int = limits.PAGE_MAX

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_range(self.limit, "limit", 1, limits.PAGE_MAX)
        if self.cursor is not None:
            ids.check_lane(self.cursor)


class LanePage(msgspec.Struct, frozen=True, kw_only=True):
    """Lanes in the order of their names."""

    lanes: tuple[LaneInfo, ...]
    next_cursor: str | None


class LaneSetState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Set a lane's state; a lane that does not exist yet is created in that state."""

    lane: Lane
    state: LaneState

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.check_lane(self.lane)


class LaneStateSet(msgspec.Struct, frozen=True, kw_only=True):
    """The lane's state now and before."""

    lane: Lane
    state: LaneState
    previous: LaneState


class LaneStore(Protocol):
    """Operations on lanes."""

    @reading(
        "GET /v1/lanes",
        refuses=(InvalidInput,),
        paging=True,
    )
    async def list(self, command: LaneList) -> LanePage:
        """List lanes and their states, by name."""
        ...

    @operation(
        "PUT /v1/lanes/{lane}/state",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput,),
    )
    async def set_state(self, command: LaneSetState) -> LaneStateSet:
        """Pause, drain, disable or resume a lane.

        Paused lanes take creates and give no claims; draining lanes give claims and take no creates; disabled lanes
        do neither. It acts on the next claim or create.
        """
        ...
