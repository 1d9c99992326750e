"""Creating executions in Valkey: one call each, or a thousand in a few pipelines.

Creates of one partition and route share a function call, in which each has its own outcome; ids that a batch needs are
minted some to a partition. An input that does not fit the record is staged before the call in the same pipeline, under
a key of its own, and adopted by the function. Whatever cannot be said in one round trip (a route nobody has registered,
a staged input that was gone) is answered by the function, put right here and repeated: a create is safe to repeat,
because its id is fixed before it is sent. What must stay true: a staged key is only ever set when it does not exist,
so a pipeline that is sent again cannot give an adopted payload back its expiry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends import reply
from flowfabric.backends.definitions import encode_definition
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.calling import AGAIN, UNCONFIRMED, Calls
from flowfabric.backends.valkey.catalog import Catalog
from flowfabric.backends.valkey.keys import Partition, Partitions
from flowfabric.backends.valkey.record import INLINE_BYTES_MAX, pack, static_of
from flowfabric.backends.valkey.wire import Answer, Command
from flowfabric.contract import ids, limits
from flowfabric.contract.creating import define, place, priority_of
from flowfabric.contract.errors import (
    Corrupt,
    FlowFabricError,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ExecutionDefinition,
    ExecutionDuplicate,
    ExecutionsCreated,
    ItemRefused,
)
from flowfabric.contract.ids import ExecutionId, PartitionCounts
from flowfabric.contract.states import PublicState

STAGED_MS: Final = 60_000
"""How long a staged payload waits to be adopted."""
CHUNK: Final = 64
"""Items of a batch that are sent in one go; other callers' calls are sent in between."""
CHUNKS_AT_ONCE: Final = 4
_TRIES: Final = 8
_RIDS_MAX: Final = 16_384
_CREATE: Final = "execution_create"
_ENCODE_TAGS: Final = msgspec.json.Encoder().encode
_STATES: Final = {state.value.encode(): state for state in PublicState}

Created = ExecutionCreated | ExecutionDuplicate
Outcome = ExecutionCreated | ExecutionDuplicate | FlowFabricError


def stage(key: str, data: bytes) -> Command:
    """Return the command that stages a payload until a function adopts it."""
    return ("SET", key, data, "PX", STAGED_MS, "NX")


class _Prepared(msgspec.Struct):
    """A create, ready to be sent."""

    definition: ExecutionDefinition
    priority: int
    minted: bool
    partition: Partition
    rid: str
    key: str
    """Of the execution."""
    idempotency: str | None
    """The key of its idempotency key."""
    payload: str | None
    """The key under which its input is staged."""
    staged: tuple[Command, ...]
    values: tuple[Any, ...]
    """What the function is told of it."""


class _Call:
    """Creates of one partition and route that are sent in one call."""

    __slots__ = ("keys", "members")

    def __init__(self) -> None:
        self.members: list[tuple[int, _Prepared]] = []
        self.keys: set[str | None] = set()

    def takes(self, prepared: _Prepared) -> bool:
        """Say whether a create may be part of it: what names the same execution must follow, not stand beside."""
        return prepared.key not in self.keys and (
            prepared.idempotency is None or prepared.idempotency not in self.keys
        )

    def add(self, at: int, prepared: _Prepared) -> None:
        """Make a create part of it."""
        self.members.append((at, prepared))
        self.keys.add(prepared.key)
        self.keys.add(prepared.idempotency)


class _Batch:
    """A batch under way."""

    def __init__(self) -> None:
        self.window: Final = asyncio.Semaphore(CHUNKS_AT_ONCE)
        self.failure: Unavailable | None = None
        self.answered: bool = False
        """Some of it was created."""


