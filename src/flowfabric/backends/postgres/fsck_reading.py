"""Statements by their names, each with a deadline, inside a transaction that somebody else ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flowfabric.backends.postgres.driver import Connection, Record

TIMEOUT_S: Final = 60.0
"""Longer than the server takes for any statement: after that it is gone."""


class Reading:
    """A transaction under way."""

    def __init__(self, connection: Connection, sql: Mapping[str, str]) -> None:
        self._connection = connection
        self._sql = sql

    async def fetch(self, name: str, *arguments: Any) -> list[Record]:
        """Execute a named statement and return its rows."""
        return await self._connection.fetch(self._sql[name], *arguments, timeout=TIMEOUT_S)
