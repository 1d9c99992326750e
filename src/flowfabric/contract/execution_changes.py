"""Commands and replies that change executions: from the outside, by the lease's holder, by timers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import FenceRequired, InvalidInput
from flowfabric.contract.execution_reads import ExecutionById, check_tags
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.payloads import Fence, Payload
from flowfabric.contract.states import BlockingReason, CancelSource, ExpireReason, FailureClass, PublicState

# Changes by the outside -------------------------------------------------------------------------------------------


class ExecutionSetTags(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Add or overwrite tags."""

    execution_id: ExecutionId
    tags: dict[str, str]

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        if not self.tags:
            raise InvalidInput("tags must not be empty", field="tags")
        check_tags(self.tags)


class ExecutionTagsSet(msgspec.Struct, frozen=True, kw_only=True):
    """All tags the execution has now."""

    execution_id: ExecutionId
    tags: dict[str, str]


class ExecutionChangePriority(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change the priority of an execution that has not ended; clamped to 0..9000."""

    execution_id: ExecutionId
    priority: int

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_range(self.priority, "priority", limits.PRIORITY_ACCEPTED_MIN, limits.PRIORITY_ACCEPTED_MAX)


class ExecutionPriorityChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The effective priority now and before."""

    execution_id: ExecutionId
    priority: int
    previous: int


class ExecutionCancel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cancel an execution. An active one needs its fence, unless an operator overrides."""

    execution_id: ExecutionId
    fence: Fence | None = None
    source: CancelSource = CancelSource.LEASE_HOLDER
    reason: str = ""
    actor: str = ""

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_text(self.reason, "reason", limits.REASON_BYTES_MAX)
        ids.check_text(self.actor, "actor", limits.NAME_LENGTH_MAX)
        if self.fence is not None:
            self.fence.check()


class ExecutionCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """It is cancelled; `already` says that it was before this call."""

    execution_id: ExecutionId
    public_state: PublicState
    already: bool


class ExecutionReplay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Run a finished execution again: a new attempt, retries and deadline start over, the result is cleared."""

    execution_id: ExecutionId
    actor: str = ""
    expected_replay_count: int | None = None
    """Replay only if it was replayed this often before: makes repeating safe."""

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_text(self.actor, "actor", limits.NAME_LENGTH_MAX)
        if self.expected_replay_count is not None:
            ids.check_range(self.expected_replay_count, "expected_replay_count", 0, limits.COUNT_MAX)


class ExecutionReplayed(msgspec.Struct, frozen=True, kw_only=True):
    """It waits to run again."""

    execution_id: ExecutionId
    public_state: PublicState
    replay_count: int


class ExecutionBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold an eligible execution back."""

    execution_id: ExecutionId
    reason: BlockingReason = BlockingReason.PAUSED_BY_OPERATOR
    detail: str = ""

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_text(self.detail, "detail", limits.REASON_BYTES_MAX)


class ExecutionUnblock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let a blocked execution run; it keeps its place."""

    execution_id: ExecutionId
    expected_reason: BlockingReason | None = None

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)


class ExecutionChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Where the execution stands now."""

    execution_id: ExecutionId
    public_state: PublicState
    blocking_reason: BlockingReason


# Changes by the lease's holder ------------------------------------------------------------------------------------


def _check_fenced(fence: Fence | None, source: CancelSource) -> None:
    if fence is not None:
        fence.check()
    elif source is not CancelSource.OPERATOR_OVERRIDE:
        raise FenceRequired


class ExecutionComplete(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End an active execution with success."""

    execution_id: ExecutionId
    fence: Fence | None = None
    result: Payload | None = None
    source: CancelSource = CancelSource.LEASE_HOLDER
    actor: str = ""

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        if self.result is not None:
            self.result.check("result", limits.PAYLOAD_BYTES_MAX)
        if self.actor:
            ids.check_text(self.actor, "actor", limits.NAME_LENGTH_MAX)
        _check_fenced(self.fence, self.source)


