"""Creating executions inside a transaction that belongs to an application: what a backend that can do it offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flowfabric.contract.errors import FlowFabricError
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreated, ExecutionDuplicate

Outcome = ExecutionCreated | ExecutionDuplicate | FlowFabricError


class Inside(Protocol):
    """A transaction of an application's, on one connection.

    Errors of the connection itself are the driver's own: what becomes of the transaction is for the application.
    """

    @property
    def is_async(self) -> bool:
        """Whether the connection is awaited; the methods that match are to be used."""
        ...

    async def now_ms(self) -> int:
        """Return the store's time."""
        ...

    async def create_many(self, commands: Sequence[ExecutionCreate]) -> list[Outcome]:
        """Create executions that exist once the transaction is committed; refusals are values."""
        ...

    def now_ms_sync(self) -> int:
        """Return the store's time, on a connection that blocks."""
        ...

    def create_many_sync(self, commands: Sequence[ExecutionCreate]) -> list[Outcome]:
        """As `create_many`, on a connection that blocks."""
        ...
