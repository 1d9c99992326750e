"""Doing something on every partition: many at once, not all, and to the end even when some fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from flowfabric.backends.valkey.keys import Partition

T = TypeVar("T")

AT_ONCE: Final = 512
"""Partitions that are asked in one go; their calls share pipelines."""


async def on_each(partitions: Sequence[Partition], action: Callable[[Partition], Awaitable[T]]) -> list[T]:
    """Do something on each partition and return the outcomes in their order.

    A failure does not stop the others of its batch; the first one is raised when the batch has ended.
    """
    outcomes: list[T] = []
    for start in range(0, len(partitions), AT_ONCE):
        batch = await asyncio.gather(
            *(action(partition) for partition in partitions[start : start + AT_ONCE]), return_exceptions=True
        )
        for outcome in batch:
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes.append(outcome)
    return outcomes
