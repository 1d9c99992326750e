"""What `execution_create` is given for one create, and what its answers mean.

Creates of a kind have most in common: where they belong, and what functions need of their policies. That is a shape,
one JSON text; the function looks at every distinct shape of a batch once. Nothing here needs a driver, so that an
application's own connection can be used as well. What must stay true: the stamp of a kind's defaults is worked out here
as the function works it out, so that a create never goes by defaults that are not the stored ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.definitions import encode_definition
from flowfabric.contract import ids, limits
from flowfabric.contract.creating import define, place, priority_of
from flowfabric.contract.errors import Corrupt
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreated,
    ExecutionDefinition,
    ExecutionDuplicate,
)
from flowfabric.contract.ids import ExecutionId, PartitionCounts
from flowfabric.contract.policies import ExponentialBackoff, FixedBackoff, KindDefaults
from flowfabric.contract.states import PublicState

FUNCTION: Final = "execution_create"
TYPES: Final = (
    "uuid",
    "integer",
    "text",
    "integer",
    "text",
    "bytea",
    "text",
    "bytea",
    "text",
    "text",
    "bigint",
    "bigint",
)
"""The parameters of the function, each an array of these."""
ANSWERED: Final = ("status", "execution_id", "public_state", "created_at_ms")
"""The columns of an answer beside position, code, message and details."""

CHUNK: Final = 128
"""Creates that share a statement at most, when they come together."""
CHUNK_BYTES: Final = 4 * 1024 * 1024
"""Of payloads, unless one alone has more."""
UNSETTLED: Final = "the defaults of this kind change too fast; nothing was created"

Created = ExecutionCreated | ExecutionDuplicate

_DEFAULTS: Final = msgspec.json.Decoder(KindDefaults)
_ENCODE: Final = msgspec.json.Encoder().encode
_STATES: Final = {state.value: state for state in PublicState}


class Published(msgspec.Struct, frozen=True):
    """What a worker published about a kind."""

    defaults: KindDefaults
    stamp: str
    """Stands for it in functions."""


class Shape(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What creates have in common, as functions read it."""

    namespace: str
    lane: str
    kind: str
    route: str
    required: tuple[str, ...]
    window_ms: int
    """How long an idempotency key holds."""
    defaults: str | None = None
    """The stamp of the kind's defaults that were gone by; None: none were known."""
    max_retries: int | None = None
    backoff_kind: str | None = None
    backoff_delay_ms: int | None = None
    backoff_max_ms: int | None = None
    backoff_multiplier: float | None = None
    backoff_jitter: bool | None = None
    retryable_categories: tuple[str, ...] | None = None
    attempt_timeout_ms: int | None = None
    relative_deadline_ms: int | None = None
    max_reclaim_count: int | None = None
    reclaim_grace_ms: int | None = None
    max_replay_count: int | None = None
    retention_ms: int | None = None
    frames_ttl_ms: int | None = None
    frames_maxlen: int | None = None


class Prepared(msgspec.Struct, frozen=True):
    """A create, ready to be sent."""

    definition: ExecutionDefinition
    priority: int
    minted: bool
    values: tuple[Any, ...]
    """The arguments of the function, as `TYPES`."""
    size: int
    """Bytes of its payload."""


def published_of(stored: bytes) -> Published:
    """Decode what a worker published about a kind."""
    try:
        return Published(_DEFAULTS.decode(stored), hashlib.sha256(stored).hexdigest()[:16])
    except msgspec.MsgspecError as error:
        raise Corrupt(f"stored defaults of a kind cannot be read: {error}") from error


