"""Key names: the only place that builds them.

A key of a flow partition begins with the hash tag `{fp:N}`, a global one with `{w}`; every key of one call shares its
tag. Names given by users never enter a key as they are: routes and idempotency keys are hashed, everything else is
limited to characters without braces.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from flowfabric.backends.valkey.wire.slots import slot_of
from flowfabric.contract.ids import ExecutionId

GLOBAL: Final = "{w}:"
GLOBAL_SLOT: Final = slot_of(b"{w}")


def _hashed(*parts: str) -> str:
    data = bytearray()
    for part in parts:
        encoded = part.encode()
        data += len(encoded).to_bytes(4, "big") + encoded
    return hashlib.sha256(bytes(data)).hexdigest()


def route_id(namespace: str, lane: str, route: str) -> str:
    """Return the name of the index that holds the eligible executions of one namespace, lane and route."""
    return _hashed(namespace, lane, route)[:20]


def idempotency_hash(namespace: str, idempotency_key: str) -> str:
    """Return what stands for an idempotency key in a key name."""
    return _hashed(namespace, idempotency_key)[:32]


def fresh_nonce() -> str:
    """Return a name for a payload that no other payload has."""
    return secrets.token_hex(12)


class Partition:
    """The keys of one flow partition."""

    __slots__ = ("all", "due", "lanes", "lost", "number", "own", "slot", "tag")

    def __init__(self, number: int) -> None:
        self.number = number
        self.tag = f"{{fp:{number}}}:"
        self.slot = slot_of(self.tag.encode())
        self.due = self.tag + "due"
        self.own = self.tag + "own"
        self.lost = self.tag + "lost"
        self.all = self.tag + "all"
        self.lanes = self.tag + "lanes"

    def execution(self, uuid: str) -> str:
        """Name an execution's hash."""
        return f"{self.tag}x:{uuid}"

    def payload(self, nonce: str) -> str:
        """Name a payload."""
        return f"{self.tag}p:{nonce}"

    def eligible(self, rid: str) -> str:
        """Name the eligible index of a route."""
        return f"{self.tag}q:{rid}"

    def idempotency(self, hashed: str) -> str:
        """Name an idempotency entry."""
        return f"{self.tag}k:{hashed}"

    def durable(self, uuid: str, attempt_index: int) -> str:
        """Name the stream of an attempt's durable frames."""
        return f"{self.tag}sd:{uuid}:{attempt_index}"

    def summary(self, uuid: str, attempt_index: int) -> str:
        """Name the stream of an attempt's summary frames."""
        return f"{self.tag}ss:{uuid}:{attempt_index}"

    def lossy(self, uuid: str, attempt_index: int) -> str:
        """Name the stream of an attempt's best-effort frames."""
        return f"{self.tag}sb:{uuid}:{attempt_index}"

    def channel(self, uuid: str) -> str:
        """Name the channel on which an execution's changes are announced."""
        return f"{self.tag}ch:{uuid}"


class Partitions:
    """All flow partitions of a store."""

    def __init__(self, count: int) -> None:
        self.all: Final = tuple(Partition(number) for number in range(count))

    def of(self, execution_id: ExecutionId | str) -> Partition:
        """Return the partition of a well-formed execution id; one that the store does not have is made up."""
        number = int(execution_id[4 : execution_id.index("}")])
        return self.all[number] if number < len(self.all) else Partition(number)


# Global keys ------------------------------------------------------------------------------------------------------

META: Final = GLOBAL + "meta"
LANES: Final = GLOBAL + "lanes"
HELD: Final = GLOBAL + "holds"
DUE_HINTS: Final = GLOBAL + "due"
DUE_HELD: Final = GLOBAL + "dueheld"
WORKER_DUE: Final = GLOBAL + "workerdue"
DEFAULTS: Final = GLOBAL + "defaults"
LIBRARIES: Final = GLOBAL + "libs"
SWEEPER: Final = GLOBAL + "sweeper"
SWEPT: Final = GLOBAL + "swept"
LANES_COMPARED: Final = GLOBAL + "compared"
CONFIRMED: Final = "confirmed"
"""Behind any hash tag: written to be waited for when replicas must confirm what was written before."""
CATALOG_CHANNEL: Final = GLOBAL + "ch:catalog"
DUE_CHANNEL: Final = GLOBAL + "ch:due"


def routes(lane: str) -> str:
    """Name the routes of a lane."""
    return f"{GLOBAL}routes:{lane}"


def hints(rid: str) -> str:
    """Name the hints of a route: partition -> score of its best eligible execution."""
    return f"{GLOBAL}h:{rid}"


def bell(rid: str) -> str:
    """Name the bell of a route, on which idle workers wait."""
    return f"{GLOBAL}bell:{rid}"


def claim(claim_id: str) -> str:
    """Name the record of a claim."""
    return f"{GLOBAL}c:{claim_id}"


def workers(namespace: str) -> str:
    """Name the registry of a namespace's workers."""
    return f"{GLOBAL}workers:{namespace}"
