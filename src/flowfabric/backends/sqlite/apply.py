"""Apply decisions: the only place that writes executions and what belongs to them.

The rules decide, here is how it is stored: record and index entries together, derived from each other by the rules'
own function; superseded attempts, results and history beside them; and what the change means for whoever waits.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from flowfabric.backends import assets
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.rows import Row
from flowfabric.backends.sqlite.writer import Transaction
from flowfabric.contract import limits
from flowfabric.contract.execution import ExecutionDefinition, ExecutionRecord
from flowfabric.contract.ids import execution_uuid
from flowfabric.contract.lease import LeaseEvent
from flowfabric.contract.payloads import Payload
from flowfabric.contract.stream import StreamRecord
from flowfabric.rules import execution as rules
from flowfabric.rules.decision import Decision, Loaded

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/apply.sql")
_INSERT_EXECUTION: Final = _SQL["insert_execution"]
_INSERT_DEFINITION: Final = _SQL["insert_definition"]
_UPDATE_EXECUTION: Final = _SQL["update_execution"]
_INSERT_EVENT: Final = _SQL["insert_event"]
_HISTORY_SLACK: Final = 100
_BELONGINGS: Final = (
    "delete_frames",
    "delete_streams",
    "delete_events",
    "delete_attempts",
    "delete_result",
    "delete_definition",
    "delete_execution",
)

IndexColumns = tuple[str, int | None, int, int | None, str | None, str | None, str | None, int | None]


def index_columns(definition: ExecutionDefinition, record: ExecutionRecord) -> IndexColumns:
    """Return what an execution's index columns must hold, in the order of the statements and of fsck."""
    entries = rules.index_entries(definition, record)
    return (
        record.state.public_state.value,
        -record.priority if entries.ready else None,
        record.eligible_since_ms,
        entries.due_at_ms,
        entries.due_kind,
        entries.holder,
        entries.claim_id,
        entries.lost_at_ms,
    )


def store_new(
    transaction: Transaction,
    definition: ExecutionDefinition,
    record: ExecutionRecord,
    payload: Payload,
    route_id: int,
) -> None:
    """Store a new execution, its input and its index entries."""
    seq = transaction.next_seq()
    columns = index_columns(definition, record)
    partition = int(definition.execution_id[4 : definition.execution_id.index("}")])
    transaction.execute(
        _INSERT_EXECUTION,
        (
            seq,
            rows.pack_uuid(definition.execution_id),
            partition,
            definition.namespace,
            definition.lane,
            definition.kind,
            definition.created_at_ms,
            route_id,
            *columns,
            rows.encode(record),
        ),
    )
    transaction.execute(
        _INSERT_DEFINITION, (seq, rows.encode(definition), payload.content_type, payload.data)
    )
    if columns[1] is not None:
        _announce_claimable(transaction, route_id)
    if columns[3] is not None:
        transaction.news.due(columns[3])


def apply(transaction: Transaction, row: Row, decision: Decision[Any]) -> Row:
    """Write what a rule decided about an execution; return the execution as it is afterwards."""
    if decision.delete is not None:
        _delete(transaction, row, decision.delete)
    record = decision.record
    if record is None:
        return row
    before = row.loaded
    definition = before.definition
    columns = index_columns(definition, record)
    transaction.execute(_UPDATE_EXECUTION, (*columns, rows.encode(record), row.seq))
    if decision.superseded is not None:
        former = decision.superseded
        transaction.execute(
            _SQL["insert_attempt"], (row.seq, former.attempt_index, former.attempt_id, rows.encode(former))
        )
    if decision.clear_result:
        transaction.execute(_SQL["delete_result"], (row.seq,))
    if decision.result is not None:
        transaction.execute(
            _SQL["insert_result"], (row.seq, decision.result.content_type, decision.result.data)
        )
    for event in decision.events:
        _append_event(transaction, row.seq, event, record.history_count)
    _announce(transaction, row, record, columns)
    return Row(row.seq, row.route_id, Loaded(definition, record))


def answer(transaction: Transaction, row: Row, decision: Decision[Any]) -> Any:
    """Write what a rule decided, then give its reply or raise its refusal."""
    apply(transaction, row, decision)
    if decision.refusal is not None:
        raise decision.refusal
    return decision.reply


def reindex(transaction: Transaction, row: Row) -> None:
    """Rebuild an execution's index entries from its record."""
    loaded = row.loaded
    columns = index_columns(loaded.definition, loaded.record)
    transaction.execute(_SQL["reindex_execution"], (*columns, row.seq))
    if columns[1] is not None:
        _announce_claimable(transaction, row.route_id)
    if columns[3] is not None:
        transaction.news.due(columns[3])


def _append_event(transaction: Transaction, seq: int, event: LeaseEvent, history_count: int) -> None:
    event_id = transaction.next_event_id()
    body = rows.encode(replace(event, event_id=event_id))
    transaction.execute(_INSERT_EVENT, (event_id, seq, body))
    if history_count > limits.HISTORY_KEPT and history_count % _HISTORY_SLACK == 0:
        transaction.execute(_SQL["trim_events"], (seq, seq, limits.HISTORY_KEPT))


def _announce(transaction: Transaction, row: Row, record: ExecutionRecord, columns: IndexColumns) -> None:
    before = row.loaded.record
    if columns[1] is not None and not rules.is_ready(before):
        _announce_claimable(transaction, row.route_id)
    due_at_ms = columns[3]
    if due_at_ms is not None:
        transaction.news.due(due_at_ms)
    if record.state is not before.state or record.attempt is not before.attempt:
        transaction.news.changed.add(execution_uuid(row.loaded.definition.execution_id))


def _announce_claimable(transaction: Transaction, route_id: int) -> None:
    catalog = transaction.catalog
    catalog.empty.discard(route_id)
    topic = catalog.topic(transaction, route_id)
    if topic is not None:
        transaction.news.claimable(topic)


def _delete(transaction: Transaction, row: Row, what: str) -> None:
    seq = row.seq
    if what == "execution":
        for name in _BELONGINGS:
            transaction.execute(_SQL[name], (seq,))
    else:
        _drop_frames(transaction, seq, expired_only=what == "expired_frames")
    transaction.news.changed.add(execution_uuid(row.loaded.definition.execution_id))


def _drop_frames(transaction: Transaction, seq: int, *, expired_only: bool) -> None:
    """Remove frames; the stream records stay, because sequences go on and readers are told what is gone."""
    for attempt_index, expires_at_ms, stored in transaction.all(_SQL["streams"], (seq,)):
        if expired_only and (expires_at_ms is None or expires_at_ms > transaction.now_ms):
            continue
        stream = rows.decode_stream(stored)
        lasting = stream.durable_kept + stream.summary_kept > 0
        stream = replace(
            stream,
            durable_kept=0,
            summary_kept=0,
            best_effort_kept=0,
            expires_at_ms=None,
            trimmed_ms=stream.last_ms if lasting else stream.trimmed_ms,
            trimmed_seq=stream.last_seq if lasting else stream.trimmed_seq,
        )
        transaction.execute(_SQL["delete_frames_of"], (seq, attempt_index))
        store_stream(transaction, seq, attempt_index, stream)


def store_stream(transaction: Transaction, seq: int, attempt_index: int, stream: StreamRecord) -> None:
    """Store the record of an attempt's stream."""
    transaction.execute(_SQL["store_stream"], (seq, attempt_index, stream.expires_at_ms, rows.encode(stream)))
