"""The driver as this package sees it: types for the parts of asyncpg that are used, which come without any.

Nothing else of the engine is here. What must stay true: only this module, `pool` and `errors` name the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, overload

import asyncpg  # pyright: ignore[reportMissingTypeStubs] -- it comes without

ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What the driver raises once there is a connection; a deadline that passed (TimeoutError) is an OSError."""


class Record(Protocol):
    """A row: by position, by name, or in turn."""

    @overload
    def __getitem__(self, key: str) -> Any: ...
    @overload
    def __getitem__(self, key: int) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def keys(self) -> Iterator[str]:
        """Return the names of the columns."""
        ...

    def values(self) -> Iterator[Any]:
        """Return the values."""
        ...

    def items(self) -> Iterator[tuple[str, Any]]:
        """Return names and values."""
        ...

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value by name."""
        ...


class Statement(Protocol):
    """A prepared statement."""

    async def fetch(self, *arguments: Any, timeout: float | None = None) -> list[Record]:
        """Execute it and return its rows."""
        ...


class Transaction(Protocol):
    """A transaction, or a savepoint inside one."""

    async def start(self) -> None:
        """Begin."""
        ...

    async def commit(self) -> None:
        """Commit."""
        ...

    async def rollback(self) -> None:
        """Roll back."""
        ...

    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *error: object) -> bool | None: ...


class Connection(Protocol):
    """One connection."""

    async def fetch(self, statement: str, *arguments: Any, timeout: float | None = None) -> list[Record]:
        """Execute a statement and return its rows."""
        ...

    async def fetchrow(self, statement: str, *arguments: Any, timeout: float | None = None) -> Record | None:
        """Execute a statement and return its first row."""
        ...

    async def fetchval(self, statement: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Execute a statement and return the first column of its first row."""
        ...

    async def execute(self, statement: str, *arguments: Any, timeout: float | None = None) -> str:
        """Execute a statement, or a script when there are no arguments."""
        ...

    async def prepare(
        self, statement: str, *, name: str | None = None, timeout: float | None = None
    ) -> Statement:
        """Prepare a statement; without a name it is parsed again whenever it is executed."""
        ...

    async def set_type_codec(
        self,
        name: str,
        *,
        schema: str,
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any],
        format: str,  # noqa: A002 -- the driver calls it so
    ) -> None:
        """Say how values of a type travel."""
        ...

    async def add_listener(self, channel: str, callback: Callable[[Any, int, str, str], None]) -> None:
        """Listen on a channel."""
        ...

    def add_termination_listener(self, callback: Callable[[Any], None]) -> None:
        """Call back when the connection is gone."""
        ...

    def transaction(self, *, isolation: str | None = None, readonly: bool = False) -> Transaction:
        """Return a transaction that has not begun."""
        ...

    def is_closed(self) -> bool:
        """Say whether it is gone."""
        ...

    async def close(self, *, timeout: float | None = None) -> None:
        """Close it in good order."""
        ...

    def terminate(self) -> None:
        """Close it at once."""
        ...


async def open_connection(
    dsn: str, *, timeout_s: float, target: str | None, settings: dict[str, str]
) -> Connection:
    """Open one connection; statements are prepared only when that is asked for. Raises: ERRORS, ValueError."""
    return await asyncpg.connect(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] -- untyped
        dsn,
        timeout=timeout_s,  # pyright: ignore[reportArgumentType] -- inferred from its default
        statement_cache_size=0,
        target_session_attrs=target,
        server_settings=settings,
    )
