"""How an execution is stored: fields of its hash, packed as streams of MessagePack values.

`Packed` is everything that changes in an execution's life, `Static` what functions need of its definition. The order
of their fields is the stored order; the Lua code that reads and writes them is generated from here, so nothing is
counted by hand. `decode` turns a stored execution into the contract's records.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from flowfabric.backends.definitions import decode_definition
from flowfabric.backends.vectors import VECTORS
from flowfabric.contract.attempt import AttemptRecord, Failure
from flowfabric.contract.errors import Corrupt
from flowfabric.contract.execution import (
    ExecutionDefinition,
    ExecutionRecord,
    Loaded,
    Progress,
    ReplayRecord,
)
from flowfabric.contract.ids import AttemptId, ClaimId, LeaseId, WorkerId, WorkerInstance
from flowfabric.contract.lease import GrantRecord, LeaseEvent, LeaseRecord
from flowfabric.contract.policies import ExponentialBackoff, FixedBackoff
from flowfabric.contract.states import (
    AttemptRecordState,
    AttemptType,
    FailureClass,
    GrantPurpose,
    LeaseEventName,
    OwnershipState,
    StreamClosedReason,
)
from flowfabric.contract.stream import StreamRecord

T = TypeVar("T", bound=msgspec.Struct)

INLINE_BYTES_MAX: Final = 8_192
"""Payloads up to this size live in the execution's hash; larger ones have a key of their own."""

CORE: Final = 0
RARE: Final = 1
FIRST: Final = 2
"""The forms of a packed record: its first byte, in which they are told apart."""


class Packed(msgspec.Struct, array_like=True, kw_only=True):
    """What changes (`v`). `worker_*` are those of the latest attempt and of its lease; no lease: `lease_id` is None.

    The fields from `RARE_FROM` on are stored only when one of them is set; `form` says so. The fields are in the order
    in which the usual way of an execution can keep whole stretches of them as they are. Those up to `HEAD` have always
    the same width.
    """

    form: int = RARE
    """`CORE`, `RARE`, or `FIRST`: as `CORE`, on its first lease, and nothing has happened since."""
    vector: int
    priority: int
    eligible_since_ms: int
    created_at_ms: int
    run_started_at_ms: int
    last_mutation_at_ms: int
    attempt_id: AttemptId | None
    lease_id: LeaseId | None
    lease_epoch: int
    attempt_index: int | None
    worker_instance: WorkerInstance | None
    worker_id: WorkerId | None
    attempt_type: AttemptType | None
    attempt_started_at_ms: int | None
    attempt_epoch: int | None
    total_attempt_count: int
    started_at_ms: int | None
    claim_id: ClaimId | None
    history_count: int
    acquired_at_ms: int | None
    ttl_ms: int | None
    expires_at_ms: int | None
    attempt_state: AttemptRecordState | None
    attempt_ended_at_ms: int | None
    stream_closed_at_ms: int | None
    stream_closed_reason: StreamClosedReason | None
    completed_at_ms: int | None
    retention_due_at_ms: int | None
    result: str | None
    """Nonce of the result's payload; empty: it is in field `r`; None: there is no result."""
    result_type: str | None
    due_kind: str | None
    due_at_ms: int | None
    """The earliest timer, as it is in the due index."""
    retry_count: int = 0
    reclaim_count: int = 0
    replay_count: int = 0
    renewed_at_ms: int | None = None
    timeout_at_ms: int | None = None
    previous_attempt_index: int | None = None
    not_before_ms: int | None = None
    deadline_at_ms: int | None = None
    lost_at_ms: int | None = None
    lost_reason: str | None = None
    reclaim_at_ms: int | None = None
    reclaim_ready: bool | None = None
    reclaim_exempt: bool | None = None
    grant_expires_at_ms: int | None = None
    frames_trim_at_ms: int | None = None
    stream_due_at_ms: int | None = None
    has_failure: bool | None = None
    """Field `f` is set."""
    has_detail: bool | None = None
    """Field `b` is set."""


HEAD: Final = Packed.__struct_fields__.index("last_mutation_at_ms") + 1
RARE_FROM: Final = Packed.__struct_fields__.index("retry_count")
COUNTERS: Final = ("retry_count", "reclaim_count", "replay_count")
"""Rare fields that are 0 instead of None."""


