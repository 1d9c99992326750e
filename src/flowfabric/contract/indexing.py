"""Which index entries an execution must have, derived from its record alone.

Backends write them with every change of the record and check them against it; the derivation is the same for all.
"""

from __future__ import annotations

import msgspec

from flowfabric.contract.backend import DueKind
from flowfabric.contract.execution import ExecutionDefinition, ExecutionRecord
from flowfabric.contract.states import EligibilityState, LifecyclePhase, OwnershipState


class IndexEntries(msgspec.Struct, frozen=True, kw_only=True):
    """What an execution's index entries must be, derived from its record."""

    ready: bool
    """It is in the eligible index of its lane and route, by (priority, eligible_since_ms, id)."""
    due_kind: str | None
    due_at_ms: int | None
    """Its earliest timer."""
    holder: str | None
    """`<namespace> <instance>` of the worker that holds its lease (a record with ownership `leased`)."""
    claim_id: str | None
    lost_at_ms: int | None
    """When its lease was lost, while nobody has taken over."""


def is_ready(record: ExecutionRecord) -> bool:
    """Say whether the execution can be claimed right now by whoever is capable."""
    if record.grant is not None:
        return False
    state = record.state
    if state.lifecycle_phase is LifecyclePhase.RUNNABLE:
        return state.eligibility_state is EligibilityState.ELIGIBLE_NOW
    return record.reclaim_ready


def due(record: ExecutionRecord) -> tuple[DueKind, int] | None:
    """Return the execution's earliest timer, or None when it has none."""
    found: tuple[DueKind, int] | None = None

    def offer(kind: DueKind, at_ms: int | None) -> None:
        nonlocal found
        if at_ms is not None and (found is None or at_ms < found[1]):
            found = (kind, at_ms)

    state = record.state
    if state.lifecycle_phase is LifecyclePhase.TERMINAL:
        offer(DueKind.RETENTION, record.frames_trim_at_ms)
        offer(DueKind.RETENTION, record.retention_due_at_ms)
    else:
        offer(DueKind.EXECUTION_DEADLINE, record.deadline_at_ms)
        if state.ownership_state is OwnershipState.LEASED:
            if record.attempt is not None:
                offer(DueKind.ATTEMPT_TIMEOUT, record.attempt.timeout_at_ms)
            if record.lease is not None:
                offer(DueKind.LEASE_EXPIRY, record.lease.expires_at_ms)
        offer(DueKind.LEASE_EXPIRY, record.reclaim_at_ms)
        offer(DueKind.DELAYED, record.not_before_ms)
        if record.grant is not None:
            offer(DueKind.GRANT_EXPIRY, record.grant.expires_at_ms)
    offer(DueKind.RETENTION, record.stream_due_at_ms)
    return found


def index_entries(definition: ExecutionDefinition, record: ExecutionRecord) -> IndexEntries:
    """Return the index entries that agree with this record."""
    timer = due(record)
    holder: str | None = None
    claim_id: str | None = None
    lost_at_ms: int | None = None
    lease = record.lease
    if lease is not None:
        if record.state.ownership_state is OwnershipState.LEASED:
            holder = f"{definition.namespace} {lease.worker_instance}"
            claim_id = lease.claim_id
        elif record.state.lifecycle_phase is LifecyclePhase.ACTIVE:
            lost_at_ms = lease.lost_at_ms
    return IndexEntries(
        ready=is_ready(record),
        due_kind=timer[0].value if timer is not None else None,
        due_at_ms=timer[1] if timer is not None else None,
        holder=holder,
        claim_id=claim_id,
        lost_at_ms=lost_at_ms,
    )
