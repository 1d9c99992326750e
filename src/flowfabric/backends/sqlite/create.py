"""Creating executions: repeated creates, idempotency keys, placement; one by one or a thousand at once."""

from __future__ import annotations

import asyncio
from typing import Final

from flowfabric.backends import assets
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.apply import store_new
from flowfabric.backends.sqlite.writer import Transaction, Writer
from flowfabric.contract import ids, limits
from flowfabric.contract.errors import (
    FlowFabricError,
    IdempotencyConflict,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ExecutionDuplicate,
    ExecutionsCreated,
    ItemRefused,
)
from flowfabric.contract.ids import ExecutionId, PartitionCounts
from flowfabric.rules import execution as rules
from flowfabric.rules.decision import Decision

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/create.sql")
CHUNK: Final = 64
"""Items of a batch that run without letting anybody else in between."""

Created = ExecutionCreated | ExecutionDuplicate


class Creator:
    """Creates executions in one store."""

    def __init__(self, writer: Writer, partitions: PartitionCounts, retention_default_ms: int) -> None:
        self._writer = writer
        self._partitions = partitions
        self._retention_default_ms = retention_default_ms

    async def create(self, command: ExecutionCreate) -> Created:
        """Create one execution."""
        command.check()
        return await self._writer.write(lambda transaction: self._create(transaction, command))

    async def create_many(self, command: ExecutionCreateMany) -> ExecutionsCreated:
        """Create many, each with its own outcome; other callers' operations run in between."""
        command.check()
        items = command.executions
        chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
        outcomes = await asyncio.gather(
            *(
                self._writer.write(
                    lambda transaction, chunk=chunk: [self._create_item(transaction, item) for item in chunk],
                    weight=len(chunk),
                )
                for chunk in chunks
            ),
            return_exceptions=True,
        )
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failed:
            if len(failed) < len(outcomes) and isinstance(failed[0], FlowFabricError):
                raise OutcomeUnknown(
                    f"part of the batch was created, then: {failed[0].message}; repeat the batch"
                ) from failed[0]
            raise failed[0]
        return ExecutionsCreated(
            results=tuple(
                item for outcome in outcomes if not isinstance(outcome, BaseException) for item in outcome
            )
        )

    def _create_item(self, transaction: Transaction, command: ExecutionCreate) -> Created | ItemRefused:
        try:
            command.check()
            return self._create(transaction, command)
        except (Refused, Unavailable) as refusal:
            return ItemRefused(
                code=refusal.code,
                message=refusal.message,
                retryable=refusal.retryable,
                details=refusal.details,
            )

    def _create(self, transaction: Transaction, command: ExecutionCreate) -> Created:
        misplaced = rules.place(command, self._partitions)
        if misplaced is not None:
            raise misplaced
        repeated = self._repeated(transaction, command)
        if repeated is not None:
            if repeated.refusal is not None:
                raise repeated.refusal
            assert repeated.reply is not None, "a repeated create is answered or refused"
            return repeated.reply
        transaction.log.refuse_growth()
        catalog = transaction.catalog
        defaults = catalog.defaults(transaction, command.namespace, command.kind)
        creation = rules.create(
            command,
            execution_id=command.execution_id or self._mint(command),
            defaults=defaults,
            lane_state=catalog.lane_state(transaction, rules.lane_of(command, defaults)),
            retention_default_ms=self._retention_default_ms,
            now_ms=transaction.now_ms,
        )
        if creation.refusal is not None:
            raise creation.refusal
        definition, record, reply = creation.definition, creation.record, creation.reply
        assert definition is not None and record is not None and reply is not None, (
            "accepted creates are whole"
        )
        route_id = catalog.register(transaction, definition)
        store_new(transaction, definition, record, command.input, route_id)
        if command.idempotency_key is not None:
            window_ms = definition.policy.dedup_window_ms
            window_ms = window_ms if window_ms is not None else limits.DEDUP_WINDOW_DEFAULT_MS
            transaction.execute(
                _SQL["remember_key"],
                (
                    command.namespace,
                    command.idempotency_key,
                    definition.execution_id,
                    definition.digest,
                    transaction.now_ms + window_ms,
                ),
            )
        return reply

    def _mint(self, command: ExecutionCreate) -> ExecutionId:
        return ids.mint_execution_id(
            self._partitions, namespace=command.namespace, idempotency_key=command.idempotency_key
        )

    def _repeated(
        self, transaction: Transaction, command: ExecutionCreate
    ) -> Decision[ExecutionDuplicate] | None:
        """Answer a create whose id or live key is known."""
        if command.execution_id is not None and transaction.first(
            _SQL["is_known"], (rows.pack_uuid(command.execution_id),)
        ):
            row = rows.find(transaction, command.execution_id)
            if row is None:
                return Decision(refusal=IdempotencyConflict("this uuid is in use under another partition"))
            return rules.duplicate(command, row.loaded)
        if command.idempotency_key is None:
            return None
        found = transaction.first(
            _SQL["find_key"], (command.namespace, command.idempotency_key, transaction.now_ms)
        )
        if found is None:
            return None
        execution_id, digest = found
        row = rows.find(transaction, execution_id)
        if row is not None:
            return rules.duplicate(command, row.loaded)
        return rules.duplicate_of(command, ExecutionId(execution_id), digest, None)