class Static(msgspec.Struct, array_like=True, kw_only=True):
    """What functions need of the definition (`d`), but for its digest (`h`).

    Executions that are made alike have the same one, which functions read once.
    """

    namespace: str
    lane: str
    route: str
    rid: str
    input: str | None
    """Nonce of the input's payload; None: it is in field `i`."""
    input_type: str
    input_bytes: int
    max_retries: int | None
    """None: there is no retry policy."""
    backoff_kind: str | None
    backoff_delay_ms: int | None
    backoff_max_ms: int | None
    backoff_multiplier: float | None
    backoff_jitter: bool | None
    retryable_categories: str | None
    """Separated by NUL."""
    attempt_timeout_ms: int | None
    relative_deadline_ms: int | None
    absolute_deadline_ms: int | None
    max_reclaim_count: int | None
    reclaim_grace_ms: int | None
    max_replay_count: int | None
    retention_ms: int | None
    frames_ttl_ms: int | None
    frames_maxlen: int | None


class PackedAttempt(msgspec.Struct, array_like=True, kw_only=True):
    """A superseded attempt (`a<i>`); its failure is in `z<i>`, its answers in `w<i>`."""

    attempt_id: AttemptId
    attempt_index: int
    attempt_type: AttemptType
    attempt_state: AttemptRecordState
    attempt_started_at_ms: int
    worker_id: WorkerId
    worker_instance: WorkerInstance
    attempt_epoch: int
    timeout_at_ms: int | None
    previous_attempt_index: int | None
    attempt_ended_at_ms: int | None
    stream_closed_at_ms: int | None
    stream_closed_reason: StreamClosedReason | None


class PackedEvent(msgspec.Struct, array_like=True, kw_only=True):
    """An entry of the lease history (`e<n>`). Its last five fields are in `Packed` in the same order."""

    at_ms: int
    name: LeaseEventName
    reason: str | None
    outcome: str | None
    actor: str | None
    attempt_id: AttemptId | None
    lease_id: LeaseId | None
    lease_epoch: int
    attempt_index: int | None
    worker_instance: WorkerInstance | None


class PackedFailure(msgspec.Struct, array_like=True):
    """A failure (`f`, `z`)."""

    failure_class: FailureClass
    category: str
    message: str


class PackedProgress(msgspec.Struct, array_like=True):
    """Progress (`p`)."""

    percent: float | None
    message: str | None
    at_ms: int


class PackedGrant(msgspec.Struct, array_like=True):
    """A grant (`g`)."""

    purpose: GrantPurpose
    worker_id: WorkerId
    worker_instance: WorkerInstance
    granted_at_ms: int
    expires_at_ms: int


class PackedCancel(msgspec.Struct, array_like=True):
    """How it was cancelled (`c`)."""

    reason: str
    cancelled_by: str


class PackedReplay(msgspec.Struct, array_like=True):
    """One replay (`l` is a MessagePack array of them)."""

    replayed_at_ms: int
    outcome: str
    completed_at_ms: int
    actor: str
    last_attempt_index: int | None = None


def _header(count: int) -> bytes:
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + struct.pack(">H", count)


class PackedStream(msgspec.Struct, array_like=True, kw_only=True):
    """The stream of attempt i beside its frames (`s<i>`); the fields are the contract's, the document is in `y<i>`."""

    frame_count: int
    last_sequence: int
    last_ms: int
    last_seq: int
    durable_kept: int
    summary_kept: int
    best_effort_kept: int
    append_rate: float
    rate_at_ms: int | None
    best_effort_cap: int
    expires_at_ms: int | None
    trimmed_ms: int
    trimmed_seq: int
    version: int
    first_applied_at_ms: int
    last_updated_at_ms: int


FIELDS: Final = ("v", "d", "j", "t", "f", "z", "c", "p", "l", "g", "b")
"""The fields of the hash that `decode` needs, in its order."""

_RARE: Final = bytes((RARE,))
_CORE_HEADER: Final = _header(RARE_FROM)
_TAGS: Final = msgspec.json.Decoder(dict[str, str])
_REPLAYS: Final = msgspec.msgpack.Decoder(tuple[PackedReplay, ...])
_DECODERS: Final[dict[type[Any], msgspec.msgpack.Decoder[Any]]] = {}
_HEADERS: Final[dict[type[Any], bytes]] = {}


