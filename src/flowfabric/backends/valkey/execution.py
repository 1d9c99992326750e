"""Executions in Valkey: every operation is one function call, or a read of one hash.

What is here turns commands into arguments and answers into replies; what an operation means is in `lua/execution`.
Creating is in `create`, listing and retention are delegated. What must stay true: a payload larger than a record holds
is staged under a fresh key before the call that adopts it, and read by the name that the record gives.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from flowfabric.backends import reply
from flowfabric.backends.valkey.calling import Again, Calls
from flowfabric.backends.valkey.catalog import Catalog
from flowfabric.backends.valkey.completing import Completer
from flowfabric.backends.valkey.create import Created, Creator
from flowfabric.backends.valkey.keys import Partition, Partitions
from flowfabric.backends.valkey.record import (
    FIELDS,
    Packed,
    PackedProgress,
    Static,
    decode,
    decode_tags,
    unpack,
)
from flowfabric.backends.valkey.routing import Routes
from flowfabric.backends.valkey.wakes import Wakes
from flowfabric.backends.valkey.worker import ValkeyWorkers
from flowfabric.backends.vectors import VECTORS
from flowfabric.contract import projections
from flowfabric.contract.creating import clamp_priority
from flowfabric.contract.errors import Corrupt, ExecutionNotFound, Refused, Unavailable
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
    ExecutionCreateMany,
    ExecutionDelay,
    ExecutionDescribe,
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
from flowfabric.contract.holding import actor_of, delay_digest, fail_digest
from flowfabric.contract.ids import ExecutionId, execution_uuid
from flowfabric.contract.payloads import Fence, Payload
from flowfabric.contract.states import BlockingReason, CancelSource, LaneState, PublicState

_STATES: Final = {state.value.encode(): state for state in PublicState}
_BLOCKING: Final = {reason.value.encode(): reason for reason in BlockingReason}
_NO_FENCE: Final[dict[str, Any]] = dict.fromkeys(("lease_id", "lease_epoch", "attempt_id", "lane", "route"))
_TRIES: Final = 4


class Listing(Protocol):
    """Lists executions."""

    async def list(self, command: ExecutionList) -> ExecutionPage:
        """List executions, newest first."""
        ...


class Retention(Protocol):
    """Deletes what retention says."""

    async def trim(self, command: ExecutionTrim) -> ExecutionTrimmed:
        """Delete a finished execution, or its frames, if it is due."""
        ...


class ValkeyExecutions:
    """Operations on executions."""

    def __init__(
        self,
        calls: Calls,
        partitions: Partitions,
        catalog: Catalog,
        workers: ValkeyWorkers,
        *,
        wakes: Wakes,
        routes: Routes,
        creator: Creator,
        listing: Listing,
        retention: Retention,
    ) -> None:
        self._calls = calls
        self._partitions = partitions
        self._catalog = catalog
        self._workers = workers
        self._wakes = wakes
        self._routes = routes
        self._creator = creator
        self._listing = listing
        self._retention = retention
        self._completer = Completer(calls, partitions, routes)

    # Creating and reading -----------------------------------------------------------------------------------------

    async def create(self, command: ExecutionCreate) -> Created:
        """Create an execution."""
        return await self._creator.create(command)

    async def create_many(self, command: ExecutionCreateMany) -> ExecutionsCreated:
        """Create up to 1,000 executions."""
        return await self._creator.create_many(command)

    async def describe(self, command: ExecutionDescribe) -> ExecutionSnapshot:
        """Read everything but the payloads."""
        command.check()
        loaded, now_ms = await asyncio.gather(self._load(command.execution_id), self._calls.now_ms())
        definition = loaded.definition
        partition = self._partitions.of(command.execution_id)
        (found,), workers = await asyncio.gather(
            self._calls.read(partition, [("HGET", partition.lanes, definition.lane)]),
            self._workers.live(definition.namespace, now_ms),
        )
        waiting = projections.waiting(
            loaded,
            lane_state=LaneState(reply.text(found)) if found else LaneState.ACTIVE,
            workers=workers,
            now_ms=now_ms,
        )
        return projections.snapshot(loaded, waiting=waiting)

    async def read_info(self, command: ExecutionReadInfo) -> ExecutionInfo:
        """Read the short record."""
        command.check()
        return projections.info(await self._load(command.execution_id))

    async def read_state(self, command: ExecutionReadState) -> ExecutionStateRead:
        """Read the public state."""
        command.check()
        (packed,) = await self._read_fields(command.execution_id, "v")
        if packed is None:
            raise ExecutionNotFound(execution_id=command.execution_id)
        return ExecutionStateRead(
            execution_id=command.execution_id,
            public_state=VECTORS[unpack(packed, Packed).vector].public_state,
        )

    async def read_context(self, command: ExecutionReadContext) -> ExecutionContext:
        """Read input, kind and tags."""
        command.check()
        partition = self._partitions.of(command.execution_id)
        for _ in range(_TRIES):
            *fields, inline = await self._read_fields(command.execution_id, *FIELDS, "i")
            loaded = _loaded(command.execution_id, fields)
            static = unpack(fields[1], Static)
            data = inline if static.input is None else await self._read_payload(partition, static.input)
            if data is not None:
                return projections.context(loaded, Payload(data, static.input_type))
        raise Corrupt("an execution has lost its input")

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
        given = [text for entry in command.tags.items() for text in entry]
        (tags,) = await self._routes.call("execution_set_tags", command.execution_id, tags=given)
        return ExecutionTagsSet(execution_id=command.execution_id, tags=decode_tags(tags))

    async def change_priority(self, command: ExecutionChangePriority) -> ExecutionPriorityChanged:
        """Change the priority."""
        command.check()
        priority = clamp_priority(command.priority)
        (previous,) = await self._routes.call(
            "execution_change_priority", command.execution_id, priority=priority
        )
        return ExecutionPriorityChanged(
            execution_id=command.execution_id, priority=priority, previous=previous
        )

    async def cancel(self, command: ExecutionCancel) -> ExecutionCancelled:
        """Cancel in any state but a finished one."""
        command.check()
        (already,) = await self._fenced(
            "execution_cancel",
            command.execution_id,
            command.fence,
            overrides=command.source is not CancelSource.LEASE_HOLDER,
            reason=command.reason,
            cancelled_by=command.actor or command.source.value,
            actor=actor_of(command.source, command.actor),
        )
        return ExecutionCancelled(
            execution_id=command.execution_id, public_state=PublicState.CANCELLED, already=already == 1
        )

    async def replay(self, command: ExecutionReplay) -> ExecutionReplayed:
        """Run a finished execution again."""
        command.check()
        partition = self._partitions.of(command.execution_id)
        result: tuple[str, ...] = ()
        for _ in range(_TRIES):
            try:
                state, replay_count = await self._routes.call(
                    "execution_replay",
                    command.execution_id,
                    more_keys=result,
                    actor=command.actor,
                    expected=command.expected_replay_count,
                )
            except Again as again:
                # The result has a key of its own, which the call has to declare.
                result = (partition.payload(again.value),)
                continue
            return ExecutionReplayed(
                execution_id=command.execution_id, public_state=_STATES[state], replay_count=replay_count
            )
        raise Unavailable("the execution is run and replayed by others all the time: try again")

    async def block(self, command: ExecutionBlock) -> ExecutionChanged:
        """Hold an eligible execution back."""
        return await self._changed(command, reason=command.reason.value, detail=command.detail)

    async def unblock(self, command: ExecutionUnblock) -> ExecutionChanged:
        """Let a blocked execution run."""
        return await self._changed(command, expected_reason=command.expected_reason)

    # Changes by the holder of the lease ---------------------------------------------------------------------------

    async def complete(self, command: ExecutionComplete) -> ExecutionCompleted:
        """End with success."""
        command.check()
        completed_at_ms = await self._completer.complete(command)
        return ExecutionCompleted(
            execution_id=command.execution_id,
            public_state=PublicState.COMPLETED,
            completed_at_ms=completed_at_ms,
        )

    async def fail(self, command: ExecutionFail) -> RetryScheduled | ExecutionFailed:
        """Report that the attempt failed."""
        command.check()
        status, *more = await self._fenced(
            "execution_fail",
            command.execution_id,
            command.fence,
            digest=fail_digest(command),
            actor=actor_of(command.source, command.actor),
            **{
                "class": command.failure_class.value,
                "category": command.category,
                "message": command.message,
            },
        )
        if status == b"retry_scheduled":
            return RetryScheduled(
                execution_id=command.execution_id, delay_until_ms=more[0], retry_count=more[1]
            )
        return ExecutionFailed(execution_id=command.execution_id, public_state=PublicState.FAILED)

    async def delay(self, command: ExecutionDelay) -> ExecutionPaused:
        """Continue the same attempt later."""
        command.check()
        paused = await self._fenced(
            "execution_delay",
            command.execution_id,
            command.fence,
            digest=delay_digest(command),
            actor=actor_of(command.source, command.actor),
            delay_until_ms=command.delay_until_ms,
        )
        return _paused(command.execution_id, paused)

    async def wait_children(self, command: ExecutionWaitChildren) -> ExecutionPaused:
        """Continue the same attempt when all it depends on is done."""
        command.check()
        paused = await self._fenced(
            "execution_wait_children",
            command.execution_id,
            command.fence,
            actor=actor_of(command.source, command.actor),
        )
        return _paused(command.execution_id, paused)

    async def progress(self, command: ExecutionProgress) -> ExecutionProgressed:
        """Store the progress."""
        command.check()
        (packed,) = await self._fenced(
            "execution_progress",
            command.execution_id,
            command.fence,
            percent=repr(float(command.percent)) if command.percent is not None else None,
            has_message=command.message is not None,
            message=command.message or "",
        )
        said = unpack(packed, PackedProgress) if packed else None
        return ExecutionProgressed(
            execution_id=command.execution_id,
            percent=said.percent if said is not None else None,
            message=said.message if said is not None else None,
        )

    # Changes by timers --------------------------------------------------------------------------------------------

    async def expire(self, command: ExecutionExpire) -> ExecutionExpireDone:
        """Apply an attempt timeout or the deadline."""
        command.check()
        (status,) = await self._routes.call(
            "execution_expire", command.execution_id, reason=command.reason.value
        )
        return ExecutionExpireDone(execution_id=command.execution_id, status=_word(status))

    async def promote(self, command: ExecutionPromote) -> ExecutionPromoted:
        """Make a delayed execution eligible."""
        command.check()
        (status,) = await self._routes.call("execution_promote", command.execution_id)
        return ExecutionPromoted(execution_id=command.execution_id, status=_word(status))

    async def trim(self, command: ExecutionTrim) -> ExecutionTrimmed:
        """Delete what retention says."""
        return await self._retention.trim(command)

    # How ----------------------------------------------------------------------------------------------------------

    async def _fenced(
        self, name: str, execution_id: ExecutionId, fence: Fence | None, **given: Any
    ) -> list[Any]:
        """Call a function that takes a fence."""
        if fence is None:
            return await self._routes.call(name, execution_id, **_NO_FENCE, **given)
        return await self._routes.call(
            name,
            execution_id,
            fence=fence,
            lease_id=fence.lease_id,
            lease_epoch=fence.lease_epoch,
            attempt_id=fence.attempt_id,
            lane=fence.lane,
            route=fence.route,
            **given,
        )

    async def _changed(self, command: ExecutionBlock | ExecutionUnblock, **given: Any) -> ExecutionChanged:
        command.check()
        name = "execution_block" if isinstance(command, ExecutionBlock) else "execution_unblock"
        state, reason = await self._routes.call(name, command.execution_id, **given)
        return ExecutionChanged(
            execution_id=command.execution_id, public_state=_STATES[state], blocking_reason=_BLOCKING[reason]
        )

    async def _read_fields(self, execution_id: ExecutionId, *fields: str) -> list[Any]:
        partition = self._partitions.of(execution_id)
        key = partition.execution(execution_uuid(execution_id))
        (found,) = await self._calls.read(partition, [("HMGET", key, *fields)])
        return found

    async def _load(self, execution_id: ExecutionId) -> Loaded:
        return _loaded(execution_id, await self._read_fields(execution_id, *FIELDS))

    async def _read_payload(self, partition: Partition, nonce: str) -> bytes | None:
        (data,) = await self._calls.read(partition, [("GET", partition.payload(nonce))])
        return data

    async def _look(self, execution_id: ExecutionId) -> ResultUnion | Refused:
        """Read how an execution ended, or the refusal that says it has not."""
        partition = self._partitions.of(execution_id)
        for _ in range(_TRIES):
            *fields, inline = await self._read_fields(execution_id, *FIELDS, "r")
            loaded = _loaded(execution_id, fields)
            packed = unpack(fields[0], Packed)
            if packed.result is None:
                return projections.result(loaded, None)
            data = inline if packed.result == "" else await self._read_payload(partition, packed.result)
            # A replay in between takes the result away; then it is read anew.
            if data is not None:
                return projections.result(loaded, Payload(data, packed.result_type or ""))
        raise Corrupt("an execution has lost its result")


def _loaded(execution_id: ExecutionId, fields: list[Any]) -> Loaded:
    loaded = decode(fields)
    if loaded is None:
        raise ExecutionNotFound(execution_id=execution_id)
    return loaded


def _paused(execution_id: ExecutionId, answer: list[Any]) -> ExecutionPaused:
    state, not_before_ms = answer
    return ExecutionPaused(
        execution_id=execution_id, public_state=_STATES[state], not_before_ms=not_before_ms
    )


def _word(status: bytes) -> Any:
    return reply.text(status)
