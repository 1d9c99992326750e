"""Rows and records: how contract records are stored, and loading one execution.

Records are JSON of their structs. Whoever reads gets a `Snapshot`: one consistent state of the store, with its time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final

import msgspec

from flowfabric.backends import assets
from flowfabric.contract.attempt import AttemptRecord
from flowfabric.contract.errors import Corrupt, ExecutionNotFound
from flowfabric.contract.execution import ExecutionDefinition, ExecutionRecord
from flowfabric.contract.ids import AttemptId, ExecutionId
from flowfabric.contract.lane import LaneInfo
from flowfabric.contract.lease import LeaseEvent
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import KindDefaults
from flowfabric.contract.stream import StreamRecord
from flowfabric.contract.worker import WorkerRecord
from flowfabric.rules.decision import Loaded

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/rows.sql")

encode: Final = msgspec.json.Encoder().encode
decode_definition: Final = msgspec.json.Decoder(ExecutionDefinition).decode
decode_record: Final = msgspec.json.Decoder(ExecutionRecord).decode
decode_attempt: Final = msgspec.json.Decoder(AttemptRecord).decode
decode_event: Final = msgspec.json.Decoder(LeaseEvent).decode
decode_stream: Final = msgspec.json.Decoder(StreamRecord).decode
decode_lane: Final = msgspec.json.Decoder(LaneInfo).decode
decode_worker: Final = msgspec.json.Decoder(WorkerRecord).decode
decode_defaults: Final = msgspec.json.Decoder(KindDefaults).decode
decode_names: Final = msgspec.json.Decoder(tuple[str, ...]).decode


class Snapshot:
    """One consistent state of the store as a read sees it."""

    __slots__ = ("connection", "execute", "now_ms")

    def __init__(self, connection: sqlite3.Connection, now_ms: int) -> None:
        self.connection = connection
        self.execute: Callable[..., sqlite3.Cursor] = connection.execute
        self.now_ms = now_ms

    def first(self, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
        """Return the first row, or None."""
        return self.execute(sql, parameters).fetchone()

    def all(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        """Return all rows; the statement has its own limit."""
        return self.execute(sql, parameters).fetchall()


class Row(msgspec.Struct, frozen=True):
    """One execution as stored."""

    seq: int
    route_id: int
    loaded: Loaded


def pack_uuid(execution_id: str) -> bytes:
    """Return the 16 bytes of the uuid that an execution id (or a uuid's text) ends with."""
    return bytes.fromhex(execution_id[-36:].replace("-", ""))


def unpack_id(partition: int, uuid: bytes) -> ExecutionId:
    """Build the execution id from its columns."""
    text = uuid.hex()
    return ExecutionId(f"{{fp:{partition}}}:{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")


def loaded_from(definition: bytes, record: bytes) -> Loaded:
    """Decode the two records of an execution."""
    try:
        return Loaded(decode_definition(definition), decode_record(record))
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the record of an execution cannot be read: {error}") from error


def find(snapshot: Snapshot, execution_id: str) -> Row | None:
    """Load an execution by its id; a different partition is a different id."""
    found = snapshot.execute(_SQL["find"], (pack_uuid(execution_id),)).fetchone()
    if found is None:
        return None
    loaded = loaded_from(found[2], found[3])
    if loaded.definition.execution_id != execution_id:
        return None
    return Row(found[0], found[1], loaded)


def load(snapshot: Snapshot, execution_id: str) -> Row:
    """Load an execution by its id, or refuse with `execution_not_found`."""
    row = find(snapshot, execution_id)
    if row is None:
        raise ExecutionNotFound(execution_id=execution_id)
    return row


def load_seq(snapshot: Snapshot, seq: int) -> Row | None:
    """Load an execution by its row number."""
    found = snapshot.execute(_SQL["load_seq"], (seq,)).fetchone()
    return None if found is None else Row(seq, found[0], loaded_from(found[1], found[2]))


def load_input(snapshot: Snapshot, seq: int) -> Payload:
    """Load an execution's input."""
    found = snapshot.execute(_SQL["load_input"], (seq,)).fetchone()
    if found is None:
        raise Corrupt("an execution has lost its input")
    return Payload(found[1], found[0])


def load_result(snapshot: Snapshot, seq: int) -> Payload | None:
    """Load an execution's result, if it has one."""
    found = snapshot.execute(_SQL["load_result"], (seq,)).fetchone()
    return None if found is None else Payload(found[1], found[0])


def load_former(snapshot: Snapshot, seq: int, attempt_id: AttemptId) -> AttemptRecord | None:
    """Load a superseded attempt by its id."""
    found = snapshot.execute(_SQL["load_former"], (seq, attempt_id)).fetchone()
    return None if found is None else decode_attempt(found[0])


def load_attempt(snapshot: Snapshot, row: Row, attempt_index: int) -> AttemptRecord | None:
    """Load an attempt by its number, the latest or a superseded one."""
    latest = row.loaded.record.attempt
    if latest is not None and latest.attempt_index == attempt_index:
        return latest
    found = snapshot.execute(_SQL["load_attempt"], (row.seq, attempt_index)).fetchone()
    return None if found is None else decode_attempt(found[0])


def load_stream(snapshot: Snapshot, seq: int, attempt_index: int) -> StreamRecord | None:
    """Load the record of an attempt's stream; None when nothing was ever appended."""
    found = snapshot.execute(_SQL["load_stream"], (seq, attempt_index)).fetchone()
    return None if found is None else decode_stream(found[0])
