"""Listing executions in Postgres: newest first, filtered, with a bound on what one call looks at.

The order is that of the row numbers, which executions get when they are created. Concurrent creates take their
instant and their number independently, so instants grow with the numbers only within `SLACK_MS`: they decide where to
begin and to stop looking with that much to spare, and every entry is compared exactly. What must stay true: what is
shown and how far was looked come from one state of the store, so that pages lose and repeat nothing of what is there
all the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flowfabric.backends.postgres.calling import Calls
from flowfabric.backends.postgres.record import loaded, row_of
from flowfabric.backends.postgres.store import Store
from flowfabric.backends.vectors import VECTORS
from flowfabric.contract import limits, projections
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.execution import ExecutionInfo, ExecutionList, ExecutionPage
from flowfabric.contract.states import PublicState

SLACK_MS: Final = 10_000
"""How far instants of creation and row numbers may disagree: as long as a create may take."""
_SEQ_MAX: Final = 2**62
_UUID_DASHES: Final = (8, 13, 18, 23)
_VECTORS: Final = {
    state: [number for number, vector in enumerate(VECTORS) if vector.public_state is state]
    for state in PublicState
}


class Listing:
    """Lists executions of one store."""

    def __init__(self, store: Store) -> None:
        self._calls: Final[Calls] = store.calls
        self._sql: Final[Mapping[str, str]] = store.sql("sql/queries/listing.sql")

    async def list(self, command: ExecutionList) -> ExecutionPage:
        """List executions, newest first. The cursor is the row number below which the next page starts."""
        command.check()
        before = await self._start(command)
        looked_at = limits.LIST_LOOKED_AT_MAX if _is_filtered(command) else command.limit + 1
        bounds = prefix_range(command.id_prefix)
        if command.id_prefix is not None and bounds is None:
            return ExecutionPage(executions=(), next_cursor=None)
        low, high = bounds if bounds is not None else (None, None)
        key, mark, value = (command.tag or "").partition("=")
        arguments = (
            before,
            looked_at,
            command.limit + 1,
            low,
            high,
            command.namespace,
            command.lane,
            command.kind,
            _VECTORS[command.state] if command.state is not None else None,
            command.created_from_ms,
            command.created_before_ms,
            key if command.tag is not None else None,
            value if mark else None,
        )
        if low is not None and high is not None and await self._are_few(low, high):
            found = await self._calls.rows(self._sql["page_by_prefix"], *arguments)
            rest: int | None = None
        else:
            found = await self._calls.rows(self._sql["page"], *arguments)
            rest = _rest(command, found[0], looked_at)
            if found[0]["seq"] is None:
                found = []
        page = found[: command.limit]
        if len(found) > command.limit:
            rest = page[-1]["seq"]
        return ExecutionPage(
            executions=tuple(_info(row) for row in page), next_cursor=str(rest) if rest is not None else None
        )

    async def _start(self, command: ExecutionList) -> int:
        """Return the row number below which the page starts."""
        if command.cursor is not None:
            if not (command.cursor.isascii() and command.cursor.isdigit()) or len(command.cursor) > 18:
                raise InvalidInput("cursor is not one that execution.list returned", field="cursor")
            return int(command.cursor)
        if command.created_before_ms is None:
            return _SEQ_MAX
        found = await self._calls.value(self._sql["first_since"], command.created_before_ms + SLACK_MS)
        return int(found)

    async def _are_few(self, low: str, high: str) -> bool:
        most = limits.LIST_LOOKED_AT_MAX
        return await self._calls.value(self._sql["count_prefix"], low, high, most + 1) <= most


def prefix_range(prefix: str | None) -> tuple[str, str] | None:
    """Return the lowest and highest uuid that begin with this text; None when there is none."""
    if prefix is None or any((prefix[at] == "-") != (at in _UUID_DASHES) for at in range(len(prefix))):
        return None
    low, high = (prefix.replace("-", "").ljust(32, digit) for digit in "0f")
    return _dashed(low), _dashed(high)


def _dashed(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _rest(command: ExecutionList, row: Any, looked_at: int) -> int | None:
    """Return where to go on after a page that looked at as many entries as it may, or None at the end."""
    if row["looked_at"] < looked_at:
        return None
    oldest_ms, from_ms = row["oldest_ms"], command.created_from_ms
    if from_ms is not None and oldest_ms is not None and oldest_ms < from_ms - SLACK_MS:
        return None
    return int(row["lowest"])


def _info(row: Any) -> ExecutionInfo:
    return projections.info(loaded(row_of(row), row["document"]))


def _is_filtered(command: ExecutionList) -> bool:
    return any(
        value is not None
        for value in (
            command.namespace,
            command.lane,
            command.kind,
            command.state,
            command.tag,
            command.created_from_ms,
            command.created_before_ms,
            command.id_prefix,
        )
    )
