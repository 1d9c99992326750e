"""How an execution is stored, and how its row becomes the contract's records.

`Row` names the columns of `ff.execution` that readers use; `row_of` takes them out of whatever row has them, by
name, so a statement may select `e.*` beside columns of other tables. The definition is one MessagePack document,
because only readers need it; what functions need of it are columns of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from flowfabric.backends.definitions import decode_definition
from flowfabric.backends.vectors import VECTORS
from flowfabric.contract.attempt import AttemptRecord, Failure
from flowfabric.contract.execution import ExecutionRecord, Loaded, Progress, ReplayRecord
from flowfabric.contract.ids import AttemptId, ClaimId, ExecutionId, LeaseId, WorkerId, WorkerInstance
from flowfabric.contract.lease import GrantRecord, LeaseEvent, LeaseRecord
from flowfabric.contract.states import (
    AttemptRecordState,
    AttemptType,
    FailureClass,
    GrantPurpose,
    LeaseEventName,
    StreamClosedReason,
)


class Named(Protocol):
    """A row whose columns are read by name."""

    def __getitem__(self, name: str, /) -> Any:
        """Return a column."""
        ...


class Row(msgspec.Struct, frozen=True):
    """One execution as stored. `worker_*` are those of the latest attempt and of its lease; no lease: no `lease_id`."""

    seq: int
    id: str
    created_at_ms: int
    partition: int
    route_id: int
    namespace: str
    lane: str
    kind: str
    route: str
    vector: int
    priority: int
    eligible_since_ms: int
    run_started_at_ms: int
    last_mutation_at_ms: int
    history_count: int
    lease_epoch: int
    total_attempt_count: int
    retry_count: int
    reclaim_count: int
    replay_count: int
    lease_id: str | None
    claim_id: str | None
    acquired_at_ms: int | None
    renewed_at_ms: int | None
    ttl_ms: int | None
    expires_at_ms: int | None
    worker_id: str | None
    worker_instance: str | None
    attempt_id: str | None
    attempt_index: int | None
    attempt_type: str | None
    attempt_state: str | None
    attempt_started_at_ms: int | None
    attempt_epoch: int | None
    attempt_ended_at_ms: int | None
    timeout_at_ms: int | None
    previous_attempt_index: int | None
    attempt_failure: Sequence[str] | None
    stream_closed_at_ms: int | None
    stream_closed_reason: str | None
    started_at_ms: int | None
    completed_at_ms: int | None
    has_result: bool
    retention_due_at_ms: int | None
    frames_trim_at_ms: int | None
    stream_due_at_ms: int | None
    not_before_ms: int | None
    deadline_at_ms: int | None
    lost_at_ms: int | None
    lost_reason: str | None
    reclaim_at_ms: int | None
    reclaim_ready: bool
    reclaim_exempt: bool
    failure: Sequence[str] | None
    blocking_detail: str | None
    cancel_reason: str | None
    cancelled_by: str | None
    progress_percent: float | None
    progress_message: str | None
    progress_at_ms: int | None
    grant_purpose: str | None
    grant_worker_id: str | None
    grant_worker_instance: str | None
    granted_at_ms: int | None
    grant_expires_at_ms: int | None
    tags: str | bytes | None
    replays: str | bytes | None

    def __getitem__(self, name: str, /) -> Any:
        return getattr(self, name)

    @property
    def execution_id(self) -> ExecutionId:
        """The whole id."""
        return execution_id_of(self.partition, self.id)


COLUMNS: Final = Row.__struct_fields__
"""The columns of `ff.execution` that a `Row` has, in its order."""

_TAGS: Final = msgspec.json.Decoder(dict[str, str])
_REPLAYS: Final = msgspec.json.Decoder(tuple[ReplayRecord, ...])


def place_of(execution_id: ExecutionId) -> tuple[int, str]:
    """Return partition and uuid of a well-formed execution id, as functions and statements take them."""
    return int(execution_id[4 : execution_id.index("}")]), execution_id[-36:]


def execution_id_of(partition: int, uuid: str) -> ExecutionId:
    """Build an execution id from its columns."""
    return ExecutionId(f"{{fp:{partition}}}:{uuid}")


def row_of(record: Named) -> Row:
    """Take an execution's columns out of a row, by name."""
    return Row(*[record[name] for name in COLUMNS])


def decode_tags(stored: str | bytes | None) -> dict[str, str]:
    """Decode the tags of an execution."""
    return _TAGS.decode(stored) if stored else {}


def failure_of(stored: Sequence[str] | None) -> Failure | None:
    """Build a failure from its class, category and message."""
    if not stored:
        return None
    failure_class, category, message = stored
    return Failure(failure_class=FailureClass(failure_class), category=category, message=message)


