"""Reading from many partitions at once: one pipeline per server that owns some of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.wire import Command, ServerError
from flowfabric.contract.errors import Unavailable

Item = tuple[Partition, Command]

COMMANDS_AT_ONCE: Final = 1_000
"""In one pipeline; other callers' commands go in between."""


async def scatter(calls: Calls, items: Sequence[Item]) -> list[Any]:
    """Run one reading command per item and return the replies in the items' order.

    Each command sees its own instant. A command whose partition has just moved is sent again by itself.
    Raises: as `Calls.read`.
    """
    client = calls.client
    by_node: dict[str, list[int]] = {}
    for at, (partition, _) in enumerate(items):
        by_node.setdefault(client.node_of(partition.slot), []).append(at)
    replies: list[Any] = [None] * len(items)
    astray: list[int] = []

    async def read(node: str, chunk: list[int]) -> None:
        try:
            found = await client.on_node(node, [items[at][1] for at in chunk], repeatable=True)
        except Unavailable:
            # No primary any more, or not there: each command finds its own way, or says why not.
            astray.extend(chunk)
            return
        for at, value in zip(chunk, found, strict=True):
            if isinstance(value, ServerError):
                astray.append(at)
            else:
                replies[at] = value

    async def read_again(at: int) -> None:
        partition, command = items[at]
        (replies[at],) = await calls.read(partition, [command])

    await asyncio.gather(
        *(
            read(node, found[start : start + COMMANDS_AT_ONCE])
            for node, found in by_node.items()
            for start in range(0, len(found), COMMANDS_AT_ONCE)
        )
    )
    await asyncio.gather(*(read_again(at) for at in astray))
    return replies