def shape_of(definition: ExecutionDefinition, stamp: str | None) -> Shape:
    """Take out of a definition what functions need."""
    policy = definition.policy
    window_ms = policy.dedup_window_ms
    shape = Shape(
        namespace=definition.namespace,
        lane=definition.lane,
        kind=definition.kind,
        route=definition.route,
        required=definition.required_capabilities,
        window_ms=window_ms if window_ms is not None else limits.DEDUP_WINDOW_DEFAULT_MS,
        defaults=stamp,
        max_reclaim_count=policy.max_reclaim_count,
        reclaim_grace_ms=policy.reclaim_grace_ms,
        max_replay_count=policy.max_replay_count,
        retention_ms=policy.retention_ms,
    )
    if policy.timeout_policy is not None:
        shape.attempt_timeout_ms = policy.timeout_policy.attempt_timeout_ms
        shape.relative_deadline_ms = policy.timeout_policy.execution_deadline_ms
    if policy.stream_policy is not None:
        shape.frames_ttl_ms = policy.stream_policy.retention_ttl_ms
        shape.frames_maxlen = policy.stream_policy.retention_maxlen
    retry = policy.retry_policy
    if retry is not None:
        shape.max_retries = retry.max_retries
        shape.retryable_categories = retry.retryable_categories or None
        shape.backoff_jitter = retry.backoff.jitter
        match retry.backoff:
            case FixedBackoff(delay_ms=delay_ms):
                shape.backoff_kind, shape.backoff_delay_ms = "fixed", delay_ms
            case ExponentialBackoff(initial_delay_ms=delay_ms, max_delay_ms=most_ms, multiplier=multiplier):
                shape.backoff_kind, shape.backoff_delay_ms = "exponential", delay_ms
                shape.backoff_max_ms, shape.backoff_multiplier = most_ms, multiplier
    return shape


def prepare(
    command: ExecutionCreate,
    published: Published | None,
    counts: PartitionCounts,
    retention_default_ms: int,
    execution_id: ExecutionId | None = None,
) -> Prepared:
    """Work out what is sent for a checked command; `execution_id` is one that was minted for it before.

    Refuses: invalid_input for an id that does not fit.
    """
    misplaced = place(command, counts)
    if misplaced is not None:
        raise misplaced
    defaults = published.defaults if published is not None else None
    minted = command.execution_id is None
    definition = define(
        command,
        execution_id=command.execution_id
        or execution_id
        or ids.mint_execution_id(
            counts, namespace=command.namespace, idempotency_key=command.idempotency_key
        ),
        defaults=defaults,
        retention_default_ms=retention_default_ms,
        now_ms=0,
    )
    priority = priority_of(command, defaults)
    text = definition.execution_id
    payload = command.input
    values = (
        text[-36:],
        int(text[4:-38]),
        _ENCODE(shape_of(definition, published.stamp if published is not None else None)).decode(),
        priority,
        definition.digest,
        encode_definition(definition),
        payload.content_type,
        payload.data,
        _ENCODE(command.tags).decode() if command.tags else None,
        command.idempotency_key,
        command.delay_until_ms,
        command.deadline_at_ms,
    )
    return Prepared(definition, priority, minted, values, len(payload.data))


def columns_of(items: Sequence[Prepared]) -> list[list[Any]]:
    """Return the arguments of the function for several creates: one array for each parameter."""
    return [list(column) for column in zip(*(item.values for item in items), strict=True)]


def chunks(items: Sequence[ExecutionCreate]) -> list[Sequence[ExecutionCreate]]:
    """Split creates into what one statement takes, by count and by bytes."""
    found: list[Sequence[ExecutionCreate]] = []
    start = size = 0
    for at, item in enumerate(items):
        room = len(item.input.data)
        if at > start and (at - start >= CHUNK or size + room > CHUNK_BYTES):
            found.append(items[start:at])
            start, size = at, 0
        size += room
    if items:
        found.append(items[start:])
    return found


def answer_of(
    prepared: Prepared, status: str, known_id: str | None, public_state: str | None, created_at_ms: int | None
) -> Created:
    """Read the answer to a create that was not refused."""
    definition = prepared.definition
    state = _STATES[public_state] if public_state is not None else None
    # An id that only this call knows is there already when an earlier sending of it was carried out.
    is_own = prepared.minted and known_id == definition.execution_id
    if status == "duplicate" and known_id is not None and not is_own:
        return ExecutionDuplicate(execution_id=ExecutionId(known_id), public_state=state)
    if state is None or created_at_ms is None:
        raise Corrupt("a create was answered with something that cannot be read")
    return ExecutionCreated(
        execution_id=definition.execution_id,
        public_state=state,
        lane=definition.lane,
        priority=prepared.priority,
        created_at_ms=created_at_ms,
    )