class Creator:
    """Creates executions in one store."""

    def __init__(
        self,
        calls: Calls,
        partitions: Partitions,
        catalog: Catalog,
        counts: PartitionCounts,
        retention_default_ms: int,
    ) -> None:
        self._calls = calls
        self._partitions = partitions
        self._catalog = catalog
        self._counts = counts
        self._retention_default_ms = retention_default_ms
        self._rids: Final[dict[tuple[str, str, str], str]] = {}

    async def create(self, command: ExecutionCreate) -> Created:
        """Create one execution."""
        command.check()
        return await self._create(self._prepare(command))

    async def create_many(self, command: ExecutionCreateMany) -> ExecutionsCreated:
        """Create many, each with its own outcome; other callers' operations run in between."""
        command.check()
        items = command.executions
        batch = _Batch()
        minted = ids.mint_execution_ids(self._counts, len(items))
        outcomes = await asyncio.gather(
            *(
                self._create_chunk(batch, items[start : start + CHUNK], minted)
                for start in range(0, len(items), CHUNK)
            ),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Unavailable):
                raise outcome
        if batch.failure is not None:
            if not batch.answered and not isinstance(batch.failure, OutcomeUnknown):
                raise batch.failure
            raise OutcomeUnknown(
                f"part of the batch was created, then: {batch.failure.message}; repeat the batch"
            ) from batch.failure
        return ExecutionsCreated(
            results=tuple(
                _result_of(item)
                for outcome in outcomes
                if not isinstance(outcome, BaseException)
                for item in outcome
            )
        )

    async def _create_chunk(
        self, batch: _Batch, items: Sequence[ExecutionCreate], minted: Iterator[ExecutionId]
    ) -> list[Outcome]:
        """Create some of a batch; raise Unavailable when that failed for every one of them."""
        outcomes: list[Outcome | None] = [None] * len(items)
        left: list[tuple[int, _Prepared]] = []
        heads: dict[tuple[int, str], tuple[_Prepared, int]] = {}
        # While the store works on some chunks, the next one is prepared.
        async with batch.window:
            if batch.failure is not None:
                raise batch.failure
            by_slot = self._prepare_chunk(items, outcomes, minted)
            try:
                answered = await asyncio.gather(*(self._send(calls) for calls in by_slot.values()))
            except asyncio.CancelledError:
                # Some may have been answered.
                for calls in by_slot.values():
                    self._doubt(calls)
                raise
        for calls, answers in zip(by_slot.values(), answered, strict=True):
            for call, answer in zip(calls, answers, strict=True):
                for (at, prepared), item in zip(call.members, self._items(call, answer, heads), strict=True):
                    outcome = item if isinstance(item, Unavailable) else _read(prepared, item)
                    outcomes[at] = outcome
                    if outcome is None:
                        left.append((at, prepared))
        await asyncio.gather(
            *(self._announce(prepared, score) for prepared, score in heads.values()),
            *(self._finish(outcomes, at, prepared) for at, prepared in left),
        )
        found = [outcome for outcome in outcomes if outcome is not None]
        failed = [outcome for outcome in found if isinstance(outcome, Unavailable)]
        if failed and len(failed) == len(found):
            failures = failed if batch.failure is None else [batch.failure, *failed]
            # Once one may have been carried out, no other failure can say that nothing happened.
            batch.failure = next((each for each in failures if isinstance(each, OutcomeUnknown)), failures[0])
            raise batch.failure
        batch.answered |= any(not isinstance(outcome, FlowFabricError) for outcome in found)
        return found

    def _prepare_chunk(
        self, items: Sequence[ExecutionCreate], outcomes: list[Outcome | None], minted: Iterator[ExecutionId]
    ) -> dict[int, list[_Call]]:
        """Prepare what is sent, by slot; note refusals in `outcomes`."""
        latest: dict[tuple[int, str], _Call] = {}
        by_slot: dict[int, list[_Call]] = {}
        is_cluster = self._calls.client.is_cluster
        for at, item in enumerate(items):
            try:
                item.check()
                prepared = self._prepare(item, minted)
            except Refused as refusal:
                outcomes[at] = refusal
                continue
            partition = prepared.partition
            call = latest.get((partition.number, prepared.rid))
            if call is None or not call.takes(prepared):
                call = latest[partition.number, prepared.rid] = _Call()
                # One server takes everything in one pipeline, whatever the slots.
                by_slot.setdefault(partition.slot if is_cluster else 0, []).append(call)
            call.add(at, prepared)
        return by_slot

    async def _send(self, calls: Sequence[_Call]) -> Sequence[Answer | Unavailable]:
        """Send calls in one pipeline and return their replies, or why there are none."""
        commands: list[Command] = []
        places: list[int] = []
        for call in calls:
            for _, prepared in call.members:
                commands += prepared.staged
            places.append(len(commands))
            names, given = self._call_of([prepared for _, prepared in call.members])
            commands.append(self._calls.command(_CREATE, names, **given))
        try:
            replies, is_confirmed = await self._calls.execute(calls[0].members[0][1].partition, commands)
        except Unavailable as error:
            if isinstance(error, OutcomeUnknown):
                self._doubt(calls)
            return [error] * len(calls)
        except asyncio.CancelledError:
            self._doubt(calls)
            raise
        if not is_confirmed:
            self._doubt(calls)
            return [OutcomeUnknown(UNCONFIRMED)] * len(calls)
        return [replies[place] for place in places]

    def _doubt(self, calls: Sequence[_Call]) -> None:
        for call in calls:
            _, prepared = call.members[0]
            self._calls.doubt(prepared.partition, prepared.rid)

    def _items(
        self, call: _Call, answer: Answer | Unavailable, heads: dict[tuple[int, str], tuple[_Prepared, int]]
    ) -> Sequence[Any]:
        """Return what a call says of each of its members; None for what has to be sent again by itself."""
        if isinstance(answer, Unavailable):
            return [answer] * len(call.members)
        if not isinstance(answer, list) or answer[0] != 1:
            return [None] * len(call.members)
        _, head, due, *items = answer
        _, prepared = call.members[0]
        effects = self._calls.effects
        if effects is not None and isinstance(due, int):
            effects.due(prepared.partition, due)
        if isinstance(head, int):
            place = (prepared.partition.number, prepared.rid)
            known = heads.get(place)
            if known is None or head < known[1]:
                heads[place] = (prepared, head)
        return items

    async def _announce(self, prepared: _Prepared, score: int) -> None:
        if self._calls.effects is not None:
            await self._calls.effects.head(prepared.partition, prepared.rid, score)

    async def _finish(self, outcomes: list[Outcome | None], at: int, prepared: _Prepared) -> None:
        """Create one of a batch by itself."""
        try:
            outcomes[at] = await self._create(prepared)
        except (Refused, Unavailable) as error:
            outcomes[at] = error

    async def _create(self, prepared: _Prepared) -> Created:
        before = prepared.staged
        for _ in range(_TRIES):
            names, given = self._call_of([prepared])
            (item,) = await self._calls.call(
                prepared.partition, _CREATE, names, rid=prepared.rid, before=before, **given
            )
            outcome = _read(prepared, item)
            if outcome is None:
                # What was staged is still there, unless the answer says otherwise.
                code = reply.text(item[0])
                before = prepared.staged if code == "payload_missing" else ()
                if code == "route_unregistered":
                    await self._catalog.register(prepared.definition)
                continue
            if isinstance(outcome, FlowFabricError):
                raise outcome
            return outcome
        raise Unavailable("the input could not be staged: the store is too slow, or its clock jumps")

    def _call_of(self, members: Sequence[_Prepared]) -> tuple[list[str], dict[str, Any]]:
        """Return the keys and the arguments of a call that creates these."""
        first = members[0]
        partition = first.partition
        names = [partition.eligible(first.rid), partition.due, partition.all, partition.lanes]
        names += [each.key for each in members]
        names += [each.idempotency for each in members if each.idempotency is not None]
        names += [each.payload for each in members if each.payload is not None]
        creates = [value for each in members for value in each.values]
        return names, {"route_ok": self._catalog.has_route(first.rid), "creates": creates}

    def _prepare(self, command: ExecutionCreate, minted: Iterator[ExecutionId] | None = None) -> _Prepared:
        """Work out what is sent; refuse an id that does not fit. `minted` are ids for creates that name none."""
        misplaced = place(command, self._counts)
        if misplaced is not None:
            raise misplaced
        defaults = self._catalog.defaults(command.namespace, command.kind)
        idempotency_key = command.idempotency_key
        execution_id = command.execution_id
        if execution_id is None and minted is not None and not idempotency_key:
            execution_id = next(minted)
        elif execution_id is None:
            execution_id = ids.mint_execution_id(
                self._counts, namespace=command.namespace, idempotency_key=idempotency_key
            )
        definition = define(
            command,
            execution_id=execution_id,
            defaults=defaults,
            retention_default_ms=self._retention_default_ms,
            now_ms=0,
        )
        partition = self._partitions.of(execution_id)
        rid = self._rid(definition)
        idempotency: str | None = None
        if idempotency_key is not None:
            idempotency = partition.idempotency(keys.idempotency_hash(command.namespace, idempotency_key))
        payload, nonce = command.input, None
        staged: tuple[Command, ...] = ()
        payload_key: str | None = None
        if len(payload.data) > INLINE_BYTES_MAX:
            nonce = keys.fresh_nonce()
            payload_key = partition.payload(nonce)
            staged = (stage(payload_key, payload.data),)
        window_ms = definition.policy.dedup_window_ms
        priority = priority_of(command, defaults)
        delay_until_ms = command.delay_until_ms
        values = (
            definition.digest,
            pack(static_of(definition, rid, nonce, payload.content_type, len(payload.data))),
            encode_definition(definition),
            _ENCODE_TAGS(command.tags) if command.tags else b"",
            payload.data if nonce is None else b"",
            priority,
            "" if delay_until_ms is None else delay_until_ms,
            window_ms if window_ms is not None else limits.DEDUP_WINDOW_DEFAULT_MS,
            0 if idempotency is None else 1,
            0 if nonce is None else 1,
        )
        return _Prepared(
            definition,
            priority,
            command.execution_id is None,
            partition,
            rid,
            partition.execution(execution_id[-36:]),
            idempotency,
            payload_key,
            staged,
            values,
        )

    def _rid(self, definition: ExecutionDefinition) -> str:
        key = (definition.namespace, definition.lane, definition.route)
        rid = self._rids.get(key)
        if rid is None:
            if len(self._rids) >= _RIDS_MAX:
                self._rids.clear()
            rid = self._rids[key] = keys.route_id(*key)
        return rid


