"""Creating executions: defaults, placement, what counts as the same create, the first record."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import IdempotencyConflict, InvalidInput, LaneNotAccepting, Refused
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreated,
    ExecutionDefinition,
    ExecutionDuplicate,
    ExecutionRecord,
)
from flowfabric.contract.ids import ExecutionId, Lane, PartitionCounts
from flowfabric.contract.policies import ExecutionPolicy, KindDefaults, fill_policy
from flowfabric.contract.states import (
    DELAYED,
    ELIGIBLE,
    LANE_ACCEPTS_CREATES,
    AttemptState,
    BlockingReason,
    LaneState,
    PublicState,
)
from flowfabric.rules.decision import Decision, Loaded

_CANONICAL: Final = msgspec.json.Encoder(order="sorted")


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal, or the new execution and the answer."""

    refusal: Refused | None = None
    definition: ExecutionDefinition | None = None
    record: ExecutionRecord | None = None
    reply: ExecutionCreated | None = None


def digest(command: ExecutionCreate) -> str:
    """Return what makes two creates the same: SHA-256 of the command without its id and instants.

    Instants are left out because a caller that repeats "in five minutes" sends another instant; so is the trace.
    """
    content = _CANONICAL.encode(
        (
            command.namespace,
            command.lane,
            command.kind,
            command.priority,
            command.creator,
            command.idempotency_key,
            command.tags,
            command.policy,
            command.input.content_type,
        )
    )
    hashed = hashlib.sha256(content)
    hashed.update(command.input.data)
    return hashed.hexdigest()


def place(command: ExecutionCreate, partitions: PartitionCounts) -> InvalidInput | None:
    """Refuse an id whose partition does not exist or, with a key, is not the key's."""
    if command.execution_id is None:
        return None
    partition, _ = ids.parse_execution_id(command.execution_id)
    if partition >= partitions.flow:
        return InvalidInput(f"the store has {partitions.flow} flow partitions", field="execution_id")
    if command.idempotency_key is not None:
        expected = ids.key_partition(command.namespace, command.idempotency_key, partitions)
        if partition != expected:
            return InvalidInput(
                f"an id created under this idempotency key is in partition {expected}: leave execution_id out, or "
                "mint it from namespace and key",
                field="execution_id",
            )
    return None


def lane_of(command: ExecutionCreate, defaults: KindDefaults | None) -> Lane:
    """Return the lane: the command's, else the kind's, else `default`."""
    if command.lane is not None:
        return command.lane
    if defaults is not None and defaults.lane is not None:
        return defaults.lane
    return ids.DEFAULT_LANE


def route_of(kind: str, capabilities: tuple[str, ...]) -> str:
    """Return the route: kind and required capabilities (sorted, distinct) as one text."""
    return f"{kind}|{','.join(capabilities)}"


def clamp_priority(priority: int) -> int:
    """Return the effective priority, 0 to 9000."""
    return max(limits.PRIORITY_MIN, min(limits.PRIORITY_MAX, priority))


def effective_policy(
    given: ExecutionPolicy | None, defaults: KindDefaults | None, retention_default_ms: int
) -> ExecutionPolicy:
    """Fill the policy fields that were not given from the kind's defaults, and the retention from the store's."""
    policy = fill_policy(given, defaults.policy if defaults is not None else None)
    if policy is None:
        return ExecutionPolicy(retention_ms=retention_default_ms)
    if policy.retention_ms is None:
        return msgspec.structs.replace(policy, retention_ms=retention_default_ms)
    return policy


def deadline_ms(policy: ExecutionPolicy, absolute_ms: int | None, run_started_at_ms: int) -> int | None:
    """Return the earlier of the absolute deadline and the policy's, which counts from the run's start."""
    relative = policy.timeout_policy.execution_deadline_ms if policy.timeout_policy is not None else None
    if relative is None:
        return absolute_ms
    at_ms = run_started_at_ms + relative
    return at_ms if absolute_ms is None else min(at_ms, absolute_ms)


def create(
    command: ExecutionCreate,
    *,
    execution_id: ExecutionId,
    defaults: KindDefaults | None,
    lane_state: LaneState,
    retention_default_ms: int,
    now_ms: int,
) -> Creation:
    """Build a new execution. `execution_id` is the command's, or one minted by the store; its lane is `lane_of`."""
    lane = lane_of(command, defaults)
    if lane_state not in LANE_ACCEPTS_CREATES:
        return Creation(
            refusal=LaneNotAccepting(
                f"lane {lane} is {lane_state.value} and takes no new work", lane=lane, state=lane_state.value
            )
        )
    policy = effective_policy(command.policy, defaults, retention_default_ms)
    routing = policy.routing_requirements
    required: tuple[str, ...] = ()
    if routing is not None and routing.required_capabilities:
        required = tuple(sorted(set(routing.required_capabilities)))
    priority = command.priority
    if priority is None:
        priority = defaults.priority if defaults is not None and defaults.priority is not None else 0
    priority = clamp_priority(priority)
    delay_until_ms = command.delay_until_ms
    delayed = delay_until_ms is not None and delay_until_ms > now_ms
    if delayed:
        state = DELAYED[BlockingReason.WAITING_FOR_DELAY, AttemptState.PENDING_FIRST_ATTEMPT]
    else:
        state = ELIGIBLE[AttemptState.PENDING_FIRST_ATTEMPT]
        delay_until_ms = None
    definition = ExecutionDefinition(
        execution_id=execution_id,
        namespace=command.namespace,
        lane=lane,
        kind=command.kind,
        route=route_of(command.kind, required),
        required_capabilities=required,
        creator=command.creator,
        idempotency_key=command.idempotency_key,
        digest=digest(command),
        policy=policy,
        kind_known=defaults is not None,
        traceparent=command.traceparent,
        created_at_ms=now_ms,
        deadline_at_ms=command.deadline_at_ms,
    )
    record = ExecutionRecord(
        state=state,
        priority=priority,
        tags=command.tags,
        eligible_since_ms=delay_until_ms if delay_until_ms is not None else now_ms,
        not_before_ms=delay_until_ms,
        deadline_at_ms=deadline_ms(policy, command.deadline_at_ms, now_ms),
        run_started_at_ms=now_ms,
        last_mutation_at_ms=now_ms,
    )
    reply = ExecutionCreated(
        execution_id=execution_id,
        public_state=state.public_state,
        lane=lane,
        priority=priority,
        created_at_ms=now_ms,
    )
    return Creation(definition=definition, record=record, reply=reply)


def duplicate(command: ExecutionCreate, known: Loaded) -> Decision[ExecutionDuplicate]:
    """Answer a create whose id or key is known: the same content is a duplicate, other content a conflict."""
    return duplicate_of(
        command, known.definition.execution_id, known.definition.digest, known.record.state.public_state
    )


def duplicate_of(
    command: ExecutionCreate, execution_id: ExecutionId, known_digest: str, public_state: PublicState | None
) -> Decision[ExecutionDuplicate]:
    """As `duplicate`, from what an idempotency entry remembers; no state when retention has removed the execution."""
    if digest(command) != known_digest:
        return Decision(refusal=IdempotencyConflict(execution_id=execution_id))
    return Decision(reply=ExecutionDuplicate(execution_id=execution_id, public_state=public_state))
