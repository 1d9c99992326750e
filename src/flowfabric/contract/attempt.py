"""Attempts: one try each at running an execution, numbered from 0 without gaps."""

from __future__ import annotations

from typing import Protocol

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import AttemptNotFound, ExecutionNotFound, InvalidInput
from flowfabric.contract.ids import AttemptId, ExecutionId, LeaseId, WorkerId, WorkerInstance
from flowfabric.contract.manifest import reading
from flowfabric.contract.states import AttemptRecordState, AttemptType, FailureClass, StreamClosedReason


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why an attempt or execution failed. The class decides about a retry, the category is a label."""

    failure_class: FailureClass
    category: str
    message: str


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A fenced operation that was carried out, kept so that its repetition gets the same answer."""

    operation: str
    lease_id: LeaseId
    lease_epoch: int
    digest: str
    """Of the command's content; the same operation with other content is not a repetition."""
    reply: msgspec.Raw


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt as stored."""

    attempt_id: AttemptId
    attempt_index: int
    attempt_type: AttemptType
    state: AttemptRecordState
    started_at_ms: int
    worker_id: WorkerId
    worker_instance: WorkerInstance
    lease_epoch: int
    """Of the first lease under which it ran; a resumed attempt runs on under a later one."""
    timeout_at_ms: int | None = None
    previous_attempt_index: int | None = None
    ended_at_ms: int | None = None
    failure: Failure | None = None
    stream_closed_at_ms: int | None = None
    stream_closed_reason: StreamClosedReason | None = None
    answered: tuple[Answered, ...] = ()
    """Oldest first, the latest few."""


class AttemptInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt as read. Instants are milliseconds since the epoch."""

    execution_id: ExecutionId
    attempt_id: AttemptId
    attempt_index: int
    attempt_type: AttemptType
    state: AttemptRecordState
    started_at_ms: int
    ended_at_ms: int | None
    worker_id: WorkerId
    worker_instance: WorkerInstance
    lease_epoch: int
    timeout_at_ms: int | None
    previous_attempt_index: int | None
    failure: Failure | None
    stream_closed_at_ms: int | None
    stream_closed_reason: StreamClosedReason | None


class AttemptDescribe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read one attempt."""

    execution_id: ExecutionId
    attempt_index: int

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_range(self.attempt_index, "attempt_index", 0, limits.COUNT_MAX)


class AttemptList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """List an execution's attempts, oldest first."""

    execution_id: ExecutionId
    cursor: str | None = None
    limit: int = limits.PAGE_DEFAULT

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_range(self.limit, "limit", 1, limits.ATTEMPT_PAGE_MAX)
        if self.cursor is not None and not (
            self.cursor.isascii() and self.cursor.isdigit() and len(self.cursor) < 10
        ):
            raise InvalidInput("cursor is not one that attempt.list returned", field="cursor")


class AttemptPage(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts, oldest first."""

    attempts: tuple[AttemptInfo, ...]
    next_cursor: str | None


class AttemptStore(Protocol):
    """Reads of attempts."""

    @reading(
        "GET /v1/executions/{execution_id}/attempts/{attempt_index}",
        refuses=(InvalidInput, ExecutionNotFound, AttemptNotFound),
    )
    async def describe(self, command: AttemptDescribe) -> AttemptInfo:
        """Read one attempt: when it ran, who ran it, how it ended."""
        ...

    @reading(
        "GET /v1/executions/{execution_id}/attempts",
        refuses=(InvalidInput, ExecutionNotFound),
        paging=True,
    )
    async def list(self, command: AttemptList) -> AttemptPage:
        """List an execution's attempts, oldest first."""
        ...
