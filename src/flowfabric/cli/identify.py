"""Shortened ids: the beginning of an execution's uuid stands for it as long as only one begins so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from flowfabric.contract.errors import ExecutionNotFound, Misuse

if TYPE_CHECKING:
    from flowfabric.client.facade import Client
    from flowfabric.contract.execution import ExecutionInfo
    from flowfabric.contract.ids import ExecutionId

SHORT_LENGTH: Final = 8
CANDIDATES_SHOWN: Final = 8
PAGES_MAX: Final = 1_000
_FULL: Final = re.compile(r"\{fp:[0-9]+\}:")
_PREFIX: Final = re.compile(r"[0-9a-f][0-9a-f-]{1,35}")


def short(execution_id: str) -> str:
    """Return the beginning of an id's uuid, as tables show it."""
    from flowfabric.contract.ids import execution_uuid

    return execution_uuid(execution_id)[:SHORT_LENGTH]


async def resolve(client: Client, text: str) -> ExecutionId:
    """Return the id that `text` stands for: a whole id, a uuid, or the beginning of one.

    Raises: `Misuse` when it is no such text or several begin so; `ExecutionNotFound` when none does.
    """
    from flowfabric.contract.ids import ExecutionId, parse_execution_id

    text = text.strip()
    if _FULL.match(text):
        parse_execution_id(text)
        return ExecutionId(text)
    prefix = text.lower()
    if _PREFIX.fullmatch(prefix) is None:
        raise Misuse(
            f"{text!r} is not an execution id",
            next="give the id that submit printed, or at least its first 2 characters; `flowfabric list` shows them",
        )
    found = await _beginning_with(client, prefix)
    if not found:
        raise ExecutionNotFound(f"no execution's id begins with {prefix}")
    if len(found) > 1:
        shown = ", ".join(
            f"{info.execution_id[-36:][: max(SHORT_LENGTH, len(prefix) + 4)]} ({info.kind}, {info.public_state})"
            for info in found[:CANDIDATES_SHOWN]
        )
        more = ", ..." if len(found) > CANDIDATES_SHOWN else ""
        raise Misuse(f"{prefix} is ambiguous: {shown}{more}", next="give more characters of the id")
    return found[0].execution_id


async def _beginning_with(client: Client, prefix: str) -> list[ExecutionInfo]:
    from flowfabric.contract.execution import ExecutionList

    found: list[ExecutionInfo] = []
    cursor: str | None = None
    for _ in range(PAGES_MAX):
        page = await client.stores.execution.list(
            ExecutionList(id_prefix=prefix, cursor=cursor, limit=CANDIDATES_SHOWN + 1)
        )
        found.extend(page.executions)
        cursor = page.next_cursor
        if cursor is None or len(found) > CANDIDATES_SHOWN:
            break
    return found