def unpack(data: bytes, record: type[T]) -> T:
    """Decode a packed record."""
    decoder = _DECODERS.get(record)
    if decoder is None:
        decoder = _DECODERS[record] = msgspec.msgpack.Decoder(record)
        _HEADERS[record] = _header(len(record.__struct_fields__))
    header = _HEADERS[record]
    if record is Packed and data[:1] != _RARE:
        header = _CORE_HEADER
    try:
        return decoder.decode(header + data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"a stored {record.__name__} cannot be read: {error}") from error


def pack(record: msgspec.Struct) -> bytes:
    """Encode a record as functions read it (a `Packed` always with its rare fields)."""
    return msgspec.msgpack.encode(record)[len(_header(len(record.__struct_fields__))) :]


def static_of(definition: ExecutionDefinition, rid: str, nonce: str | None, media: str, size: int) -> Static:
    """Take out of a definition what functions need."""
    policy = definition.policy
    retry, timeout, stream = policy.retry_policy, policy.timeout_policy, policy.stream_policy
    kind = delay = most = multiplier = jitter = categories = None
    if retry is not None:
        backoff = retry.backoff
        categories = "\0".join(retry.retryable_categories) if retry.retryable_categories else None
        jitter = backoff.jitter
        match backoff:
            case FixedBackoff():
                kind, delay = "fixed", backoff.delay_ms
            case ExponentialBackoff():
                kind, delay = "exponential", backoff.initial_delay_ms
                most, multiplier = backoff.max_delay_ms, backoff.multiplier
    return Static(
        namespace=definition.namespace,
        lane=definition.lane,
        route=definition.route,
        rid=rid,
        input=nonce,
        input_type=media,
        input_bytes=size,
        max_retries=retry.max_retries if retry is not None else None,
        backoff_kind=kind,
        backoff_delay_ms=delay,
        backoff_max_ms=most,
        backoff_multiplier=multiplier,
        backoff_jitter=jitter,
        retryable_categories=categories,
        attempt_timeout_ms=timeout.attempt_timeout_ms if timeout is not None else None,
        relative_deadline_ms=timeout.execution_deadline_ms if timeout is not None else None,
        absolute_deadline_ms=definition.deadline_at_ms,
        max_reclaim_count=policy.max_reclaim_count,
        reclaim_grace_ms=policy.reclaim_grace_ms,
        max_replay_count=policy.max_replay_count,
        retention_ms=policy.retention_ms,
        frames_ttl_ms=stream.retention_ttl_ms if stream is not None else None,
        frames_maxlen=stream.retention_maxlen if stream is not None else None,
    )


def decode_tags(data: bytes | None) -> dict[str, str]:
    """Decode tags (`t`)."""
    return _TAGS.decode(data) if data else {}


def failure_of(data: bytes | None) -> Failure | None:
    """Decode a failure."""
    if not data:
        return None
    found = unpack(data, PackedFailure)
    return Failure(failure_class=found.failure_class, category=found.category, message=found.message)


def attempt_of(packed: Packed | PackedAttempt, failure: bytes | None) -> AttemptRecord | None:
    """Return the latest attempt of an execution, or a superseded one."""
    if packed.attempt_id is None:
        return None
    return AttemptRecord(
        attempt_id=packed.attempt_id,
        attempt_index=packed.attempt_index or 0,
        attempt_type=packed.attempt_type or AttemptType.INITIAL,
        state=packed.attempt_state or AttemptRecordState.STARTED,
        started_at_ms=packed.attempt_started_at_ms or 0,
        worker_id=packed.worker_id or WorkerId(""),
        worker_instance=packed.worker_instance or WorkerInstance(""),
        lease_epoch=packed.attempt_epoch or 0,
        timeout_at_ms=packed.timeout_at_ms,
        previous_attempt_index=packed.previous_attempt_index,
        ended_at_ms=packed.attempt_ended_at_ms,
        failure=failure_of(failure),
        stream_closed_at_ms=packed.stream_closed_at_ms,
        stream_closed_reason=packed.stream_closed_reason,
    )


def superseded_of(data: bytes, failure: bytes | None) -> AttemptRecord:
    """Decode a superseded attempt (`a<i>`, `z<i>`)."""
    attempt = attempt_of(unpack(data, PackedAttempt), failure)
    if attempt is None:
        raise Corrupt("a superseded attempt has no id")
    return attempt


