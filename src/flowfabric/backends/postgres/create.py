"""Creating executions in Postgres: concurrent creates share a statement, and a thousand are a few statements.

A create is a row in a call of `execution_create`. Its id is fixed before it is sent, so repeating it is safe; it is
repeated when the function says that the kind's defaults it went by are not the stored ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from flowfabric.backends.postgres import shapes
from flowfabric.backends.postgres.batching import Batch
from flowfabric.backends.postgres.calling import Again, refusal
from flowfabric.backends.postgres.catalog import Catalog, is_stale
from flowfabric.backends.postgres.pool import Record, ran_out_of_time
from flowfabric.backends.postgres.shapes import Created, Prepared
from flowfabric.backends.postgres.store import Store
from flowfabric.contract.errors import (
    Corrupt,
    FlowFabricError,
    InvalidInput,
    OutcomeUnknown,
    Refused,
    ResourceExhausted,
    Unavailable,
)
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreateMany,
    ExecutionsCreated,
    ItemRefused,
)
from flowfabric.contract.ids import ExecutionId

CHUNKS_AT_ONCE: Final = 2
CREATE: Final = Batch(
    function=shapes.FUNCTION, types=shapes.TYPES, columns=shapes.ANSWERED, most=256, is_heavy=True
)
_TRIES: Final = 8

Outcome = Created | FlowFabricError


class _Many:
    """A create of many, under way."""

    def __init__(self) -> None:
        self.window: Final = asyncio.Semaphore(CHUNKS_AT_ONCE)
        self.failure: Unavailable | ResourceExhausted | None = None
        self.answered: bool = False
        """Some of it was created."""


class Creator:
    """Creates executions in one store."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._calls = store.calls
        self._catalog = catalog
        self._counts = store.layout.partitions
        self._retention_ms = store.retention_ms
        given = ", ".join(f"${at}::{kind}[]" for at, kind in enumerate(shapes.TYPES, 1))
        names = ", ".join(("at", "code", "message", "details", *shapes.ANSWERED))
        self._statement: Final = f"SELECT {names} FROM {store.schema}.{shapes.FUNCTION}({given})"  # noqa: S608 -- all constants

    async def create(self, command: ExecutionCreate) -> Created:
        """Create one execution."""
        command.check()
        await self._catalog.ensure()
        execution_id: ExecutionId | None = None
        for _ in range(_TRIES):
            prepared = self._prepare(command, execution_id)
            try:
                row = await self._calls.hot(CREATE, prepared.values, None)
            except Again:
                execution_id = prepared.definition.execution_id
                await self._catalog.refresh()
            else:
                return _answer(prepared, row)
        raise Unavailable(shapes.UNSETTLED)

    async def create_many(self, command: ExecutionCreateMany) -> ExecutionsCreated:
        """Create many, each with its own outcome; other callers' operations run in between."""
        command.check()
        await self._catalog.ensure()
        many = _Many()
        outcomes = await asyncio.gather(
            *(self._create_chunk(many, chunk) for chunk in shapes.chunks(command.executions)),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(
                outcome, (Unavailable, ResourceExhausted)
            ):
                raise outcome
        if many.failure is not None:
            if not many.answered and not isinstance(many.failure, OutcomeUnknown):
                raise many.failure
            raise OutcomeUnknown(
                f"part of the batch was created, then: {many.failure.message}; repeat the batch"
            ) from many.failure
        return ExecutionsCreated(
            results=tuple(
                _result_of(item)
                for outcome in outcomes
                if not isinstance(outcome, BaseException)
                for item in outcome
            )
        )

    async def _create_chunk(self, many: _Many, items: Sequence[ExecutionCreate]) -> list[Outcome]:
        """Create some of a batch; raise Unavailable or ResourceExhausted when that failed for all of them."""
        # While the store works on some chunks, the next one is prepared.
        async with many.window:
            if many.failure is not None:
                raise many.failure
            try:
                outcomes = await self._send(items)
            except (Unavailable, ResourceExhausted) as error:
                many.failure = error
                raise
        many.answered |= any(not isinstance(outcome, FlowFabricError) for outcome in outcomes)
        return outcomes

    async def _send(self, items: Sequence[ExecutionCreate]) -> list[Outcome]:
        minted: dict[int, ExecutionId] = {}
        for _ in range(_TRIES):
            outcomes: list[Outcome | None] = [None] * len(items)
            sent: list[tuple[int, Prepared]] = []
            for at, item in enumerate(items):
                try:
                    item.check()
                    prepared = self._prepare(item, minted.get(at))
                except Refused as refused:
                    outcomes[at] = refused
                else:
                    minted[at] = prepared.definition.execution_id
                    sent.append((at, prepared))
            rows: Sequence[Record] = ()
            if sent:
                try:
                    rows = await self._calls.change(
                        self._statement, *shapes.columns_of([prepared for _, prepared in sent])
                    )
                except (Corrupt, InvalidInput, Unavailable) as error:
                    if isinstance(error, Unavailable) and not ran_out_of_time(error):
                        raise
                    # Rolled back as a whole because of one of them.
                    return [await self._create_item(item) for item in items]
            if is_stale(rows):
                await self._catalog.refresh()
                continue
            for row in rows:
                at, prepared = sent[int(row["at"]) - 1]
                outcomes[at] = _outcome(prepared, row)
            return [outcome for outcome in outcomes if outcome is not None]
        raise Unavailable(shapes.UNSETTLED)

    async def _create_item(self, item: ExecutionCreate) -> Outcome:
        try:
            return await self.create(item)
        except (Refused, Unavailable, Corrupt) as error:
            return error

    def _prepare(self, command: ExecutionCreate, execution_id: ExecutionId | None) -> Prepared:
        published = self._catalog.published(command.namespace, command.kind)
        return shapes.prepare(command, published, self._counts, self._retention_ms, execution_id)


def _answer(prepared: Prepared, row: Record) -> Created:
    return shapes.answer_of(
        prepared, row["status"], row["execution_id"], row["public_state"], row["created_at_ms"]
    )


def _outcome(prepared: Prepared, row: Record) -> Outcome:
    if row["code"] is None:
        return _answer(prepared, row)
    found = refusal(row["code"], row["message"], row["details"])
    if not isinstance(found, FlowFabricError):
        raise Corrupt("a create was answered with a code that is not a refusal")
    return found


def _result_of(outcome: Outcome) -> Created | ItemRefused:
    if isinstance(outcome, FlowFabricError):
        return ItemRefused(
            code=outcome.code,
            message=outcome.message,
            retryable=outcome.retryable,
            details=outcome.details,
        )
    return outcome
