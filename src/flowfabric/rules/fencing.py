"""Guards of fenced operations, in their one order, and the answers to repetitions.

The order is: a repetition gets its first answer; the execution must be active; its lease neither revoked nor expired
(an expiry that nobody recorded yet is recorded by the refusal); and the fence must match in every part given.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from flowfabric.contract.attempt import Answered, AttemptRecord
from flowfabric.contract.errors import ExecutionNotActive, LeaseExpired, LeaseRevoked, Refused, StaleLease
from flowfabric.contract.payloads import Fence
from flowfabric.contract.states import LifecyclePhase, OwnershipState
from flowfabric.rules import transitions
from flowfabric.rules.decision import Decision, Loaded

Reply = TypeVar("Reply")


def not_active(loaded: Loaded) -> ExecutionNotActive:
    """Build the refusal that lets a caller recognise what happened instead."""
    record = loaded.record
    return ExecutionNotActive(
        f"the execution is {record.state.public_state.value}, not active",
        terminal_outcome=record.state.terminal_outcome.value,
        lease_epoch=record.lease_epoch,
        lifecycle_phase=record.state.lifecycle_phase.value,
        attempt_id=record.attempt.attempt_id if record.attempt is not None else None,
    )


def repeated(
    loaded: Loaded,
    fence: Fence | None,
    operation: str,
    digest: str,
    reply: Any,
    former: AttemptRecord | None,
) -> Decision[Any] | None:
    """Return the first answer when this operation, under this fence, with this content, was carried out before."""
    if fence is None:
        return None
    for attempt in (loaded.record.attempt, former):
        if attempt is None or attempt.attempt_id != fence.attempt_id:
            continue
        for answer in attempt.answered:
            if (
                answer.lease_id == fence.lease_id
                and answer.lease_epoch == fence.lease_epoch
                and answer.operation == operation
                and answer.digest == digest
            ):
                return Decision(reply=msgspec.json.decode(answer.reply, type=reply))
    return None


def answer_of(fence: Fence | None, operation: str, digest: str, reply: msgspec.Struct) -> Answered | None:
    """Build what is remembered of an operation; unfenced operations by an operator are not repeated by fence."""
    if fence is None or fence.lease_id is None or fence.lease_epoch is None:
        return None
    return Answered(
        operation=operation,
        lease_id=fence.lease_id,
        lease_epoch=fence.lease_epoch,
        digest=digest,
        reply=msgspec.Raw(msgspec.json.encode(reply)),
    )


def refuse(refusal: Refused) -> Decision[Any]:
    """Refuse and write nothing."""
    return Decision(refusal=refusal)


def guard(loaded: Loaded, fence: Fence | None, now_ms: int) -> Decision[Any] | None:
    """Return a refusal, or None when the caller holds the live lease (or, without a fence, may act as if)."""
    record = loaded.record
    if record.state.lifecycle_phase is not LifecyclePhase.ACTIVE:
        return refuse(not_active(loaded))
    ownership = record.state.ownership_state
    lease = record.lease
    if ownership is OwnershipState.LEASE_REVOKED:
        return refuse(LeaseRevoked(reason=lease.lost_reason if lease is not None else None))
    if ownership is OwnershipState.LEASE_EXPIRED_RECLAIMABLE or lease is None:
        return refuse(LeaseExpired(expired_at_ms=lease.lost_at_ms if lease is not None else None))
    if lease.expires_at_ms <= now_ms:
        after, happened = transitions.expire_lease(loaded, now_ms)
        return Decision(
            refusal=LeaseExpired(expired_at_ms=lease.expires_at_ms),
            record=msgspec.structs.replace(after, history_count=record.history_count + 1),
            events=(happened,),
        )
    if fence is None:
        return None
    attempt = record.attempt
    if (
        fence.lease_id != lease.lease_id
        or fence.lease_epoch != lease.lease_epoch
        or attempt is None
        or fence.attempt_id != attempt.attempt_id
        or (fence.lane is not None and fence.lane != loaded.definition.lane)
        or (fence.route is not None and fence.route != loaded.definition.route)
    ):
        return refuse(StaleLease(lease_epoch=lease.lease_epoch))
    return None
