"""Listing executions: newest first, filtered, with a bound on what one call looks at."""

from __future__ import annotations

from typing import Any, Final

from flowfabric.backends import assets
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.execution import ExecutionList, ExecutionPage
from flowfabric.rules import execution as rules

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/listing.sql")
_SEQ_MAX: Final = 2**62


def list_executions(snapshot: Snapshot, command: ExecutionList) -> ExecutionPage:
    """Read one page. The cursor is the row number below which the next page starts."""
    before = _start(snapshot, command)
    low, high = _prefix_range(command.id_prefix)
    tag_key, _, tag_value = (command.tag or "").partition("=")
    parameters: dict[str, Any] = {
        "before": before,
        "looked_at": limits.LIST_LOOKED_AT_MAX,
        "page": command.limit + 1,
        "low": low,
        "high": high,
        "namespace": command.namespace,
        "lane": command.lane,
        "kind": command.kind,
        "public_state": command.state.value if command.state is not None else None,
        "created_from_ms": command.created_from_ms,
        "created_before_ms": command.created_before_ms,
        "tag_path": f'$.tags."{tag_key}"' if command.tag is not None else None,
        "tag_value": tag_value if command.tag is not None and "=" in command.tag else None,
    }
    few = low is not None and _are_few(snapshot, low, high)
    found = snapshot.execute(_SQL["page_by_prefix" if few else "page"], parameters).fetchall()
    page = found[: command.limit]
    executions = tuple(rules.info(rows.loaded_from(definition, record)) for _, definition, record in page)
    next_cursor: str | None = None
    if len(found) > command.limit:
        next_cursor = str(page[-1][0])
    elif not few:
        next_cursor = _rest(snapshot, command, before)
    return ExecutionPage(executions=executions, next_cursor=next_cursor)


def _start(snapshot: Snapshot, command: ExecutionList) -> int:
    """Return the row number below which the page starts."""
    if command.cursor is not None:
        if not command.cursor.isdigit() or len(command.cursor) > 18:
            raise InvalidInput("cursor is not one that execution.list returned", field="cursor")
        return int(command.cursor)
    if command.created_before_ms is None:
        return _SEQ_MAX
    # Time never goes back in a store, so the instants of creation grow with the row numbers.
    low, high = 0, (snapshot.first(_SQL["newest"])[0] or 0) + 1
    while low < high:
        middle = (low + high) // 2
        found = snapshot.first(_SQL["created_at"], (middle,))
        if found is not None and found[0] >= command.created_before_ms:
            high = middle
        else:
            low = middle + 1
    return high


def _rest(snapshot: Snapshot, command: ExecutionList, before: int) -> str | None:
    """Return where to go on after a page that looked at as many entries as it may, or None at the end."""
    lowest, count = snapshot.first(_SQL["looked_at"], (before, limits.LIST_LOOKED_AT_MAX))
    if count < limits.LIST_LOOKED_AT_MAX:
        return None
    if command.created_from_ms is not None:
        oldest = snapshot.first(_SQL["created_at"], (lowest,))
        if oldest is not None and oldest[0] < command.created_from_ms:
            return None
    return str(lowest)


def _prefix_range(prefix: str | None) -> tuple[bytes | None, bytes | None]:
    """Return the lowest and highest uuid that begin with this text."""
    if prefix is None:
        return None, None
    digits = prefix.replace("-", "")
    dashes = (8, 13, 18, 23)
    if any((prefix[at] == "-") != (at in dashes) for at in range(len(prefix))):
        # No uuid looks like this: an empty range.
        return b"\x01", b"\x00"
    return bytes.fromhex(digits.ljust(32, "0")), bytes.fromhex(digits.ljust(32, "f"))


def _are_few(snapshot: Snapshot, low: bytes, high: bytes | None) -> bool:
    most = limits.LIST_LOOKED_AT_MAX
    return snapshot.first(_SQL["count_prefix"], (low, high, most + 1))[0] <= most
