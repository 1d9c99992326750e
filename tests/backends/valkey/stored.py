"""A store in Valkey with a short way behind its back: raw commands on the keys of one execution."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from flowfabric.backends.valkey.keys import Partition, Partitions
from flowfabric.backends.valkey.record import RARE, Packed, Static, pack, unpack
from flowfabric.backends.valkey.wire import Client, ServerError
from flowfabric.contract.ids import execution_uuid

T = TypeVar("T", bound=msgspec.Struct)


class Keys:
    """The keys of one execution, and commands on them."""

    def __init__(self, raw: Client, execution_id: str) -> None:
        self.id = execution_id
        self.uuid = execution_uuid(execution_id)
        self.partition: Partition = Partitions(65_535).of(execution_id)
        self.hash = self.partition.execution(self.uuid)
        self._raw = raw

    async def __call__(self, *command: str | int | float | bytes) -> Any:
        """Run one command on the server that has the partition."""
        (found,) = await self._raw.execute(self.partition.slot, [command])
        if isinstance(found, ServerError):
            raise found
        return found

    async def packed(self) -> Packed:
        """Read what changes."""
        return unpack(await self("HGET", self.hash, "v"), Packed)

    async def static(self) -> Static:
        """Read what functions know of the definition."""
        return unpack(await self("HGET", self.hash, "d"), Static)

    async def eligible(self) -> str:
        """Name the eligible index it belongs to."""
        return self.partition.eligible((await self.static()).rid)

    async def tamper(self, field: str, record: type[T], **values: Any) -> None:
        """Change values of one packed field."""
        found = unpack(await self("HGET", self.hash, field), record)
        if record is Packed:
            values["form"] = RARE
        await self("HSET", self.hash, field, pack(msgspec.structs.replace(found, **values)))

    async def stored(self) -> list[str]:
        """Name all keys of the partition, sorted."""
        cursor: Any = 0
        found: set[str] = set()
        while True:
            cursor, names = await self("SCAN", cursor, "MATCH", f"{self.partition.tag}*", "COUNT", 1_000)
            found |= {name.decode() for name in names}
            if int(cursor) == 0:
                return sorted(found)
