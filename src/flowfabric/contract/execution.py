"""Executions: durable units of work, from create to retention.

This module is the concept's store and its vocabulary; records live in `execution_records`, commands that create and
read in `execution_reads`, commands that change in `execution_changes`, and all of them can be imported from here.
"""

from __future__ import annotations

from typing import Protocol

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    ExecutionNotActive,
    ExecutionNotEligible,
    ExecutionNotFound,
    ExecutionNotTerminal,
    FenceRequired,
    IdempotencyConflict,
    InvalidBlockingReason,
    InvalidCapabilities,
    InvalidInput,
    InvalidPolicy,
    InvalidTagKey,
    LaneNotAccepting,
    LeaseExpired,
    LeaseRevoked,
    MaxReplaysExhausted,
    PartialFence,
    RouteLimitExceeded,
    StaleLease,
)
from flowfabric.contract.execution_changes import (
    ExecutionBlock,
    ExecutionCancel,
    ExecutionCancelled,
    ExecutionChanged,
    ExecutionChangePriority,
    ExecutionComplete,
    ExecutionCompleted,
    ExecutionDelay,
    ExecutionExpire,
    ExecutionExpireDone,
    ExecutionFail,
    ExecutionFailed,
    ExecutionPaused,
    ExecutionPriorityChanged,
    ExecutionProgress,
    ExecutionProgressed,
    ExecutionPromote,
    ExecutionPromoted,
    ExecutionReplay,
    ExecutionReplayed,
    ExecutionSetTags,
    ExecutionTagsSet,
    ExecutionTrim,
    ExecutionTrimmed,
    ExecutionUnblock,
    ExecutionWaitChildren,
    RetryScheduled,
)
from flowfabric.contract.execution_reads import (
    ExecutionById,
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ExecutionDescribe,
    ExecutionDuplicate,
    ExecutionList,
    ExecutionPage,
    ExecutionReadContext,
    ExecutionReadInfo,
    ExecutionReadResult,
    ExecutionReadState,
    ExecutionsCreated,
    ExecutionStateRead,
    ItemRefused,
    ResultCancelled,
    ResultCompleted,
    ResultExpired,
    ResultFailed,
    ResultSkipped,
    ResultUnion,
    check_tags,
)
from flowfabric.contract.execution_records import (
    AttemptSummary,
    ExecutionContext,
    ExecutionDefinition,
    ExecutionInfo,
    ExecutionRecord,
    ExecutionSnapshot,
    LeaseSummary,
    Loaded,
    Progress,
    ReplayRecord,
    Waiting,
)
from flowfabric.contract.lease import FENCED
from flowfabric.contract.manifest import Kind, Repeatable, Scope, operation, reading

__all__ = [
    "AttemptSummary",
    "ExecutionBlock",
    "ExecutionById",
    "ExecutionCancel",
    "ExecutionCancelled",
    "ExecutionChangePriority",
    "ExecutionChanged",
    "ExecutionComplete",
    "ExecutionCompleted",
    "ExecutionContext",
    "ExecutionCreate",
    "ExecutionCreateMany",
    "ExecutionCreated",
    "ExecutionDefinition",
    "ExecutionDelay",
    "ExecutionDescribe",
    "ExecutionDuplicate",
    "ExecutionExpire",
    "ExecutionExpireDone",
    "ExecutionFail",
    "ExecutionFailed",
    "ExecutionInfo",
    "ExecutionList",
    "ExecutionPage",
    "ExecutionPaused",
    "ExecutionPriorityChanged",
    "ExecutionProgress",
    "ExecutionProgressed",
    "ExecutionPromote",
    "ExecutionPromoted",
    "ExecutionReadContext",
    "ExecutionReadInfo",
    "ExecutionReadResult",
    "ExecutionReadState",
    "ExecutionRecord",
    "ExecutionReplay",
    "ExecutionReplayed",
    "ExecutionSetTags",
    "ExecutionSnapshot",
    "ExecutionStateRead",
    "ExecutionStore",
    "ExecutionTagsSet",
    "ExecutionTrim",
    "ExecutionTrimmed",
    "ExecutionUnblock",
    "ExecutionWaitChildren",
    "ExecutionsCreated",
    "ItemRefused",
    "LeaseSummary",
    "Loaded",
    "Progress",
    "ReplayRecord",
    "ResultCancelled",
    "ResultCompleted",
    "ResultExpired",
    "ResultFailed",
    "ResultSkipped",
    "ResultUnion",
    "RetryScheduled",
    "Waiting",
    "check_tags",
]


