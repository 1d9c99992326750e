"""What a store must be before it is opened, and what it is when it is opened first.

Every primary must be Valkey 7.2 or newer with `maxmemory-policy noeviction`. The first process writes what can never
change (layout, partition counts) in one atomic step; everybody later compares. Nothing is written to a server that is
refused. What a user may not ask (ACL) is found another way where there is one, and taken for the worse otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from flowfabric.contract.errors import Corrupt, Misuse
from flowfabric.contract.ids import PartitionCounts, mint_uuid

LAYOUT: Final = 1
"""Version of how executions are stored; a newer one is refused."""
LAYOUT_FIELD: Final = "layout"
"""Field of `{w}:meta`; the others are counters of the modules that use them."""
VERSION_MIN: Final = (7, 2, 0)

_NUMBER: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_FIXED: Final = ((7, 2, 11), (8, 0, 6), (8, 1, 4))
"""The first release of each series with the fix for CVE-2025-49844; later series have had it from the start."""

Version = tuple[int, int, int]


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What one server says about itself."""

    address: str
    product: str
    """`valkey`; anything else is refused."""
    version: Version
    """Of the product; (0, 0, 0) when it does not say."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided when the store was made."""

    layout: int
    flow: int
    budget: int
    quota: int
    created_at_ms: int
    store_id: str = ""
    """Tells apart the stores in several databases of one server, which share its channels."""

    @property
    def partitions(self) -> PartitionCounts:
        """The partition counts."""
        return PartitionCounts(flow=self.flow, budget=self.budget, quota=self.quota)


# Servers ----------------------------------------------------------------------------------------------------------


def parse_info(text: str) -> dict[str, str]:
    """Read the `name:value` lines of INFO."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator and not line.startswith("#"):
            found[name] = value.strip()
    return found


def parse_version(text: str) -> Version:
    """Read a version; (0, 0, 0) when there is none."""
    match = _NUMBER.match(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


def server_of(address: str, info: Mapping[str, str], hello: Mapping[str, str]) -> Server:
    """Make out a server from INFO or, where that is forbidden, from its greeting.

    A server that calls itself Valkey may still greet as the product it is compatible with, so INFO comes first. Its
    version is in `valkey_version`, before 8.0 in `redis_version`.
    """
    if info:
        return Server(
            address=address,
            product=info.get("server_name", "redis" if "redis_version" in info else "unknown"),
            version=parse_version(info.get("valkey_version") or info.get("redis_version", "")),
        )
    return Server(
        address=address,
        product=hello.get("server", "unknown"),
        version=parse_version(hello.get("version", "")),
    )


def check_server(server: Server) -> None:
    """Refuse what is not Valkey, or too old.

    Raises: Misuse.
    """
    if server.product != "valkey":
        raise Misuse(
            f"{server.address} is {server.product}, not Valkey: FlowFabric is Valkey-native and is neither tested nor "
            "supported against Redis, so a server must say server_name:valkey in INFO; use Valkey 7.2 or newer"
        )
    if server.version < VERSION_MIN:
        shown = ".".join(map(str, server.version))
        raise Misuse(
            f"{server.address} is Valkey {shown}; FlowFabric requires Valkey 7.2 or newer, the first with the "
            "functions and the protocol it is built on"
        )


def is_vulnerable(version: Version) -> bool:
    """Say whether a version lacks the fix for CVE-2025-49844, which lets Lua code escape its sandbox."""
    for fixed in _FIXED:
        if version[:2] == fixed[:2]:
            return version < fixed
    return version < _FIXED[0]


def check_eviction(address: str, policy: str | None) -> None:
    """Refuse a server that evicts keys when its memory is full.

    Raises: Misuse.
    """
    if policy is None:
        raise Misuse(
            f"{address} tells this user neither CONFIG GET maxmemory-policy nor INFO memory: allow one of them, "
            "because a server that evicts keys would lose executions"
        )
    if policy != "noeviction":
        raise Misuse(
            f"{address} has maxmemory-policy {policy}: it would silently evict executions when its memory is full; "
            "set maxmemory-policy noeviction"
        )


# What a store is --------------------------------------------------------------------------------------------------


def first_layout(partitions: PartitionCounts | None, now_ms: int) -> bytes:
    """Return what the first process writes."""
    counts = partitions if partitions is not None else PartitionCounts()
    return msgspec.json.encode(
        Layout(
            layout=LAYOUT,
            flow=counts.flow,
            budget=counts.budget,
            quota=counts.quota,
            created_at_ms=now_ms,
            store_id=mint_uuid(),
        )
    )


def check_layout(stored: bytes, partitions: PartitionCounts | None) -> Layout:
    """Read what the store is and refuse a configuration that differs.

    Raises: Misuse, Corrupt.
    """
    try:
        found = msgspec.json.decode(stored, type=Layout)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the store does not say what it is: {error}") from error
    if found.layout > LAYOUT:
        raise Misuse(
            f"the store has layout {found.layout}, made by a newer FlowFabric; this version knows up to {LAYOUT}: "
            "upgrade FlowFabric"
        )
    if partitions is not None and partitions != found.partitions:
        have, want = found.partitions, partitions
        raise Misuse(
            f"the store has {have.flow}/{have.budget}/{have.quota} flow/budget/quota partitions, asked for were "
            f"{want.flow}/{want.budget}/{want.quota}: counts are fixed when a store is made; leave them out, or open "
            "another store"
        )
    return found
