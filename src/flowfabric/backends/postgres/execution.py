"""Executions in Postgres: every operation is one function call, or one statement that reads.

What is here turns commands into arguments and rows into replies; what an operation means is in
`sql/functions/execution`. Creating, listing and waiting are delegated.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from flowfabric.backends.postgres.batching import Batch
from flowfabric.backends.postgres.catalog import Catalog
from flowfabric.backends.postgres.pool import Record
from flowfabric.backends.postgres.record import loaded, place_of, row_of
from flowfabric.backends.postgres.store import Store
from flowfabric.backends.postgres.wakes import Wakes
from flowfabric.backends.postgres.worker import PostgresWorkers
from flowfabric.backends.vectors import VECTORS
from flowfabric.contract import projections
from flowfabric.contract.creating import clamp_priority
from flowfabric.contract.errors import Corrupt, ExecutionNotFound, Refused
from flowfabric.contract.execution import (
    ExecutionBlock,
    ExecutionCancel,
    ExecutionCancelled,
    ExecutionChanged,
    ExecutionChangePriority,
    ExecutionComplete,
    ExecutionCompleted,
    ExecutionContext,
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ExecutionDelay,
    ExecutionDescribe,
    ExecutionDuplicate,
    ExecutionExpire,
    ExecutionExpireDone,
    ExecutionFail,
    ExecutionFailed,
    ExecutionInfo,
    ExecutionList,
    ExecutionPage,
    ExecutionPaused,
    ExecutionPriorityChanged,
    ExecutionProgress,
    ExecutionProgressed,
    ExecutionPromote,
    ExecutionPromoted,
    ExecutionReadContext,
    ExecutionReadInfo,
    ExecutionReadResult,
    ExecutionReadState,
    ExecutionReplay,
    ExecutionReplayed,
    ExecutionsCreated,
    ExecutionSetTags,
    ExecutionSnapshot,
    ExecutionStateRead,
    ExecutionTagsSet,
    ExecutionTrim,
    ExecutionTrimmed,
    ExecutionUnblock,
    ExecutionWaitChildren,
    Loaded,
    ResultUnion,
    RetryScheduled,
)
from flowfabric.contract.holding import actor_of, complete_digest, delay_digest, fail_digest
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.payloads import Fence, Payload
from flowfabric.contract.states import BlockingReason, CancelSource, LaneState, PublicState

_FENCED: Final = ("integer", "uuid", "uuid", "bigint", "uuid", "text", "text")
"""What every fenced command begins with: partition, id, and the fence."""

COMPLETE: Final = Batch(
    function="execution_complete",
    types=(*_FENCED, "text", "text", "text", "bytea"),
    columns=("completed_at_ms",),
    is_heavy=True,
)
FAIL: Final = Batch(
    function="execution_fail",
    types=(*_FENCED, "text", "text", "text", "text", "text"),
    columns=("status", "delay_until_ms", "retry_count"),
)
EXPIRE: Final = Batch(function="execution_expire", types=("integer", "uuid", "text"), columns=("status",))
PROMOTE: Final = Batch(function="execution_promote", types=("integer", "uuid"), columns=("status",))
TRIM: Final = Batch(function="execution_trim", types=("integer", "uuid"), columns=("status",))


class Creator(Protocol):
    """Creates executions."""

    async def create(self, command: ExecutionCreate) -> ExecutionCreated | ExecutionDuplicate:
        """Create an execution."""
        ...

    async def create_many(self, command: ExecutionCreateMany) -> ExecutionsCreated:
        """Create up to 1,000 executions."""
        ...


class Listing(Protocol):
    """Lists executions."""

    async def list(self, command: ExecutionList) -> ExecutionPage:
        """List executions, newest first."""
        ...


class PostgresExecutions:
    """Operations on executions."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        workers: PostgresWorkers,
        *,
        wakes: Wakes,
        creator: Creator,
        listing: Listing,
    ) -> None:
        self._calls = store.calls
        self._sql = store.sql("sql/queries/execution.sql")
        self._workers = workers
        self._wakes = wakes
        self._creator = creator
        self._listing = listing

    # Creating and reading -----------------------------------------------------------------------------------------

    async def create(self, command: ExecutionCreate) -> ExecutionCreated | ExecutionDuplicate:
        """Create an execution."""
        return await self._creator.create(command)

    async def create_many(self, command: ExecutionCreateMany) -> ExecutionsCreated:
        """Create up to 1,000 executions."""
        return await self._creator.create_many(command)

    async def describe(self, command: ExecutionDescribe) -> ExecutionSnapshot:
        """Read everything but the payloads."""
        command.check()
        record = await self._read("describe", command.execution_id)
        found = _loaded(record)
        now_ms = record["read_at_ms"]
        state = record["lane_state"]
        waiting = projections.waiting(
            found,
            lane_state=LaneState(state) if state is not None else LaneState.ACTIVE,
            workers=await self._workers.live(found.definition.namespace, now_ms),
            now_ms=now_ms,
        )
        return projections.snapshot(found, waiting=waiting)

    async def read_info(self, command: ExecutionReadInfo) -> ExecutionInfo:
        """Read the short record."""
        command.check()
        return projections.info(_loaded(await self._read("load", command.execution_id)))

    async def read_state(self, command: ExecutionReadState) -> ExecutionStateRead:
        """Read the public state."""
        command.check()
        record = await self._read("state", command.execution_id)
        return ExecutionStateRead(
            execution_id=command.execution_id, public_state=VECTORS[int(record["vector"])].public_state
        )

    async def read_context(self, command: ExecutionReadContext) -> ExecutionContext:
        """Read input, kind and tags."""
        command.check()
        record = await self._read("context", command.execution_id)
        return projections.context(_loaded(record), Payload(record["input"], record["input_type"]))

    async def read_result(self, command: ExecutionReadResult) -> ResultUnion:
        """Read how it ended, waiting for the end."""
        command.check()
        found = await self._wakes.wait_for(
            lambda: self._look(command.execution_id),
            lambda outcome: not isinstance(outcome, Refused),
            execution_id=command.execution_id,
            wait_ms=command.wait_ms,
        )
        if isinstance(found, Refused):
            raise found
        return found

    async def list(self, command: ExecutionList) -> ExecutionPage:
        """List executions, newest first."""
        return await self._listing.list(command)

    # Changes from the outside -------------------------------------------------------------------------------------

    async def set_tags(self, command: ExecutionSetTags) -> ExecutionTagsSet:
        """Add or overwrite tags."""
        command.check()
        given = msgspec.json.encode(command.tags).decode()
        (tags,) = await self._call("execution_set_tags", command.execution_id, given)
        return ExecutionTagsSet(execution_id=command.execution_id, tags=tags)

    async def change_priority(self, command: ExecutionChangePriority) -> ExecutionPriorityChanged:
        """Change the priority."""
        command.check()
        priority = clamp_priority(command.priority)
        (previous,) = await self._call("execution_change_priority", command.execution_id, priority)
        return ExecutionPriorityChanged(
            execution_id=command.execution_id, priority=priority, previous=previous
        )

    async def cancel(self, command: ExecutionCancel) -> ExecutionCancelled:
        """Cancel in any state but a finished one."""
        command.check()
        (already,) = await self._call(
            "execution_cancel",
            command.execution_id,
            *_proof(command.fence),
            command.source is not CancelSource.LEASE_HOLDER,
            command.reason,
            command.actor or command.source.value,
            actor_of(command.source, command.actor),
        )
        return ExecutionCancelled(
            execution_id=command.execution_id, public_state=PublicState.CANCELLED, already=already
        )

    async def replay(self, command: ExecutionReplay) -> ExecutionReplayed:
        """Run a finished execution again."""
        command.check()
        state, replay_count = await self._call(
            "execution_replay", command.execution_id, command.actor, command.expected_replay_count
        )
        return ExecutionReplayed(
            execution_id=command.execution_id, public_state=PublicState(state), replay_count=replay_count
        )

    async def block(self, command: ExecutionBlock) -> ExecutionChanged:
        """Hold an eligible execution back."""
        command.check()
        answer = await self._call(
            "execution_block", command.execution_id, command.reason.value, command.detail
        )
        return _changed(command.execution_id, answer)

    async def unblock(self, command: ExecutionUnblock) -> ExecutionChanged:
        """Let a blocked execution run."""
        command.check()
        expected = command.expected_reason.value if command.expected_reason is not None else None
        return _changed(
            command.execution_id, await self._call("execution_unblock", command.execution_id, expected)
        )

    # Changes by the holder of the lease ---------------------------------------------------------------------------

    async def complete(self, command: ExecutionComplete) -> ExecutionCompleted:
        """End with success."""
        command.check()
        payload = command.result
        record = await self._hot(
            COMPLETE,
            command.execution_id,
            *_proof(command.fence),
            complete_digest(command),
            actor_of(command.source, command.actor),
            payload.content_type if payload is not None else None,
            payload.data if payload is not None else None,
        )
        return ExecutionCompleted(
            execution_id=command.execution_id,
            public_state=PublicState.COMPLETED,
            completed_at_ms=record["completed_at_ms"],
        )

    async def fail(self, command: ExecutionFail) -> RetryScheduled | ExecutionFailed:
        """Report that the attempt failed."""
        command.check()
        record = await self._hot(
            FAIL,
            command.execution_id,
            *_proof(command.fence),
            fail_digest(command),
            actor_of(command.source, command.actor),
            command.failure_class.value,
            command.category,
            command.message,
        )
        if record["status"] == "retry_scheduled":
            return RetryScheduled(
                execution_id=command.execution_id,
                delay_until_ms=record["delay_until_ms"],
                retry_count=record["retry_count"],
            )
        return ExecutionFailed(execution_id=command.execution_id, public_state=PublicState.FAILED)

    async def delay(self, command: ExecutionDelay) -> ExecutionPaused:
        """Continue the same attempt later."""
        command.check()
        answer = await self._call(
            "execution_delay",
            command.execution_id,
            *_proof(command.fence),
            delay_digest(command),
            actor_of(command.source, command.actor),
            command.delay_until_ms,
        )
        return _paused(command.execution_id, answer)

    async def wait_children(self, command: ExecutionWaitChildren) -> ExecutionPaused:
        """Continue the same attempt when all it depends on is done."""
        command.check()
        answer = await self._call(
            "execution_wait_children",
            command.execution_id,
            *_proof(command.fence),
            actor_of(command.source, command.actor),
        )
        return _paused(command.execution_id, answer)

    async def progress(self, command: ExecutionProgress) -> ExecutionProgressed:
        """Store the progress."""
        command.check()
        percent, message = await self._call(
            "execution_progress",
            command.execution_id,
            *_proof(command.fence),
            command.percent,
            command.message,
        )
        return ExecutionProgressed(execution_id=command.execution_id, percent=percent, message=message)

    # Changes by timers --------------------------------------------------------------------------------------------

    async def expire(self, command: ExecutionExpire) -> ExecutionExpireDone:
        """Apply an attempt timeout or the deadline."""
        command.check()
        record = await self._hot(EXPIRE, command.execution_id, command.reason.value)
        return ExecutionExpireDone(execution_id=command.execution_id, status=record["status"])

    async def promote(self, command: ExecutionPromote) -> ExecutionPromoted:
        """Make a delayed execution eligible."""
        command.check()
        record = await self._hot(PROMOTE, command.execution_id)
        return ExecutionPromoted(execution_id=command.execution_id, status=record["status"])

    async def trim(self, command: ExecutionTrim) -> ExecutionTrimmed:
        """Delete what retention says, of very many frames a bounded part at a time.

        Each part is atomic and its streams say what has gone. The timer stays until the last one, so when this process
        dies in between, the next trim goes on.
        """
        command.check()
        while True:
            record = await self._hot(TRIM, command.execution_id)
            if record["status"] != "more":
                return ExecutionTrimmed(execution_id=command.execution_id, status=record["status"])

    # How ----------------------------------------------------------------------------------------------------------

    async def _call(self, function: str, execution_id: ExecutionId, *arguments: Any) -> list[Any]:
        return await self._calls.call(function, *place_of(execution_id), *arguments)

    async def _hot(self, batch: Batch, execution_id: ExecutionId, *arguments: Any) -> Record:
        partition, uuid = place_of(execution_id)
        return await self._calls.hot(batch, (partition, uuid, *arguments), uuid)

    async def _read(self, statement: str, execution_id: ExecutionId) -> Record:
        record = await self._calls.row(self._sql[statement], *place_of(execution_id))
        if record is None:
            raise ExecutionNotFound(execution_id=execution_id)
        return record

    async def _look(self, execution_id: ExecutionId) -> ResultUnion | Refused:
        """Read how an execution ended, or the refusal that says it has not."""
        record = await self._read("result", execution_id)
        if not record["has_result"]:
            return projections.result(_loaded(record), None)
        if record["data"] is None:
            raise Corrupt("an execution has lost its result")
        return projections.result(_loaded(record), Payload(record["data"], record["content_type"]))


def _proof(fence: Fence | None) -> tuple[str | None, int | None, str | None, str | None, str | None]:
    if fence is None:
        return (None, None, None, None, None)
    return (fence.lease_id, fence.lease_epoch, fence.attempt_id, fence.lane, fence.route)


def _loaded(record: Record) -> Loaded:
    return loaded(row_of(record), record["document"])


def _paused(execution_id: ExecutionId, answer: list[Any]) -> ExecutionPaused:
    state, not_before_ms = answer
    return ExecutionPaused(
        execution_id=execution_id, public_state=PublicState(state), not_before_ms=not_before_ms
    )


def _changed(execution_id: ExecutionId, answer: list[Any]) -> ExecutionChanged:
    state, reason = answer
    return ExecutionChanged(
        execution_id=execution_id, public_state=PublicState(state), blocking_reason=BlockingReason(reason)
    )
