"""Identifiers: their text forms, how they are minted, and where they place an execution.

An execution id is `{fp:N}:<uuid>`; N is its flow partition, so any component routes by the id alone. A standalone
execution is placed by its own uuid or, with an idempotency key, by namespace and key, which makes deduplication
atomic on every backend. Parsing is strict: no other spelling of the same id is accepted.
"""

from __future__ import annotations

import binascii
import os
import re
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Final, NewType

import msgspec

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput

ExecutionId = NewType("ExecutionId", str)
AttemptId = NewType("AttemptId", str)
LeaseId = NewType("LeaseId", str)
ClaimId = NewType("ClaimId", str)
FlowId = NewType("FlowId", str)
Namespace = NewType("Namespace", str)
Lane = NewType("Lane", str)
Kind = NewType("Kind", str)
WorkerId = NewType("WorkerId", str)
WorkerInstance = NewType("WorkerInstance", str)

DEFAULT_NAMESPACE: Final = Namespace("default")
DEFAULT_LANE: Final = Lane("default")

IN_A_ROW: Final = 16
"""How many ids `mint_execution_ids` places in one partition, at most, before it goes on to another."""
SPREAD_MIN: Final = 64
"""Over about how many partitions it spreads the ids of one batch, at least, as long as there are so many."""

_EXECUTION_ID: Final = re.compile(
    r"\{fp:(0|[1-9][0-9]{0,4})\}:([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
)
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_LANE: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_NAME: Final = re.compile(r"[A-Za-z0-9._:/@-]{1,128}")
_TAG_KEY: Final = re.compile(r"[a-z][a-z0-9_]*\.[a-z0-9_][a-z0-9_.]*")
_CONTENT_TYPE: Final = re.compile(
    r"[!#$&^_.+A-Za-z0-9-]{1,127}/[!#$&^_.+A-Za-z0-9-]{1,127}(;[\x20-\x7e]{0,126})?"
)
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class PartitionCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many partitions of each family a store has; fixed when the store is first opened."""

    flow: int = limits.FLOW_PARTITIONS_DEFAULT
    budget: int = limits.BUDGET_PARTITIONS_DEFAULT
    quota: int = limits.QUOTA_PARTITIONS_DEFAULT

    def __post_init__(self) -> None:
        for family, count in (("flow", self.flow), ("budget", self.budget), ("quota", self.quota)):
            if not 1 <= count <= limits.PARTITIONS_MAX:
                raise InvalidInput(f"{family} partitions must be 1 to {limits.PARTITIONS_MAX}, not {count}")


def crc16(data: bytes) -> int:
    """Return CRC16-CCITT/XMODEM (polynomial 0x1021, initial value 0), the hash that cluster slots use."""
    return binascii.crc_hqx(data, 0)


def key_partition(namespace: str, idempotency_key: str, counts: PartitionCounts) -> int:
    """Return the partition of executions created under this idempotency key."""
    parts = bytearray()
    for part in (namespace.encode(), idempotency_key.encode()):
        parts += len(part).to_bytes(4, "big") + part
    return crc16(bytes(parts)) % counts.flow


def uuid_partition(value: uuid.UUID, counts: PartitionCounts) -> int:
    """Return the partition of a standalone execution with this uuid."""
    return crc16(value.bytes) % counts.flow


def mint_execution_id(
    counts: PartitionCounts,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    idempotency_key: str | None = None,
    value: uuid.UUID | None = None,
) -> ExecutionId:
    """Mint an execution id, placed by its own uuid or by (namespace, idempotency key).

    `value` fixes the uuid, so the same input gives the same id while the partition count is unchanged.
    """
    text = str(value) if value is not None else mint_uuid()
    if idempotency_key:
        partition = key_partition(namespace, idempotency_key, counts)
    else:
        partition = crc16(bytes.fromhex(text.replace("-", ""))) % counts.flow
    return ExecutionId(f"{{fp:{partition}}}:{text}")


def mint_execution_ids(counts: PartitionCounts, many: int) -> Iterator[ExecutionId]:
    """Mint the ids of a batch of `many`, each placed by its own uuid; of a large batch some in a row lie together.

    What is created at once and lies together is written, found and claimed together. The partitions are random, and
    enough of them for many workers to claim side by side.
    """
    row = max(1, min(IN_A_ROW, many // SPREAD_MIN))
    while True:
        partition = int(mint_uuid()[:8], 16) % counts.flow
        for _ in range(row):
            text = mint_uuid()
            random = int(text[32:], 16)
            wanted = random - random % counts.flow + partition
            if wanted > 0xFFFF:
                wanted -= counts.flow
            begun = crc16(bytes.fromhex(text[:32].replace("-", "")))
            yield ExecutionId(f"{{fp:{partition}}}:{text[:32]}{begun ^ _suffix(wanted):04x}")


def _suffix(wanted: int) -> int:
    """Return the two bytes whose CRC16 is `wanted`; after a prefix, XOR them with the prefix's CRC16."""
    high, low = _suffixes()
    return high[wanted >> 8] ^ low[wanted & 0xFF]


