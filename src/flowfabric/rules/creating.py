"""Creating executions: whether a create is accepted, and the first record.

Placement, defaults and what counts as the same create are in `contract.creating`, which every backend uses.
"""

from __future__ import annotations

import msgspec

from flowfabric.contract.creating import (
    clamp_priority,
    deadline_ms,
    define,
    digest,
    lane_of,
    place,
    priority_of,
    route_of,
)
from flowfabric.contract.errors import IdempotencyConflict, LaneNotAccepting, Refused
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreated,
    ExecutionDefinition,
    ExecutionDuplicate,
    ExecutionRecord,
    Loaded,
)
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.policies import KindDefaults
from flowfabric.contract.states import (
    DELAYED,
    ELIGIBLE,
    LANE_ACCEPTS_CREATES,
    AttemptState,
    BlockingReason,
    LaneState,
    PublicState,
)
from flowfabric.rules.decision import Decision

__all__ = [
    "Creation",
    "clamp_priority",
    "create",
    "deadline_ms",
    "digest",
    "duplicate",
    "duplicate_of",
    "lane_of",
    "place",
    "route_of",
]


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal, or the new execution and the answer."""

    refusal: Refused | None = None
    definition: ExecutionDefinition | None = None
    record: ExecutionRecord | None = None
    reply: ExecutionCreated | None = None


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
    priority = priority_of(command, defaults)
    delay_until_ms = command.delay_until_ms
    delayed = delay_until_ms is not None and delay_until_ms > now_ms
    if delayed:
        state = DELAYED[BlockingReason.WAITING_FOR_DELAY, AttemptState.PENDING_FIRST_ATTEMPT]
    else:
        state = ELIGIBLE[AttemptState.PENDING_FIRST_ATTEMPT]
        delay_until_ms = None
    definition = define(
        command,
        execution_id=execution_id,
        defaults=defaults,
        retention_default_ms=retention_default_ms,
        now_ms=now_ms,
    )
    record = ExecutionRecord(
        state=state,
        priority=priority,
        tags=command.tags,
        eligible_since_ms=delay_until_ms if delay_until_ms is not None else now_ms,
        not_before_ms=delay_until_ms,
        deadline_at_ms=deadline_ms(definition.policy, command.deadline_at_ms, now_ms),
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
