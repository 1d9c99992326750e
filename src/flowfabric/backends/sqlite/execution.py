"""Executions in SQLite: each operation loads, asks the rules, and applies what they decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from flowfabric.backends import assets
from flowfabric.backends.bells import Bells
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.apply import answer
from flowfabric.backends.sqlite.catalog import find_lane
from flowfabric.backends.sqlite.create import Created, Creator
from flowfabric.backends.sqlite.listing import list_executions
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.backends.sqlite.worker import live_workers
from flowfabric.backends.sqlite.writer import Transaction, Writer
from flowfabric.backends.waiting import wait_for
from flowfabric.contract.attempt import AttemptRecord
from flowfabric.contract.errors import Refused
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
    ResultUnion,
    RetryScheduled,
)
from flowfabric.contract.ids import ExecutionId, execution_uuid
from flowfabric.contract.payloads import Fence
from flowfabric.contract.states import LaneState
from flowfabric.rules import execution as rules
from flowfabric.rules.decision import Decision, Loaded

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/execution.sql")


class _ById(Protocol):
    @property
    def execution_id(self) -> ExecutionId: ...

    def check(self) -> None: ...


class _Fenced(_ById, Protocol):
    @property
    def fence(self) -> Fence | None: ...


def former_of(transaction: Transaction, row: rows.Row, fence: Fence | None) -> AttemptRecord | None:
    """Load the superseded attempt that a fence names, when it is not the latest."""
    if fence is None or fence.attempt_id is None:
        return None
    latest = row.loaded.record.attempt
    if latest is not None and latest.attempt_id == fence.attempt_id:
        return None
    return rows.load_former(transaction, row.seq, fence.attempt_id)


class SqliteExecutions:
    """Operations on executions."""

    def __init__(self, writer: Writer, readers: Readers, bells: Bells, creator: Creator) -> None:
        self._writer = writer
        self._readers = readers
        self._bells = bells
        self._creator = creator

    async def _change(self, command: _ById, rule: Callable[[Loaded, Any, int], Decision[Any]]) -> Any:
        """Check, load, decide, apply."""
        command.check()

        def run(transaction: Transaction) -> Any:
            row = rows.load(transaction, command.execution_id)
            return answer(transaction, row, rule(row.loaded, command, transaction.now_ms))

        return await self._writer.write(run)

    async def _fenced(
        self,
        command: _Fenced,
        rule: Callable[[Loaded, Any, int, AttemptRecord | None], Decision[Any]],
    ) -> Any:
        """As `_change`, with the former attempt that the fence may name."""
        command.check()

        def run(transaction: Transaction) -> Any:
            row = rows.load(transaction, command.execution_id)
            former = former_of(transaction, row, command.fence)
            return answer(transaction, row, rule(row.loaded, command, transaction.now_ms, former))

        return await self._writer.write(run)

    async def _read(self, command: _ById, project: Callable[[Snapshot, rows.Row], Any]) -> Any:
        """Check, load, project."""
        command.check()
        return await self._readers.read(
            lambda snapshot: project(snapshot, rows.load(snapshot, command.execution_id))
        )

    # Creating and reading -----------------------------------------------------------------------------------------

    async def create(self, command: ExecutionCreate) -> Created:
        """Create an execution."""
        return await self._creator.create(command)

    async def create_many(self, command: ExecutionCreateMany) -> ExecutionsCreated:
        """Create up to 1,000 executions."""
        return await self._creator.create_many(command)

    async def describe(self, command: ExecutionDescribe) -> ExecutionSnapshot:
        """Read everything but the payloads."""
        return await self._read(command, _describe)

    async def read_info(self, command: ExecutionReadInfo) -> ExecutionInfo:
        """Read the short record."""
        return await self._read(command, lambda _, row: rules.info(row.loaded))

    async def read_state(self, command: ExecutionReadState) -> ExecutionStateRead:
        """Read the public state."""
        return await self._read(
            command,
            lambda _, row: ExecutionStateRead(
                execution_id=command.execution_id, public_state=row.loaded.record.state.public_state
            ),
        )

    async def read_context(self, command: ExecutionReadContext) -> ExecutionContext:
        """Read input, kind and tags."""
        return await self._read(
            command, lambda snapshot, row: rules.context(row.loaded, rows.load_input(snapshot, row.seq))
        )

    async def read_result(self, command: ExecutionReadResult) -> ResultUnion:
        """Read how it ended, waiting for the end."""
        command.check()

        def look(snapshot: Snapshot) -> ResultUnion | Refused:
            row = rows.load(snapshot, command.execution_id)
            payload = rows.load_result(snapshot, row.seq) if row.loaded.record.has_result else None
            return rules.result(row.loaded, payload)

        found = await wait_for(
            lambda: self._readers.read(look),
            lambda outcome: not isinstance(outcome, Refused),
            bells=self._bells,
            uuid=execution_uuid(command.execution_id),
            wait_ms=command.wait_ms,
        )
        if isinstance(found, Refused):
            raise found
        return found

    async def list(self, command: ExecutionList) -> ExecutionPage:
        """List executions, newest first."""
        command.check()
        return await self._readers.read(lambda snapshot: list_executions(snapshot, command))

    # Changes from the outside -------------------------------------------------------------------------------------

    async def set_tags(self, command: ExecutionSetTags) -> ExecutionTagsSet:
        """Add or overwrite tags."""
        return await self._change(command, rules.set_tags)

    async def change_priority(self, command: ExecutionChangePriority) -> ExecutionPriorityChanged:
        """Change the priority."""
        return await self._change(command, rules.change_priority)

    async def cancel(self, command: ExecutionCancel) -> ExecutionCancelled:
        """Cancel in any state but a finished one."""
        return await self._fenced(command, rules.cancel)

    async def replay(self, command: ExecutionReplay) -> ExecutionReplayed:
        """Run a finished execution again."""
        return await self._change(command, rules.replay)

    async def block(self, command: ExecutionBlock) -> ExecutionChanged:
        """Hold an eligible execution back."""
        return await self._change(command, rules.block)

    async def unblock(self, command: ExecutionUnblock) -> ExecutionChanged:
        """Let a blocked execution run."""
        return await self._change(command, rules.unblock)

    # Changes by the holder of the lease ---------------------------------------------------------------------------

    async def complete(self, command: ExecutionComplete) -> ExecutionCompleted:
        """End with success."""
        return await self._fenced(command, rules.complete)

    async def fail(self, command: ExecutionFail) -> RetryScheduled | ExecutionFailed:
        """Report that the attempt failed."""
        return await self._fenced(command, rules.fail)

    async def delay(self, command: ExecutionDelay) -> ExecutionPaused:
        """Continue the same attempt later."""
        return await self._fenced(command, rules.delay)

    async def wait_children(self, command: ExecutionWaitChildren) -> ExecutionPaused:
        """Continue the same attempt when all it depends on is done."""
        return await self._fenced(command, rules.wait_children)

    async def progress(self, command: ExecutionProgress) -> ExecutionProgressed:
        """Store the progress."""
        return await self._fenced(command, rules.progress)

    # Changes by timers --------------------------------------------------------------------------------------------

    async def expire(self, command: ExecutionExpire) -> ExecutionExpireDone:
        """Apply an attempt timeout or the deadline."""
        return await self._change(command, rules.expire)

    async def promote(self, command: ExecutionPromote) -> ExecutionPromoted:
        """Make a delayed execution eligible."""
        return await self._change(command, rules.promote)

    async def trim(self, command: ExecutionTrim) -> ExecutionTrimmed:
        """Delete what retention says."""
        command.check()

        def run(transaction: Transaction) -> ExecutionTrimmed:
            row = rows.load(transaction, command.execution_id)
            expiries = [found[0] for found in transaction.all(_SQL["stream_expiries"], (row.seq,))]
            decision = rules.trim(row.loaded, command, transaction.now_ms, expiries)
            return answer(transaction, row, decision)

        return await self._writer.write(run)


def _describe(snapshot: Snapshot, row: rows.Row) -> ExecutionSnapshot:
    definition = row.loaded.definition
    lane = find_lane(snapshot, definition.lane)
    waiting = rules.waiting(
        row.loaded,
        lane_state=lane.state if lane is not None else LaneState.ACTIVE,
        workers=live_workers(snapshot, definition.namespace),
        now_ms=snapshot.now_ms,
    )
    return rules.snapshot(row.loaded, waiting=waiting)