@cache
def _suffixes() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """CRC16 of two bytes is linear: its inverse for every high and every low byte."""
    of_bit: list[int] = []
    for bit in range(16):
        value = 1 << bit
        for _ in range(16):
            value = (value ^ 0x1021) >> 1 | 0x8000 if value & 1 else value >> 1
        of_bit.append(value)

    def of_bytes(bits: list[int]) -> tuple[int, ...]:
        found = [0]
        for value in bits:
            found += [known ^ value for known in found]
        return tuple(found)

    return of_bytes(of_bit[8:]), of_bytes(of_bit[:8])


def parse_execution_id(text: str) -> tuple[int, str]:
    """Return (partition, uuid text) of an execution id, or refuse with `invalid_input`."""
    match = _EXECUTION_ID.fullmatch(text)
    if match is None:
        raise InvalidInput("an execution id looks like {fp:N}:<lower-case uuid>", execution_id=clip(text))
    partition = int(match[1])
    if partition >= limits.PARTITIONS_MAX:
        raise InvalidInput("the partition in the execution id is out of range", execution_id=clip(text))
    return partition, match[2]


def execution_uuid(execution_id: str) -> str:
    """Return the uuid part of an id already known to be well-formed."""
    return execution_id[-36:]


_minted: list[str] = []
_MINTED_AT_ONCE: Final = 256
os.register_at_fork(after_in_child=_minted.clear)


def mint_uuid() -> str:
    """Mint a random identifier (attempts, leases, claims): a version 4 uuid.

    They are made many at once: asking the system for randomness lets another thread run in between, each time.
    """
    try:
        return _minted.pop()
    except IndexError:
        digits = os.urandom(16 * _MINTED_AT_ONCE).hex()
    fresh: list[str] = []
    for start in range(0, len(digits), 32):
        text = digits[start : start + 32]
        variant = "89ab"[int(text[16], 16) & 3]
        fresh.append(f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}")
    _minted.extend(fresh[1:])
    return fresh[0]


def clip(text: str, most: int = 120) -> str:
    """Shorten caller-supplied text for an error's details."""
    return text if len(text) <= most else text[: most - 3] + "..."


def check_uuid(text: str, field: str) -> None:
    """Refuse text that is not a lower-case uuid."""
    if _UUID.fullmatch(text) is None:
        raise InvalidInput(f"{field} must be a lower-case uuid", field=field)


def check_lane(text: str) -> None:
    """Refuse a lane name outside `[A-Za-z0-9._:-]{1,64}`."""
    if _LANE.fullmatch(text) is None:
        raise InvalidInput("a lane name is 1 to 64 of A-Z a-z 0-9 . _ : -", field="lane", value=clip(text))


def check_name(text: str, field: str) -> None:
    """Refuse a namespace, kind, worker or instance name outside `[A-Za-z0-9._:/@-]{1,128}`."""
    if _NAME.fullmatch(text) is None:
        raise InvalidInput(f"{field} is 1 to 128 of A-Z a-z 0-9 . _ : / @ -", field=field, value=clip(text))


def is_tag_key(text: str) -> bool:
    """Say whether text is a tag key: `name.rest`, lower case, bounded."""
    return _TAG_KEY.fullmatch(text) is not None and len(text) <= limits.TAG_KEY_BYTES_MAX


def check_content_type(text: str) -> None:
    """Refuse text that is not a media type."""
    if len(text) > limits.CONTENT_TYPE_LENGTH_MAX or _CONTENT_TYPE.fullmatch(text) is None:
        raise InvalidInput("content_type must be a media type such as application/json", field="content_type")


def check_traceparent(text: str) -> None:
    """Refuse text that is not a W3C traceparent."""
    if _TRACEPARENT.fullmatch(text) is None:
        raise InvalidInput("traceparent must be a W3C trace context header value", field="traceparent")


def check_text(text: str, field: str, bytes_max: int) -> None:
    """Refuse free text that is too long or cannot be encoded."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{field} is not valid Unicode", field=field) from error
    if size > bytes_max:
        raise InvalidInput(f"{field} is at most {bytes_max} bytes", field=field)
    if "\x00" in text:
        raise InvalidInput(f"{field} must not contain NUL", field=field)


def check_range(value: int, field: str, low: int, high: int) -> None:
    """Refuse an integer outside low..high."""
    if not low <= value <= high:
        raise InvalidInput(f"{field} must be {low} to {high}, not {value}", field=field)
