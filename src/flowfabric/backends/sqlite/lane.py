"""Lanes in SQLite."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from flowfabric.backends import assets
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.backends.sqlite.writer import Transaction, Writer
from flowfabric.contract.lane import LaneList, LanePage, LaneSetState, LaneStateSet
from flowfabric.rules import lane as rules

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/lane.sql")


class SqliteLanes:
    """Operations on lanes."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def list(self, command: LaneList) -> LanePage:
        """List lanes by name."""
        command.check()
        return await self._readers.read(lambda snapshot: _list(snapshot, command))

    async def set_state(self, command: LaneSetState) -> LaneStateSet:
        """Set a lane's state; it acts on the next claim or create."""
        command.check()

        def run(transaction: Transaction) -> LaneStateSet:
            existing = transaction.catalog.lane(transaction, command.lane)
            decision = rules.set_state(existing, command, transaction.now_ms)
            if decision.lane != existing:
                transaction.catalog.store_lane(transaction, decision.lane)
                transaction.news.lanes.add(command.lane)
            return decision.reply

        return await self._writer.write(run)


def _list(snapshot: Snapshot, command: LaneList) -> LanePage:
    """The cursor is the name of the last lane on the page."""
    found = snapshot.all(_SQL["page"], (command.cursor or "", command.limit + 1))
    page = found[: command.limit]
    return LanePage(
        lanes=tuple(replace(rows.decode_lane(record), routes=routes) for record, routes in page),
        next_cursor=rows.decode_lane(page[-1][0]).lane if len(found) > command.limit else None,
    )