def lease_of(packed: Packed) -> LeaseRecord | None:
    """Return the lease an execution is or was last held under, unless it was given back."""
    if packed.lease_id is None:
        return None
    return LeaseRecord(
        lease_id=packed.lease_id,
        lease_epoch=packed.lease_epoch,
        worker_id=packed.worker_id or WorkerId(""),
        worker_instance=packed.worker_instance or WorkerInstance(""),
        claim_id=packed.claim_id,
        acquired_at_ms=packed.acquired_at_ms or 0,
        renewed_at_ms=packed.renewed_at_ms,
        ttl_ms=packed.ttl_ms or 0,
        expires_at_ms=packed.expires_at_ms or 0,
        lost_at_ms=packed.lost_at_ms,
        lost_reason=packed.lost_reason,
    )


def event_of(event_id: int, data: bytes) -> LeaseEvent:
    """Decode an entry of the lease history."""
    packed = unpack(data, PackedEvent)
    return LeaseEvent(event_id=event_id, **msgspec.structs.asdict(packed))


def _replays_of(data: bytes) -> tuple[ReplayRecord, ...]:
    return tuple(
        ReplayRecord(
            replayed_at_ms=replay.replayed_at_ms,
            outcome=replay.outcome,
            completed_at_ms=replay.completed_at_ms,
            last_attempt_index=replay.last_attempt_index,
            actor=replay.actor,
        )
        for replay in _REPLAYS.decode(data)
    )


def stream_of(data: bytes | None, document: bytes | None = None) -> StreamRecord | None:
    """Decode the record of an attempt's stream (`s<i>`, `y<i>`); None when nothing was ever appended."""
    if not data:
        return None
    return StreamRecord(
        **msgspec.structs.asdict(unpack(data, PackedStream)), document=msgspec.Raw(document or b"{}")
    )


def is_leased(packed: Packed) -> bool:
    """Say whether somebody holds the lease, as far as is recorded."""
    return VECTORS[packed.vector].ownership_state is OwnershipState.LEASED


def record_of(packed: Packed, fields: Sequence[bytes | None]) -> ExecutionRecord:
    """Build the contract's record; `fields` are those of `FIELDS` from `t` on."""
    tags, failure, attempt_failure, cancel, progress, replays, grant, detail = fields
    cancelled = unpack(cancel, PackedCancel) if cancel else None
    said = unpack(progress, PackedProgress) if progress else None
    given = unpack(grant, PackedGrant) if grant and packed.grant_expires_at_ms is not None else None
    return ExecutionRecord(
        state=VECTORS[packed.vector],
        priority=packed.priority,
        tags=decode_tags(tags),
        blocking_detail=detail.decode() if detail else "",
        eligible_since_ms=packed.eligible_since_ms,
        not_before_ms=packed.not_before_ms,
        deadline_at_ms=packed.deadline_at_ms,
        run_started_at_ms=packed.run_started_at_ms,
        lease=lease_of(packed),
        lease_epoch=packed.lease_epoch,
        reclaim_at_ms=packed.reclaim_at_ms,
        reclaim_ready=bool(packed.reclaim_ready),
        reclaim_exempt=bool(packed.reclaim_exempt),
        attempt=attempt_of(packed, attempt_failure),
        total_attempt_count=packed.total_attempt_count,
        retry_count=packed.retry_count,
        reclaim_count=packed.reclaim_count,
        replay_count=packed.replay_count,
        grant=GrantRecord(**msgspec.structs.asdict(given)) if given is not None else None,
        started_at_ms=packed.started_at_ms,
        completed_at_ms=packed.completed_at_ms,
        last_mutation_at_ms=packed.last_mutation_at_ms,
        progress=Progress(percent=said.percent, message=said.message, at_ms=said.at_ms) if said else None,
        failure=failure_of(failure),
        cancel_reason=cancelled.reason if cancelled is not None else None,
        cancelled_by=cancelled.cancelled_by if cancelled is not None else None,
        has_result=packed.result is not None,
        frames_trim_at_ms=packed.frames_trim_at_ms,
        stream_due_at_ms=packed.stream_due_at_ms,
        retention_due_at_ms=packed.retention_due_at_ms,
        history_count=packed.history_count,
        replays=_replays_of(replays) if replays else (),
    )


def decode(fields: Sequence[bytes | None]) -> Loaded | None:
    """Decode the fields of `FIELDS`; None when there is no such execution."""
    if fields[0] is None:
        return None
    if fields[2] is None:
        raise Corrupt("an execution has no definition")
    packed = unpack(fields[0], Packed)
    return Loaded(decode_definition(fields[2], packed.created_at_ms), record_of(packed, fields[3:]))