class ExecutionStore(Protocol):
    """Operations on executions."""

    @operation(
        "POST /v1/executions",
        kind=Kind.MUTATION,
        scope=Scope.SUBMIT,
        repeatable=Repeatable.ID,
        refuses=(
            InvalidInput,
            InvalidTagKey,
            InvalidCapabilities,
            InvalidPolicy,
            IdempotencyConflict,
            LaneNotAccepting,
            RouteLimitExceeded,
        ),
        statuses={ExecutionCreated: 201},
        body_max=limits.BODY_PAYLOAD_MAX,
        hot=True,
    )
    async def create(self, command: ExecutionCreate) -> ExecutionCreated | ExecutionDuplicate:
        """Create an execution, eligible at once or at `delay_until_ms`.

        The same id or idempotency key with the same content answers `duplicate`; with other content it is refused.
        """
        ...

    @operation(
        "POST /v1/executions/batch",
        kind=Kind.MUTATION,
        scope=Scope.SUBMIT,
        repeatable=Repeatable.ID,
        refuses=(InvalidInput,),
        body_max=limits.BODY_BATCH_MAX,
        hot=True,
    )
    async def create_many(self, command: ExecutionCreateMany) -> ExecutionsCreated:
        """Create up to 1,000 executions in one call; every item has its own outcome."""
        ...

    @reading(
        "GET /v1/executions/{execution_id}/describe",
        refuses=(InvalidInput, ExecutionNotFound),
    )
    async def describe(self, command: ExecutionDescribe) -> ExecutionSnapshot:
        """Read everything about an execution but its payloads, and why it is not running if it is not."""
        ...

    @reading(
        "GET /v1/executions/{execution_id}",
        refuses=(InvalidInput, ExecutionNotFound),
    )
    async def read_info(self, command: ExecutionReadInfo) -> ExecutionInfo:
        """Read the short record of an execution."""
        ...

    @reading(
        "GET /v1/executions/{execution_id}/state",
        refuses=(InvalidInput, ExecutionNotFound),
    )
    async def read_state(self, command: ExecutionReadState) -> ExecutionStateRead:
        """Read the public state of an execution."""
        ...

    @reading(
        "GET /v1/executions/{execution_id}/context",
        refuses=(InvalidInput, ExecutionNotFound),
    )
    async def read_context(self, command: ExecutionReadContext) -> ExecutionContext:
        """Read an execution's input, kind and tags."""
        ...

    @reading(
        "GET /v1/executions/{execution_id}/result",
        refuses=(InvalidInput, ExecutionNotFound, ExecutionNotTerminal),
        long_wait=True,
        raw_result=True,
    )
    async def read_result(self, command: ExecutionReadResult) -> ResultUnion:
        """Read how an execution ended, waiting up to `wait_ms` for the end."""
        ...

    @reading(
        "GET /v1/executions",
        refuses=(InvalidInput, InvalidTagKey),
        paging=True,
    )
    async def list(self, command: ExecutionList) -> ExecutionPage:
        """List executions, newest first, by namespace, lane, state, tag, kind, time or shortened id.

        At most 10,000 entries are looked at per call, so a page may be short or empty and still have a cursor.
        """
        ...

    @operation(
        "PUT /v1/executions/{execution_id}/tags",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, InvalidTagKey, ExecutionNotFound),
    )
    async def set_tags(self, command: ExecutionSetTags) -> ExecutionTagsSet:
        """Add or overwrite tags of an execution, in any state."""
        ...

    @operation(
        "PUT /v1/executions/{execution_id}/priority",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, ExecutionNotFound, ExecutionNotEligible),
    )
    async def change_priority(self, command: ExecutionChangePriority) -> ExecutionPriorityChanged:
        """Change the priority of an execution that has not ended."""
        ...

    @operation(
        "POST /v1/executions/{execution_id}/complete",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.FENCE,
        refuses=FENCED,
        body_max=limits.BODY_PAYLOAD_MAX,
        hot=True,
    )
    async def complete(self, command: ExecutionComplete) -> ExecutionCompleted:
        """End an active execution with success and an optional result.

        The same call with the same fence again gets the same answer.
        """
        ...

    @operation(
        "POST /v1/executions/{execution_id}/fail",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.FENCE,
        refuses=FENCED,
        body_max=limits.BODY_PAYLOAD_MAX,
        hot=True,
    )
    async def fail(self, command: ExecutionFail) -> RetryScheduled | ExecutionFailed:
        """Report that the attempt failed.

        Another attempt follows when the failure's class is transient, infra_crash or timeout, or its category is
        listed in the retry policy, and retries are left; otherwise the execution has failed.
        """
        ...

    @operation(
        "POST /v1/executions/{execution_id}/cancel",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(
            InvalidInput,
            PartialFence,
            ExecutionNotFound,
            ExecutionNotActive,
            FenceRequired,
            LeaseRevoked,
            LeaseExpired,
            StaleLease,
        ),
    )
    async def cancel(self, command: ExecutionCancel) -> ExecutionCancelled:
        """Cancel an execution in any state but a finished one. Cancelling twice is one cancel."""
        ...

    @operation(
        "POST /v1/executions/{execution_id}/delay",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.FENCE,
        refuses=FENCED,
    )
    async def delay(self, command: ExecutionDelay) -> ExecutionPaused:
        """Give the lease back and continue the same attempt at `delay_until_ms`; in the past means now."""
        ...

    @operation(
        "POST /v1/executions/{execution_id}/wait-children",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.FENCE,
        refuses=FENCED,
    )
    async def wait_children(self, command: ExecutionWaitChildren) -> ExecutionPaused:
        """Give the lease back until all it depends on is done; with nothing to wait for it is eligible at once."""
        ...

    @operation(
        "POST /v1/executions/{execution_id}/progress",
        kind=Kind.MUTATION,
        scope=Scope.WORK,
        repeatable=Repeatable.NATURAL,
        refuses=FENCED,
    )
    async def progress(self, command: ExecutionProgress) -> ExecutionProgressed:
        """Store how far the attempt is; the last write wins."""
        ...

    @operation(
        "POST /v1/executions/{execution_id}/replay",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NO,
        refuses=(
            InvalidInput,
            ExecutionNotFound,
            ExecutionNotEligible,
            ExecutionNotTerminal,
            MaxReplaysExhausted,
        ),
    )
    async def replay(self, command: ExecutionReplay) -> ExecutionReplayed:
        """Run a finished execution again.

        Retries and deadline start over, the result is cleared, the finished run stays in the lineage.
        """
        ...

    @operation(
        "POST /v1/executions/{execution_id}/expire",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, ExecutionNotFound),
    )
    async def expire(self, command: ExecutionExpire) -> ExecutionExpireDone:
        """Apply an attempt timeout or the execution's deadline, if it is due.

        A timed-out attempt fails with class `timeout` under the retry policy; a deadline always ends the execution.
        The engine's timers do this by themselves.
        """
        ...

    @operation(
        "POST /v1/executions/{execution_id}/promote",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, ExecutionNotFound),
    )
    async def promote(self, command: ExecutionPromote) -> ExecutionPromoted:
        """Make a delayed execution eligible, if it is due. The engine's timers do this by themselves."""
        ...

    @operation(
        "POST /v1/executions/{execution_id}/block",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(
            InvalidInput,
            ExecutionNotFound,
            ExecutionNotActive,
            ExecutionNotEligible,
            InvalidBlockingReason,
        ),
    )
    async def block(self, command: ExecutionBlock) -> ExecutionChanged:
        """Hold an eligible execution back until it is unblocked. Blocking twice for one reason is one block."""
        ...

    @operation(
        "POST /v1/executions/{execution_id}/unblock",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, ExecutionNotFound, ExecutionNotEligible),
    )
    async def unblock(self, command: ExecutionUnblock) -> ExecutionChanged:
        """Let a blocked execution run again; it keeps its place in the order."""
        ...

    @operation(
        "POST /v1/executions/{execution_id}/trim",
        kind=Kind.MUTATION,
        scope=Scope.OPERATE,
        repeatable=Repeatable.NATURAL,
        refuses=(InvalidInput, ExecutionNotFound),
    )
    async def trim(self, command: ExecutionTrim) -> ExecutionTrimmed:
        """Delete a finished execution, or its frames, if retention says so.

        The engine's timers do this by themselves.
        """
        ...
