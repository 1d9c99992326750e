"""When a call is sent again: which commands are safe to repeat, what is filled in to make them so, how long to wait.

A request that never reached a server may always be sent again. One that may have been carried out is sent again only
when the manifest says what makes its repetition harmless and the command has it. Refusals by the domain are answers:
they are never tried again here, whatever their `retryable` says, because only the caller knows whether to wait.
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from flowfabric.contract import ids
from flowfabric.contract.errors import FlowFabricError, RequestTimeout, ResourceExhausted, Unavailable
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import AttemptId, ClaimId, LeaseId, PartitionCounts
from flowfabric.contract.lease import LeaseClaim, LeaseClaimGranted
from flowfabric.contract.operations import Operation, Repeatable

TRANSIENT: Final = (Unavailable, ResourceExhausted, RequestTimeout)
"""What a server says when it could not get to the request, as opposed to what the domain refuses."""

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0
ROOM_S: Final = 0.1
"""A call is not sent again with less than this left: it would end in silence, and hide what the last answer said."""
RESENDS_MAX: Final = 1_000
"""A bound beside the deadline."""


def is_transient(error: FlowFabricError) -> bool:
    """Say whether waiting a little and sending the same request is how to answer this error."""
    return error.retryable and isinstance(error, TRANSIENT)


def backoff_s(resends: int, retry_after_s: float | None) -> float:
    """Return how long to wait before the next sending: doubling, half to all of it, at least what the server asks."""
    ceiling = min(BACKOFF_FIRST_S * 2 ** min(resends, 16), BACKOFF_MAX_S)
    jittered = ceiling * (0.5 + secrets.randbelow(1_000) / 2_000)
    return max(jittered, retry_after_s or 0.0)


def lacks_id(command: msgspec.Struct) -> bool:
    """Say whether repeating this create would create again: it has neither id nor key."""
    if isinstance(command, ExecutionCreate):
        return command.execution_id is None and command.idempotency_key is None
    if isinstance(command, ExecutionCreateMany):
        return any(lacks_id(item) for item in command.executions)
    return False


def with_ids(command: msgspec.Struct, partitions: PartitionCounts | None) -> msgspec.Struct:
    """Fill in the ids that make the command safe to repeat and that its sender left out.

    `partitions` is needed for creates that `lacks_id`.
    """
    if isinstance(command, ExecutionCreateMany):
        if partitions is None or not lacks_id(command):
            return command
        minted = ids.mint_execution_ids(partitions, len(command.executions))
        items = tuple(
            msgspec.structs.replace(item, execution_id=next(minted)) if lacks_id(item) else item
            for item in command.executions
        )
        return msgspec.structs.replace(command, executions=items)
    if isinstance(command, ExecutionCreate):
        if partitions is None or not lacks_id(command):
            return command
        execution_id = ids.mint_execution_id(partitions, namespace=command.namespace)
        return msgspec.structs.replace(command, execution_id=execution_id)
    if isinstance(command, LeaseClaim) and command.claim_id is None:
        return msgspec.structs.replace(command, claim_id=ClaimId(ids.mint_uuid()))
    if isinstance(command, LeaseClaimGranted):
        return msgspec.structs.replace(
            command,
            lease_id=command.lease_id or LeaseId(ids.mint_uuid()),
            attempt_id=command.attempt_id or AttemptId(ids.mint_uuid()),
        )
    return command


def is_repeatable(operation: Operation, command: msgspec.Struct) -> bool:
    """Say whether this very command may be sent twice with the effect of once."""
    match operation.repeatable:
        case Repeatable.NO:
            return False
        case Repeatable.ID:
            if isinstance(command, LeaseClaimGranted):
                return command.lease_id is not None and command.attempt_id is not None
            return not lacks_id(command)
        case Repeatable.CLAIM_ID:
            return getattr(command, "claim_id", None) is not None
        case Repeatable.FENCE:
            return getattr(command, "fence", None) is not None
        case Repeatable.READ | Repeatable.SEQUENCE | Repeatable.NATURAL:
            return True


def with_wait(command: msgspec.Struct, wait_ms: int) -> msgspec.Struct:
    """Return the command with less time to wait, for a repetition."""
    return msgspec.structs.replace(command, wait_ms=wait_ms)  # pyright: ignore[reportCallIssue] -- long waits have it