class ExecutionCompleted(msgspec.Struct, frozen=True, kw_only=True):
    """It has ended with success."""

    execution_id: ExecutionId
    public_state: PublicState
    completed_at_ms: int


class ExecutionFail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Report that the attempt failed; the retry policy decides whether another follows."""

    execution_id: ExecutionId
    fence: Fence | None = None
    failure_class: FailureClass = FailureClass.TRANSIENT
    category: str = "handler_error"
    message: str = ""
    source: CancelSource = CancelSource.LEASE_HOLDER
    actor: str = ""

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_text(self.category, "category", limits.FAILURE_CATEGORY_LENGTH_MAX)
        ids.check_text(self.message, "message", limits.FAILURE_MESSAGE_BYTES_MAX)
        ids.check_text(self.actor, "actor", limits.NAME_LENGTH_MAX)
        _check_fenced(self.fence, self.source)


class RetryScheduled(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="retry_scheduled"):
    """Another attempt follows."""

    execution_id: ExecutionId
    delay_until_ms: int
    retry_count: int


class ExecutionFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="failed"):
    """It has failed for good."""

    execution_id: ExecutionId
    public_state: PublicState


class ExecutionDelay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give the lease back and continue the same attempt at a later instant."""

    execution_id: ExecutionId
    fence: Fence | None = None
    delay_until_ms: int
    source: CancelSource = CancelSource.LEASE_HOLDER
    actor: str = ""

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_range(self.delay_until_ms, "delay_until_ms", 0, limits.TIMESTAMP_MAX_MS)
        ids.check_text(self.actor, "actor", limits.NAME_LENGTH_MAX)
        _check_fenced(self.fence, self.source)


class ExecutionWaitChildren(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give the lease back until the executions this one depends on are done; the same attempt continues."""

    execution_id: ExecutionId
    fence: Fence | None = None
    source: CancelSource = CancelSource.LEASE_HOLDER
    actor: str = ""

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_text(self.actor, "actor", limits.NAME_LENGTH_MAX)
        _check_fenced(self.fence, self.source)


class ExecutionPaused(msgspec.Struct, frozen=True, kw_only=True):
    """The lease is given back; where the execution waits."""

    execution_id: ExecutionId
    public_state: PublicState
    not_before_ms: int | None


class ExecutionProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say how far the attempt is; what is not given keeps its value, giving nothing does nothing."""

    execution_id: ExecutionId
    fence: Fence | None = None
    percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    message: str | None = None

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        if self.percent is not None and not 0 <= self.percent <= 100:
            raise InvalidInput("percent is 0 to 100", field="percent")
        if self.message is not None:
            ids.check_text(self.message, "message", limits.REASON_BYTES_MAX)
        _check_fenced(self.fence, CancelSource.LEASE_HOLDER)


class ExecutionProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """The progress as stored."""

    execution_id: ExecutionId
    percent: float | None
    message: str | None


# Changes by timers ------------------------------------------------------------------------------------------------


class ExecutionExpire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Apply an attempt timeout or the execution's deadline, if it is due."""

    execution_id: ExecutionId
    reason: ExpireReason

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)


class ExecutionExpireDone(msgspec.Struct, frozen=True, kw_only=True):
    """`expired`: it has ended; `retry_scheduled` or `failed`: the attempt timed out; else nothing was done."""

    execution_id: ExecutionId
    status: Literal["expired", "retry_scheduled", "failed", "not_due", "already_terminal"]


class ExecutionPromote(ExecutionById, frozen=True, kw_only=True):
    """Make a delayed execution eligible, if it is due."""


class ExecutionPromoted(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    execution_id: ExecutionId
    status: Literal["promoted", "not_due", "not_delayed"]


class ExecutionTrim(ExecutionById, frozen=True, kw_only=True):
    """Delete a finished execution, or its frames, if retention says so."""


class ExecutionTrimmed(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    execution_id: ExecutionId
    status: Literal["deleted", "frames_deleted", "not_due"]
