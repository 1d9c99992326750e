"""Lanes in Postgres: one row each; claims and creates read it inside their functions."""

from __future__ import annotations

from flowfabric.backends.postgres.store import Store
from flowfabric.contract.ids import Lane
from flowfabric.contract.lane import LaneInfo, LaneList, LanePage, LaneSetState, LaneStateSet
from flowfabric.contract.states import LaneState


class PostgresLanes:
    """Operations on lanes."""

    def __init__(self, store: Store) -> None:
        self._calls = store.calls
        self._sql = store.sql("sql/queries/lane.sql")

    async def list(self, command: LaneList) -> LanePage:
        """List lanes by name. The cursor is the name of the last lane on the page."""
        command.check()
        found = await self._calls.rows(self._sql["page"], command.cursor or "", command.limit + 1)
        lanes = tuple(
            LaneInfo(
                lane=Lane(row["lane"]),
                state=LaneState(row["state"]),
                created_at_ms=row["created_at_ms"],
                changed_at_ms=row["changed_at_ms"],
                routes=row["routes"],
            )
            for row in found[: command.limit]
        )
        return LanePage(lanes=lanes, next_cursor=lanes[-1].lane if len(found) > command.limit else None)

    async def set_state(self, command: LaneSetState) -> LaneStateSet:
        """Set a lane's state; it acts on the next claim or create."""
        command.check()
        (before,) = await self._calls.call("lane_set_state", command.lane, command.state.value)
        return LaneStateSet(lane=command.lane, state=command.state, previous=LaneState(before))
