"""Records of executions: what is stored, and what readers see.

`ExecutionDefinition` is what create fixed for good; `ExecutionRecord` is everything that changes. Together they are
all that the rules load. Instants are milliseconds since the epoch on the store's clock.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from flowfabric.contract import ids
from flowfabric.contract.attempt import AttemptRecord, Failure
from flowfabric.contract.ids import AttemptId, ExecutionId, FlowId, Lane, LeaseId, Namespace, WorkerInstance
from flowfabric.contract.lease import GrantRecord, LeaseRecord
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy
from flowfabric.contract.states import AttemptRecordState, PublicState, StateVector


class ExecutionDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What create fixed."""

    execution_id: ExecutionId
    namespace: Namespace
    lane: Lane
    kind: ids.Kind
    route: str
    """Kind and required capabilities as one text; eligible work is indexed by (lane, route)."""
    required_capabilities: tuple[str, ...] = ()
    """Sorted, distinct."""
    creator: str = ""
    idempotency_key: str | None = None
    digest: str
    """SHA-256 of the canonical create command; the same id or key with another digest is a conflict."""
    policy: ExecutionPolicy = ExecutionPolicy()
    kind_known: bool = False
    """A worker had published defaults for this kind."""
    traceparent: str | None = None
    created_at_ms: int
    deadline_at_ms: int | None = None
    """The absolute deadline given at create."""
    flow_id: FlowId | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the handler last said about how far it is."""

    percent: float | None = None
    message: str | None = None
    at_ms: int


class ReplayRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run that was replayed: lineage."""

    replayed_at_ms: int
    outcome: str
    completed_at_ms: int
    last_attempt_index: int | None
    actor: str


class ExecutionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What changes during an execution's life."""

    state: StateVector
    priority: int
    tags: dict[str, str] = {}
    blocking_detail: str = ""
    eligible_since_ms: int
    """Age for ordering: creation, or the delay given at create; retries and resumes keep it."""
    not_before_ms: int | None = None
    """Set while delayed."""
    deadline_at_ms: int | None = None
    run_started_at_ms: int
    """Creation or the latest replay: relative deadlines count from here."""
    lease: LeaseRecord | None = None
    lease_epoch: int = 0
    reclaim_at_ms: int | None = None
    """Set while the lease is lost and the execution not yet claimable: when its grace ends."""
    reclaim_ready: bool = False
    """The lease is lost and the execution claimable."""
    reclaim_exempt: bool = False
    """The lease was handed back: taking over counts towards no cap."""
    attempt: AttemptRecord | None = None
    """The latest."""
    total_attempt_count: int = 0
    retry_count: int = 0
    reclaim_count: int = 0
    replay_count: int = 0
    grant: GrantRecord | None = None
    started_at_ms: int | None = None
    completed_at_ms: int | None = None
    last_mutation_at_ms: int
    progress: Progress | None = None
    failure: Failure | None = None
    cancel_reason: str | None = None
    cancelled_by: str | None = None
    has_result: bool = False
    frames_trim_at_ms: int | None = None
    """Set at the end when the policy trims frames before the record goes."""
    stream_due_at_ms: int | None = None
    """No later than when a lossy stream of this execution expires."""
    retention_due_at_ms: int | None = None
    history_count: int = 0
    replays: tuple[ReplayRecord, ...] = ()


class Loaded(msgspec.Struct, frozen=True):
    """One execution as loaded."""

    definition: ExecutionDefinition
    record: ExecutionRecord


class ExecutionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The published short record of an execution."""

    execution_id: ExecutionId
    namespace: Namespace
    lane: Lane
    kind: ids.Kind
    priority: int
    state_vector: StateVector
    public_state: PublicState
    created_at_ms: int
    started_at_ms: int | None
    completed_at_ms: int | None
    current_attempt_index: int | None
    flow_id: FlowId | None
    blocking_detail: str
    tags: dict[str, str]


class AttemptSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The latest attempt, in short."""

    attempt_id: AttemptId
    attempt_index: int
    state: AttemptRecordState
    started_at_ms: int


class LeaseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The live lease, in short (without what would let a reader act under it)."""

    lease_id: LeaseId
    lease_epoch: int
    worker_instance: WorkerInstance
    acquired_at_ms: int
    expires_at_ms: int
    last_renewed_at_ms: int | None
    attempt_index: int


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Why an execution is not running, and what would let it run."""

    reason: Literal[
        "no_capable_worker",
        "workers_busy",
        "lane_paused",
        "lane_disabled",
        "granted",
        "delayed",
        "retry_backoff",
        "blocked",
        "waiting_children",
        "reclaim_grace",
    ]
    message: str
    """One sentence for people."""
    until_ms: int | None = None
    missing_capabilities: tuple[str, ...] = ()


class ExecutionSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an execution but its payloads."""

    execution_id: ExecutionId
    namespace: Namespace
    lane: Lane
    kind: ids.Kind
    priority: int
    flow_id: FlowId | None
    state_vector: StateVector
    public_state: PublicState
    blocking_detail: str
    waiting: Waiting | None
    """Set while it could run but does not."""
    kind_known: bool
    """Workers have published this kind; otherwise it was created with lane `default` and no retries."""
    creator: str
    idempotency_key: str | None
    traceparent: str | None
    required_capabilities: tuple[str, ...]
    policy: ExecutionPolicy
    tags: dict[str, str]
    current_attempt: AttemptSummary | None
    current_lease: LeaseSummary | None
    progress: Progress | None
    failure: Failure | None
    cancel_reason: str | None
    cancelled_by: str | None
    created_at_ms: int
    started_at_ms: int | None
    completed_at_ms: int | None
    last_mutation_at_ms: int
    not_before_ms: int | None
    deadline_at_ms: int | None
    retention_due_at_ms: int | None
    total_attempt_count: int
    retry_count: int
    reclaim_count: int
    replay_count: int
    replays: tuple[ReplayRecord, ...]


class ExecutionContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler needs: input, kind and tags."""

    execution_id: ExecutionId
    kind: ids.Kind
    input: Payload
    tags: dict[str, str]
