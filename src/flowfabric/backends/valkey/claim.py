"""Claiming: follow the best hints, lease there, and give the hints back with what is left.

One look takes the best hints of all routes that the worker fits; what they promise decides how many leases each
partition may give, so that the order over partitions is exact between priorities and within a quarter of a second of
age inside one. A partition in which better work may remain than elsewhere is asked first, or the heads of all are
compared before anything is leased. What must stay true: a hint that was taken goes back, and one whose claim ended in
doubt runs out by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.bells import Topic
from flowfabric.backends.definitions import decode_definition
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.catalog import Route
from flowfabric.backends.valkey.hints import Hint, Hints, Taken
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.record import Packed, decode_tags, unpack
from flowfabric.backends.valkey.routing import Routes
from flowfabric.backends.valkey.store import Store
from flowfabric.contract import ids, limits
from flowfabric.contract.errors import Corrupt, FlowFabricError, OutcomeUnknown, Unavailable
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import AttemptType

REPLY_BYTES_MAX: Final = limits.BODY_BATCH_MAX
"""Inputs in one reply, which the last one may exceed."""
HINTS_AT_ONCE: Final = 16
SHARED_AT_ONCE: Final = 128
"""How many are looked at when all of them are held by others."""
TOGETHER: Final = 8
"""How many leases one index gives at once, where others have work that is as old."""
SLACK_MS: Final = 200
"""Work of one priority and so close in age counts as equally old."""
LOOKS_MAX: Final = 1_024
"""Looks at the hints in one claim, each of which found some."""
KEEP_CLAIM_MIN_MS: Final = 60_000
_LEASE_VALUES: Final = 8
_INFINITE: Final = float("inf")


class Found(msgspec.Struct, frozen=True):
    """A lease, and its place in the order of work."""

    score: int
    lease: Lease

    @property
    def order(self) -> tuple[int, str]:
        """Sorts the best first."""
        return self.score, self.lease.execution_id[-36:]


class _Held(msgspec.Struct):
    """A hint that was taken, and what is known of its index by now."""

    hint: Hint
    route: Route
    partition: Partition
    head: float | None
    depth: int = 1
    is_in_doubt: bool = False


class _Share(msgspec.Struct, frozen=True):
    """How many leases an index may give, and up to which score."""

    held: _Held
    most: int
    bound: float


class Claims:
    """Carries out claims on one store."""

    def __init__(self, store: Store, hints: Hints, learned: Routes) -> None:
        self._calls: Calls = store.calls
        self._learned = learned
        self._catalog = store.catalog
        self._partitions = store.partitions
        self._hints = hints
        self._per_hint = 1
        """How many leases an index gave of late: work of one priority and age comes several at a time."""

    async def claim(
        self, command: LeaseClaim, *, is_again: bool, woken: Topic | None, until: float | None
    ) -> tuple[Lease, ...]:
        """Lease up to `max_tasks` executions, best first, as `backends.claiming.Look` says.

        Raises: Unavailable or OutcomeUnknown, when nothing is known to be leased.
        """
        del until
        work = _Work(command, is_again, self._hints.rid(woken) if woken is not None else None)
        closed: set[str] = set()
        for _ in range(LOOKS_MAX):
            routes = {route.rid: route for route in self._catalog.fitting(command) if route.rid not in closed}
            may_be_known = command.claim_id is not None and not work.is_again
            if not routes and not may_be_known:
                if work.found or not await self._catalog.catch_up():
                    break
                continue
            taken = await self._take(work, routes)
            if taken is None or taken.repeated is not None:
                repeated = await self._repeat(command, taken.repeated) if taken is not None else ()
                if repeated or taken is None:
                    return repeated or work.leases()
                work.is_again = True
                continue
            if not taken.hints:
                work.is_again = True
                if work.found or taken.version == self._catalog.version or not await self._catalog.catch_up():
                    break
                continue
            hints = work.unseen(taken.hints)
            if not hints:
                # Somebody else holds all hints there are, and nothing is left where they are: do not look until they
                # are given back.
                break
            await self._claim_from(work, routes, hints, taken.bound, closed)
            if work.left <= 0 or work.room <= 0 or (work.error is not None and work.found):
                break
            if work.error is not None:
                raise work.error
        return work.leases()

    async def _take(self, work: _Work, routes: dict[str, Route]) -> Taken | None:
        """Look at the hints; None when that fails and there are leases to answer with."""
        command = work.command
        try:
            taken = await self._hints.take(
                tuple(routes),
                SHARED_AT_ONCE if work.seen else min(-(-work.left // self._per_hint), HINTS_AT_ONCE),
                waits=command.wait_ms > 0,
                woken=work.woken,
                claim_id=command.claim_id,
                is_again=work.is_again,
                keep_ms=max(2 * command.lease_ttl_ms, KEEP_CLAIM_MIN_MS),
            )
        except FlowFabricError:
            if work.found:
                return None
            raise
        work.is_again = work.is_again or bool(taken.hints)
        work.woken = None
        return taken

    # Leasing ------------------------------------------------------------------------------------------------------

    async def _claim_from(
        self,
        work: _Work,
        routes: dict[str, Route],
        hints: Sequence[Hint],
        bound: float | None,
        closed: set[str],
    ) -> None:
        """Lease from the partitions of these hints as long as they have the best work, and give them back."""
        held = [
            _Held(hint, routes[hint.rid], self._partitions.all[hint.partition], float(hint.score))
            for hint in hints
        ]
        limit = bound + SLACK_MS if bound is not None else _INFINITE
        while work.left > 0 and work.room > 0 and work.error is None:
            live = sorted(
                (each for each in held if each.head is not None and each.head <= limit), key=_head_of
            )
            if not live:
                break
            shares = _shares(live, work.left, limit)
            if shares is None:
                try:
                    shares = await self._compare(live, work.left, limit)
                except FlowFabricError as error:
                    # What was leased before is the answer.
                    work.error = error
                    break
            if not await self._claim_shares(work, shares, closed):
                break
        for each in held:
            untouched = each.hint.is_shared and each.head == float(each.hint.score)
            if not each.is_in_doubt and not untouched:
                head = None if each.head is None else int(each.head)
                self._hints.give_back(each.hint, head, each.depth)

    async def _compare(self, live: Sequence[_Held], count: int, limit: float) -> list[_Share]:
        """Look at the best entries of several indexes, and let each give its part of the best of all."""
        replies = await asyncio.gather(
            *(
                self._calls.read(
                    each.partition,
                    [
                        (
                            "ZRANGE",
                            each.partition.eligible(each.route.rid),
                            "0",
                            count - 1,
                            "WITHSCORES",
                        )
                    ],
                )
                for each in live
            )
        )
        entries: list[tuple[float, int]] = []
        for at, (found,) in enumerate(replies):
            live[at].head = found[0][1] if found else None
            entries += [(score, at) for _, score in found if score <= limit]
        entries.sort()
        most = [0] * len(live)
        bounds = [0.0] * len(live)
        for score, at in entries[:count]:
            most[at] += 1
            bounds[at] = score
        return [_Share(each, most[at], bounds[at]) for at, each in enumerate(live) if most[at]]

    async def _claim_shares(self, work: _Work, shares: Sequence[_Share], closed: set[str]) -> bool:
        """Lease from several partitions at once; return whether it is of use to go on with them."""
        room = max(work.room // max(len(shares), 1), 1)
        heads = [share.held.head for share in shares]
        if len(shares) == 1:
            outcomes = [await self._claim_share(work.command, shares[0], room)]
        else:
            outcomes = await asyncio.gather(
                *(self._claim_share(work.command, share, room) for share in shares)
            )
        progress = False
        for share, before, outcome in zip(shares, heads, outcomes, strict=True):
            if isinstance(outcome, FlowFabricError):
                share.held.is_in_doubt, share.held.head = True, None
                work.error = outcome
                continue
            head, leases, depth, is_closed = outcome
            share.held.head, share.held.depth = head, depth
            if is_closed:
                # The lane was stopped and the catalog has not heard of it yet.
                closed.add(share.held.route.rid)
            work.found += leases
            progress = progress or bool(leases) or head != before
        if shares and work.command.max_tasks > 1 and not work.error:
            gave = sum(len(outcome[1]) for outcome in outcomes if not isinstance(outcome, FlowFabricError))
            each = gave // len(shares)
            if gave == sum(share.most for share in shares):
                each = max(each, self._per_hint)
            self._per_hint = max(1, min(each, TOGETHER))
        return progress and not closed

    async def _claim_share(
        self, command: LeaseClaim, share: _Share, room: int
    ) -> tuple[int | None, list[Found], int, bool] | FlowFabricError:
        """Lease from one index; return its new head, the leases, how much it has, and whether the lane is closed."""
        held = share.held
        partition, route = held.partition, held.route
        minted = [ids.mint_uuid() for _ in range(2 * share.most)]
        try:
            head, found, depth, is_closed = await self._calls.call(
                partition,
                "lease_claim",
                (
                    partition.eligible(route.rid),
                    partition.due,
                    partition.own,
                    partition.lost,
                    partition.lanes,
                ),
                mode="claim",
                lane=route.lane,
                namespace=route.namespace,
                worker_id=command.worker_id,
                worker_instance=command.worker_instance,
                ttl_ms=command.lease_ttl_ms,
                claim_id=command.claim_id,
                most=share.most,
                bound=None if share.bound == _INFINITE else int(share.bound),
                room=room,
                ids=minted,
            )
            leases = await self.leases(partition, found)
            if leases:
                self._learned.seen(route.lane, leases[0].lease.route, route.rid)
            return head, leases, depth, bool(is_closed)
        except FlowFabricError as error:
            return error

    async def _repeat(self, command: LeaseClaim, numbers: Sequence[int] | None) -> tuple[Lease, ...]:
        """Return the leases of a claim made before that still live."""
        partitions = [
            self._partitions.all[number] for number in numbers or () if number < len(self._partitions.all)
        ]
        found = await asyncio.gather(*(self._repeat_in(command, partition) for partition in partitions))
        leases = [each for batch in found for each in batch]
        leases.sort(key=_order_of)
        return tuple(each.lease for each in leases)

    async def _repeat_in(self, command: LeaseClaim, partition: Partition) -> list[Found]:
        _, found = await self._calls.call(
            partition,
            "lease_claim",
            (
                # No index is looked at, but the function has one key for it.
                partition.eligible(keys.route_id("", "", "")),
                partition.due,
                partition.own,
                partition.lost,
                partition.lanes,
            ),
            mode="repeat",
            lane="",
            namespace=command.namespace,
            worker_id=command.worker_id,
            worker_instance=command.worker_instance,
            ttl_ms=command.lease_ttl_ms,
            claim_id=command.claim_id,
            most=limits.CLAIM_TASKS_MAX,
            bound=None,
            room=REPLY_BYTES_MAX,
            ids=[],
        )
        return await self.leases(partition, found)

    # Reading leases -----------------------------------------------------------------------------------------------

    async def leases(self, partition: Partition, values: Sequence[Any]) -> list[Found]:
        """Read leases as functions answer them, and the inputs that were too large to come along."""
        found: list[Found] = []
        for at in range(0, len(values), _LEASE_VALUES):
            uuid, record, definition, tags, media, data, nonce, sequence = values[at : at + _LEASE_VALUES]
            if data is None:
                data = await self._read_input(partition, nonce)
            payload = Payload(data, media.decode())
            packed = unpack(record, Packed)
            execution_id = ExecutionId(f"{partition.tag}{uuid.decode()}")
            found.append(_found(execution_id, packed, definition, tags, payload, sequence))
        return found

    async def _read_input(self, partition: Partition, nonce: bytes | None) -> bytes:
        if nonce is None:
            raise Corrupt("an execution that was leased has no input")
        try:
            (data,) = await self._calls.read(partition, [("GET", partition.payload(nonce.decode()))])
        except Unavailable as error:
            raise OutcomeUnknown(f"it is leased, but its input cannot be read: {error.message}") from error
        if data is None:
            raise Corrupt("the input of an execution is gone")
        return data


class _Work:
    """One claim under way: what it has and what it may still get."""

    def __init__(self, command: LeaseClaim, is_again: bool, woken: str | None) -> None:
        self.command = command
        self.woken = woken
        self.is_again = is_again
        self.found: list[Found] = []
        self.seen: set[tuple[str, int]] = set()
        """Where this claim has looked although somebody else held the hint."""
        self.error: FlowFabricError | None = None

    @property
    def left(self) -> int:
        """How many more leases are wanted."""
        return self.command.max_tasks - len(self.found)

    def unseen(self, hints: Sequence[Hint]) -> Sequence[Hint]:
        """Return the hints to follow: of those that somebody else holds, a few that were not looked at before.

        A claim that waits looks at none of them, because it is woken when one is given back with work left.
        """
        if not all(hint.is_shared for hint in hints):
            return hints
        if self.command.wait_ms > 0:
            return ()
        fresh = [hint for hint in hints if (hint.rid, hint.partition) not in self.seen][:HINTS_AT_ONCE]
        self.seen.update((hint.rid, hint.partition) for hint in fresh)
        return fresh

    @property
    def room(self) -> int:
        """How many more bytes of input fit into the reply."""
        return REPLY_BYTES_MAX - sum(len(each.lease.input.data) for each in self.found)

    def leases(self) -> tuple[Lease, ...]:
        """Return the leases, best first."""
        self.found.sort(key=_order_of)
        return tuple(each.lease for each in self.found)


def _head_of(held: _Held) -> float:
    assert held.head is not None, "an index without entries is not looked at"
    return held.head


def _order_of(found: Found) -> tuple[int, str]:
    return found.order


def _shares(live: Sequence[_Held], count: int, limit: float) -> list[_Share] | None:
    """Decide what each index may give without knowing more than its head; None: more has to be known.

    `live` are in the order of their heads. What is better than the next index's head may go at once, and so may all
    that counts as equally old as the best.
    """
    best = _head_of(live[0])
    if len(live) == 1:
        return [_Share(live[0], count, limit)]
    if count == 1:
        return [_Share(live[0], 1, min(_head_of(live[1]) + SLACK_MS, limit))]
    equal = sum(1 for each in live if _head_of(each) <= best + SLACK_MS)
    bound = min(best + SLACK_MS, limit)
    if equal * TOGETHER >= count:
        # The fewer calls the better: what counts as equally old may all come from a few indexes.
        giving = min(-(-count // TOGETHER), equal)
        each_gets, more = divmod(count, giving)
        return [_Share(held, each_gets + (at < more), bound) for at, held in enumerate(live[:giving])]
    if equal < len(live):
        return None
    each_gets, more = divmod(count, equal)
    return [_Share(held, each_gets + (1 if at < more else 0), bound) for at, held in enumerate(live)]


def _found(
    execution_id: ExecutionId,
    packed: Packed,
    stored_definition: bytes,
    tags: bytes | None,
    payload: Payload,
    sequence: int,
) -> Found:
    definition = decode_definition(stored_definition, packed.created_at_ms)
    retry = definition.policy.retry_policy
    expires_at_ms, ttl_ms = packed.expires_at_ms or 0, packed.ttl_ms or 0
    if packed.lease_id is None or packed.attempt_id is None or packed.attempt_index is None:
        raise Corrupt("an execution that was leased has no lease")
    lease = Lease(
        execution_id=execution_id,
        namespace=definition.namespace,
        lane=definition.lane,
        route=definition.route,
        kind=definition.kind,
        priority=packed.priority,
        input=payload,
        tags=decode_tags(tags),
        policy=definition.policy,
        idempotency_key=definition.idempotency_key,
        traceparent=definition.traceparent,
        lease_id=packed.lease_id,
        lease_epoch=packed.lease_epoch,
        lease_ttl_ms=ttl_ms,
        lease_expires_at_ms=expires_at_ms,
        renewal_deadline_ms=expires_at_ms - ttl_ms // 3,
        attempt_id=packed.attempt_id,
        attempt_index=packed.attempt_index,
        attempt_type=packed.attempt_type or AttemptType.INITIAL,
        resumed=packed.attempt_epoch != packed.lease_epoch,
        attempt_timeout_at_ms=packed.timeout_at_ms,
        deadline_at_ms=packed.deadline_at_ms,
        retry_count=packed.retry_count,
        max_retries=retry.max_retries if retry is not None else 0,
        frame_sequence=sequence,
        created_at_ms=packed.created_at_ms,
    )
    return Found(packed.eligible_since_ms - packed.priority * 1_000_000_000_000, lease)
