"""Opening a store: ask every primary what it is, refuse what cannot keep executions, and agree on what the store is.

The order matters: nothing is written before every primary has been looked at, and what is written first can never
change. What is refused, and how it is found out, is `gates`' and `durability`'s business.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.valkey import durability, gates, keys
from flowfabric.backends.valkey.calling import failed
from flowfabric.backends.valkey.durability import Persistence, Promise
from flowfabric.backends.valkey.gates import Layout, Server
from flowfabric.backends.valkey.wire import Address, Client, Command, Reply, ServerError, parse_url
from flowfabric.contract.errors import Corrupt, Misuse
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability
from flowfabric.telemetry import log

_LOG: Final = log.get_logger("flowfabric.backends.valkey")

_DURABILITY: Final = "durability"
_QUESTIONS: Final[tuple[Command, ...]] = (
    ("INFO", "server"),
    ("INFO", "memory"),
    ("INFO", "persistence"),
    ("INFO", "replication"),
    ("CONFIG", "GET", "maxmemory-policy", "appendonly", "appendfsync"),
    ("HELLO",),
)


class Target(msgspec.Struct, frozen=True):
    """What a URL asks for."""

    address: Address
    durability: Durability | None
    """What acknowledgements must promise at least; None: whatever the servers are set to."""

    def asking(self, level: Durability | None) -> Target:
        """Return this target with at least that level asked for."""
        return msgspec.structs.replace(self, durability=durability.strongest(self.durability, level))


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the servers are."""

    version: str
    """The oldest."""
    promise: Promise


def parse(url: str) -> Target:
    """Read a URL; `?durability=memory|fsync|replicated` is the engine's, everything else the client's.

    Raises: Misuse.
    """
    location, mark, query = url.partition("?")
    if not mark:
        return Target(parse_url(url), None)
    parts = query.split("&")
    mine = [part for part in parts if part.partition("=")[0] == _DURABILITY]
    if len(mine) > 1:
        raise Misuse("the option 'durability' is given twice in the URL")
    others = "&".join(part for part in parts if part not in mine)
    asked = durability.parse_level(mine[0].partition("=")[2]) if mine else None
    return Target(parse_url(f"{location}?{others}" if others else location), asked)


async def inspect(client: Client, asked: Durability | None) -> Found:
    """Ask every primary what it is and what it promises.

    Raises: Misuse when one of them cannot keep executions or promises less than was asked, Unavailable.
    """
    servers: list[Server] = []
    primaries: list[Persistence] = []
    for address, replies in (await client.on_primaries(_QUESTIONS, repeatable=True)).items():
        server, memory, persistence, replication, config, hello = (_mapping(reply) for reply in replies)
        found = gates.server_of(address, server, hello)
        gates.check_server(found)
        gates.check_eviction(address, config.get("maxmemory-policy") or memory.get("maxmemory_policy"))
        servers.append(found)
        primaries.append(durability.persistence_of(address, config, persistence, replication))
    promise = durability.promise_of(primaries, asked)
    for found in servers:
        if gates.is_vulnerable(found.version) and not _is_local(found.address):
            _LOG.warning(
                "store_vulnerable",
                server=found.address,
                version=_shown(found),
                message="this Valkey lacks the fix for CVE-2025-49844 and can be reached from other machines: upgrade "
                "to 8.0.6, 8.1.4 or newer",
            )
    oldest = min(servers, key=lambda server: server.version)
    return Found(version=_shown(oldest), promise=promise)


async def read_time(client: Client) -> int:
    """Return the store's time in milliseconds."""
    (time,) = await client.execute(keys.GLOBAL_SLOT, [("TIME",)], repeatable=True)
    if isinstance(time, ServerError):
        raise failed(time)
    if not isinstance(time, list) or not all(isinstance(part, bytes) for part in time):
        raise Corrupt("the store does not tell the time")
    seconds, microseconds = (int(_text(part)) for part in time)
    return seconds * 1_000 + microseconds // 1_000


async def agree(client: Client, partitions: PartitionCounts | None, now_ms: int) -> Layout:
    """Read what the store is, deciding it when this is the first process; processes that start at once agree.

    Raises: Misuse when the store is another than was asked for, Corrupt, Unavailable.
    """
    commands: Sequence[Command] = (
        ("HSETNX", keys.META, gates.LAYOUT_FIELD, gates.first_layout(partitions, now_ms)),
        ("HGET", keys.META, gates.LAYOUT_FIELD),
    )
    for stored in await client.execute(keys.GLOBAL_SLOT, commands, repeatable=True):
        if isinstance(stored, ServerError):
            raise failed(stored)
        if isinstance(stored, bytes):
            return gates.check_layout(stored, partitions)
    raise Corrupt("the store does not say what it is")


def _mapping(reply: Reply | ServerError) -> Mapping[str, str]:
    """Read INFO or a map; nothing when this user may not ask."""
    if isinstance(reply, bytes):
        return gates.parse_info(reply.decode("utf-8", "replace"))
    if isinstance(reply, dict):
        return {_text(name): _text(value) for name, value in reply.items()}
    return {}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _shown(server: Server) -> str:
    return ".".join(map(str, server.version))


def _is_local(address: str) -> bool:
    """Say whether a server's name can only be reached from this machine."""
    if address.startswith("/"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