def attempt_of(record: Named) -> AttemptRecord:
    """Build an attempt from a row of `ff.attempt`; an execution has columns of the same names for the latest."""
    reason = record["stream_closed_reason"]
    return AttemptRecord(
        attempt_id=AttemptId(record["attempt_id"]),
        attempt_index=record["attempt_index"],
        attempt_type=AttemptType(record["attempt_type"]),
        state=AttemptRecordState(record["attempt_state"]),
        started_at_ms=record["attempt_started_at_ms"],
        worker_id=WorkerId(record["worker_id"]),
        worker_instance=WorkerInstance(record["worker_instance"]),
        lease_epoch=record["attempt_epoch"],
        timeout_at_ms=record["timeout_at_ms"],
        previous_attempt_index=record["previous_attempt_index"],
        ended_at_ms=record["attempt_ended_at_ms"],
        failure=failure_of(record["attempt_failure"]),
        stream_closed_at_ms=record["stream_closed_at_ms"],
        stream_closed_reason=StreamClosedReason(reason) if reason is not None else None,
    )


def latest_attempt_of(row: Row) -> AttemptRecord | None:
    """Return the latest attempt of an execution."""
    return attempt_of(row) if row.attempt_id is not None else None


def lease_of(row: Row) -> LeaseRecord | None:
    """Return the lease an execution is or was last held under, unless it was given back."""
    if row.lease_id is None:
        return None
    return LeaseRecord(
        lease_id=LeaseId(row.lease_id),
        lease_epoch=row.lease_epoch,
        worker_id=WorkerId(row.worker_id or ""),
        worker_instance=WorkerInstance(row.worker_instance or ""),
        claim_id=ClaimId(row.claim_id) if row.claim_id is not None else None,
        acquired_at_ms=row.acquired_at_ms or 0,
        renewed_at_ms=row.renewed_at_ms,
        ttl_ms=row.ttl_ms or 0,
        expires_at_ms=row.expires_at_ms or 0,
        lost_at_ms=row.lost_at_ms,
        lost_reason=row.lost_reason,
    )


def grant_of(row: Row) -> GrantRecord | None:
    """Return the grant, if there is one."""
    if row.grant_purpose is None:
        return None
    return GrantRecord(
        purpose=GrantPurpose(row.grant_purpose),
        worker_id=WorkerId(row.grant_worker_id or ""),
        worker_instance=WorkerInstance(row.grant_worker_instance or ""),
        granted_at_ms=row.granted_at_ms or 0,
        expires_at_ms=row.grant_expires_at_ms or 0,
    )


def event_of(record: Named) -> LeaseEvent:
    """Build an entry of the lease history from a row of `ff.event`."""
    instance = record["worker_instance"]
    return LeaseEvent(
        event_id=record["n"],
        at_ms=record["at_ms"],
        name=LeaseEventName(record["name"]),
        reason=record["reason"],
        lease_id=record["lease_id"],
        lease_epoch=record["lease_epoch"],
        attempt_id=record["attempt_id"],
        attempt_index=record["attempt_index"],
        worker_instance=WorkerInstance(instance) if instance is not None else None,
        outcome=record["outcome"],
        actor=record["actor"],
    )


def record_of(row: Row) -> ExecutionRecord:
    """Build the contract's record."""
    progress = None
    if row.progress_at_ms is not None:
        progress = Progress(
            percent=row.progress_percent, message=row.progress_message, at_ms=row.progress_at_ms
        )
    return ExecutionRecord(
        state=VECTORS[row.vector],
        priority=row.priority,
        tags=decode_tags(row.tags),
        blocking_detail=row.blocking_detail or "",
        eligible_since_ms=row.eligible_since_ms,
        not_before_ms=row.not_before_ms,
        deadline_at_ms=row.deadline_at_ms,
        run_started_at_ms=row.run_started_at_ms,
        lease=lease_of(row),
        lease_epoch=row.lease_epoch,
        reclaim_at_ms=row.reclaim_at_ms,
        reclaim_ready=row.reclaim_ready,
        reclaim_exempt=row.reclaim_exempt,
        attempt=latest_attempt_of(row),
        total_attempt_count=row.total_attempt_count,
        retry_count=row.retry_count,
        reclaim_count=row.reclaim_count,
        replay_count=row.replay_count,
        grant=grant_of(row),
        started_at_ms=row.started_at_ms,
        completed_at_ms=row.completed_at_ms,
        last_mutation_at_ms=row.last_mutation_at_ms,
        progress=progress,
        failure=failure_of(row.failure),
        cancel_reason=row.cancel_reason,
        cancelled_by=row.cancelled_by,
        has_result=row.has_result,
        frames_trim_at_ms=row.frames_trim_at_ms,
        stream_due_at_ms=row.stream_due_at_ms,
        retention_due_at_ms=row.retention_due_at_ms,
        history_count=row.history_count,
        replays=_REPLAYS.decode(row.replays) if row.replays else (),
    )


def loaded(row: Row, document: bytes) -> Loaded:
    """Build what projections take; `document` is the stored definition."""
    return Loaded(decode_definition(document, row.created_at_ms), record_of(row))