def _read(prepared: _Prepared, item: Sequence[Any] | None) -> Outcome | None:
    """Return what a create came to; None when it has to be sent again."""
    if item is None:
        return None
    code, _, _, *rest = item
    if code == 1:
        return _created(prepared, rest)
    text = reply.text(code)
    return None if text in AGAIN else reply.refusal(text, rest[0], rest[1:])


def _created(prepared: _Prepared, answer: Sequence[Any]) -> Created:
    """Read the function's answer."""
    definition = prepared.definition
    match answer:
        case [b"created", int(created_at_ms), bytes(state)]:
            pass
        case [b"duplicate", bytes(known), bytes(state), int(created_at_ms)]:
            execution_id = ExecutionId(known.decode())
            if not prepared.minted or execution_id != definition.execution_id:
                return ExecutionDuplicate(execution_id=execution_id, public_state=_STATES[state])
            # Only this call knows the id: an earlier sending of it was carried out.
        case [b"duplicate", bytes(known)]:
            return ExecutionDuplicate(execution_id=ExecutionId(known.decode()), public_state=None)
        case _:
            raise Corrupt("a create was answered with something that cannot be read")
    return ExecutionCreated(
        execution_id=definition.execution_id,
        public_state=_STATES[state],
        lane=definition.lane,
        priority=prepared.priority,
        created_at_ms=created_at_ms,
    )


def _result_of(outcome: Outcome) -> Created | ItemRefused:
    if isinstance(outcome, FlowFabricError):
        return ItemRefused(
            code=outcome.code,
            message=outcome.message,
            retryable=outcome.retryable,
            details=outcome.details,
        )
    return outcome
