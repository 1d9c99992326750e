"""What a server must be to keep executions, and what its acknowledgements promise.

Everything is read in one statement that any role may run. Refused are servers that are too old, that do not flush what
they acknowledge (`fsync=off` loses the whole database in a crash), that keep text in another encoding, and standbys.
`synchronous_commit` decides what an acknowledgement promises; it is reported, never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from flowfabric.contract.errors import Misuse
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability

VERSION_MIN: Final = 150_000
"""Postgres 15, as `server_version_num` says it."""
QUESTION: Final = """
SELECT current_setting('server_version_num')::int AS number,
    current_setting('server_version') AS version,
    current_setting('server_encoding') AS encoding,
    current_setting('fsync') AS fsync,
    current_setting('synchronous_commit') AS synchronous_commit,
    coalesce(current_setting('synchronous_standby_names', true), '') AS standbys,
    current_setting('statement_timeout') AS statement_timeout,
    current_setting('lock_timeout') AS lock_timeout,
    pg_is_in_recovery() AS is_standby,
    current_setting('transaction_read_only') AS read_only
"""

_ORDER: Final = (Durability.MEMORY, Durability.FSYNC, Durability.REPLICATED)
_OFF: Final = "off"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says about itself."""

    number: int
    version: str
    encoding: str
    fsync: str
    synchronous_commit: str
    standbys: str
    statement_timeout: str
    lock_timeout: str
    is_standby: bool
    read_only: str

    @property
    def is_unbounded(self) -> bool:
        """Whether a statement of this role may wait for ever."""
        return "0" in (self.statement_timeout, self.lock_timeout)

    @property
    def durability(self) -> Durability:
        """What an acknowledgement promises."""
        match self.synchronous_commit:
            case "off":
                return Durability.MEMORY
            case "on" | "remote_write" | "remote_apply" if self.standbys.strip():
                return Durability.REPLICATED
            case _:
                return Durability.FSYNC


def server_of(row: Mapping[str, Any]) -> Server:
    """Read the answer to QUESTION."""
    return Server(**{name: row[name] for name in Server.__struct_fields__})


def check_server(address: str, server: Server) -> None:
    """Refuse a server that cannot keep executions.

    Raises: Misuse.
    """
    if server.number < VERSION_MIN:
        raise Misuse(f"{address} is Postgres {server.version}; FlowFabric requires Postgres 15 or newer")
    if server.is_standby:
        raise Misuse(
            f"{address} is a standby, which takes no writes: name the primary, or both hosts in the URL"
        )
    if server.fsync == _OFF:
        raise Misuse(
            f"{address} has fsync=off: a crash of its machine would destroy the database; set fsync=on "
            "(for speed at the price of the last moments before a crash, set synchronous_commit=off instead)"
        )
    if server.encoding.upper() not in ("UTF8", "UNICODE"):
        raise Misuse(f"the database has the encoding {server.encoding}: create it with ENCODING 'UTF8'")
    if server.read_only == "on":
        raise Misuse(
            f"{address} gives this role read-only transactions: set default_transaction_read_only=off"
        )


def check_durability(address: str, server: Server, asked: Durability | None) -> None:
    """Refuse a server that promises less than was asked.

    Raises: Misuse.
    """
    if asked is None or _ORDER.index(server.durability) >= _ORDER.index(asked):
        return
    advice = (
        "set synchronous_commit=on and name a standby in synchronous_standby_names"
        if asked is Durability.REPLICATED
        else "set synchronous_commit=on"
    )
    raise Misuse(
        f"durability={asked.value}: {address} promises {server.durability.value} "
        f"(synchronous_commit={server.synchronous_commit}); {advice}"
    )


def check_partitions(stored: PartitionCounts, asked: PartitionCounts | None) -> None:
    """Refuse a configuration that differs from what the store is.

    Raises: Misuse.
    """
    if asked is not None and asked != stored:
        raise Misuse(
            f"the store has {stored.flow}/{stored.budget}/{stored.quota} flow/budget/quota partitions, asked for were "
            f"{asked.flow}/{asked.budget}/{asked.quota}: counts are fixed when a store is made; leave them out, or "
            "open another store"
        )


def strongest(*levels: Durability | None) -> Durability | None:
    """Return the level that covers all of these; None: none was asked for."""
    asked = [level for level in levels if level is not None]
    return max(asked, key=_ORDER.index, default=None)
