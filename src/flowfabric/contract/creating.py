"""What every backend works out of a create before its store sees it: placement, defaults, what counts as the same.

Pure functions of the command and the kind's published defaults; whether the create is accepted is for the rules.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.execution import ExecutionCreate, ExecutionDefinition
from flowfabric.contract.ids import ExecutionId, Lane, PartitionCounts
from flowfabric.contract.policies import ExecutionPolicy, KindDefaults, fill_policy

_CANONICAL: Final = msgspec.json.Encoder(order="sorted")


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


def priority_of(command: ExecutionCreate, defaults: KindDefaults | None) -> int:
    """Return the effective priority: the command's, else the kind's, else 0."""
    priority = command.priority
    if priority is None:
        priority = defaults.priority if defaults is not None and defaults.priority is not None else 0
    return clamp_priority(priority)


def define(
    command: ExecutionCreate,
    *,
    execution_id: ExecutionId,
    defaults: KindDefaults | None,
    retention_default_ms: int,
    now_ms: int,
) -> ExecutionDefinition:
    """Return what create fixes for good; its lane is `lane_of`."""
    policy = effective_policy(command.policy, defaults, retention_default_ms)
    routing = policy.routing_requirements
    required: tuple[str, ...] = ()
    if routing is not None and routing.required_capabilities:
        required = tuple(sorted(set(routing.required_capabilities)))
    return ExecutionDefinition(
        execution_id=execution_id,
        namespace=command.namespace,
        lane=lane_of(command, defaults),
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
