"""Hints: where the best eligible work of each route is, and where something is due next, by partition.

`{w}:h:<rid>` holds the score of the best eligible execution of each partition that has any. A claimer takes hints
exclusively, claims there, and gives them back with the new heads; an operation that makes an execution the head of its
index offers its score before it answers, and rings for whoever waits. `{w}:due` holds each partition's earliest timer.
All of it is advice: what is eligible or due is decided in the partition. What must stay true: as long as an index has
entries its hint exists, or is held by a claimer that gives it back (after two seconds, whoever holds it); and every
timer has a hint that is not later, or is so far ahead that a sweep finds it about in time. What the store did not take
is offered again as long as this process lives; a crash in between loses a hint, which the sweep puts back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.bells import Topic, deliver
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.store import Store
from flowfabric.contract import limits
from flowfabric.contract.errors import Misuse, Unavailable

GIVE_BACK_AFTER_S: Final = 0.001
"""How long a hint that is done with waits for the next call that can carry it back."""
GIVE_BACK_EMPTY_AFTER_S: Final = 0.1
"""The same where nothing is left, so that nobody misses it: a worker that completes what it got looks again by then."""
GIVEN_PER_CALL_MAX: Final = 256
OFFERS_PER_CALL_MAX: Final = 500
CLOSE_WITHIN_S: Final = 1.0
DUE_KNOWN_MS: Final = 1_000
"""What is known about a partition's earliest timer counts while that is at least so far ahead."""
DUE_LATER_S: Final = 0.5
"""How long a timer that is far ahead, or later than the known one, waits to be told: it shares the call with others."""
DUE_FAR_MS: Final = limits.SAFETY_SWEEP_MS * 9 // 10
"""A timer is far ahead when a sweep finds it about in time, should this process die before it has told."""

AGAIN_AFTER_S: Final = 0.2
"""How long what could not be written waits for the next attempt."""


class Hint(msgspec.Struct):
    """A hint that was taken. `score` is what the index's head had, as the store wrote it."""

    rid: str
    partition: int
    score: bytes
    is_shared: bool
    """Somebody else holds it: there may be nothing left."""
    held_until: bytes = b""


class Taken(msgspec.Struct, frozen=True):
    """What a look at the hints found."""

    version: int | None
    """Of the catalog, where nothing was found."""
    bound: float | None
    """The score of the best hint that was left; None: there is no other."""
    hints: list[Hint]
    repeated: tuple[int, ...] | None = None
    """The claim was made before, in these partitions; no hint was taken."""


class _Given(msgspec.Struct, frozen=True):
    """A hint on its way back."""

    rid: str
    partition: int
    hold: bytes
    """The hint's score and until when it is held, as the store wrote them; empty when somebody else holds it."""
    head: int | None
    depth: int


class _Offer(msgspec.Struct):
    """A new head on its way to the hints, and for how many executions."""

    score: int
    count: int


class Hints:
    """The hints of one store, as one process uses them."""

    def __init__(self, store: Store) -> None:
        self._calls = store.calls
        self._bells = store.bells
        self._catalog = store.catalog
        self._spawn = store.spawn
        self._clock = store.clock
        self._given: list[_Given] = []
        self._give_back: asyncio.Handle | None = None
        self._give_back_at_s = 0.0
        self._offers: dict[tuple[str, int], _Offer] = {}
        self._offering: asyncio.Task[None] | None = None
        self._late_offers: dict[tuple[str, int], _Offer] = {}
        """What could not be written so far."""
        self._dues: dict[int, int] = {}
        self._due_offering: asyncio.Task[None] | None = None
        self._late_dues: dict[int, int] = {}
        self._later_dues: dict[int, int] = {}
        self._tell_later: asyncio.TimerHandle | None = None
        self._doubts: set[tuple[Partition, str | None]] = set()
        """Where a call may have changed something without saying so, and in which route."""
        self._is_late: bool = False
        """Somebody sees to what is late."""
        self._due_known: dict[int, int] = {}
        self._topics: Final[dict[str, Topic]] = {}
        self._rids: Final[dict[Topic, str]] = {}
        self._ahead_ms: float | None = None
        """The store's time minus this process's monotonic one, once it is known."""
        self._writes: Final[set[asyncio.Task[None]]] = set()

    # Taking and giving back ---------------------------------------------------------------------------------------

    async def take(
        self,
        rids: Sequence[str],
        most: int,
        *,
        waits: bool = False,
        woken: str | None = None,
        claim_id: str | None = None,
        is_again: bool = False,
        keep_ms: int = 0,
    ) -> Taken:
        """Take up to `most` of the best hints of some routes; what is to be given back goes along.

        With a `claim_id` the partitions are remembered for `keep_ms`; a claim that is known is answered as `repeated`
        unless it `is_again` the same call. `woken` is the route whose bell made the caller look. Who `waits` is not
        told of hints that others hold when there are no others, because it is woken when they are given back.
        """
        given, self._given = self._given[:GIVEN_PER_CALL_MAX], self._given[GIVEN_PER_CALL_MAX:]
        names: list[str] = list(rids)
        at = {rid: number for number, rid in enumerate(names, start=1)}
        values: list[str | bytes | int] = []
        for each in given:
            number = at.get(each.rid)
            if number is None:
                names.append(each.rid)
                number = at[each.rid] = len(names)
            values += (number, each.partition, each.hold, "" if each.head is None else each.head, each.depth)
        version, bound, *found = await self._calls.call(
            None,
            "hints_take",
            (keys.META, keys.HELD, *map(keys.hints, names)),
            wanted=len(rids),
            most=most,
            waits=waits,
            woken=(rids.index(woken) + 1 if woken in rids else 0) if woken is not None else 0,
            claim_id=claim_id,
            again=is_again,
            keep_ms=keep_ms,
            given=values,
        )
        if bound == b"repeated":
            partitions = {int(number) for number in found[0].split()}
            return Taken(version, None, [], tuple(sorted(partitions)))
        held_until = found[0] or b""
        hints = [
            Hint(
                names[int(found[at]) - 1], int(found[at + 1]), found[at + 2], bool(found[at + 3]), held_until
            )
            for at in range(1, len(found), 4)
        ]
        return Taken(version, float(bound) if bound is not None else None, hints)

    def give_back(self, hint: Hint, head: int | None, depth: int) -> None:
        """Give a hint back with the score of the index's head now (None: it is empty) and how much it has."""
        hold = b"" if hint.is_shared else b"%b %b" % (hint.score, hint.held_until)
        if hint.is_shared and head is None:
            return
        self._given.append(_Given(hint.rid, hint.partition, hold, head, depth))
        loop = asyncio.get_running_loop()
        at_s = loop.time() + (GIVE_BACK_EMPTY_AFTER_S if head is None else GIVE_BACK_AFTER_S)
        if self._give_back is None or at_s < self._give_back_at_s:
            if self._give_back is not None:
                self._give_back.cancel()
            self._give_back_at_s = at_s
            self._give_back = loop.call_at(at_s, self._give_back_now)

    def _give_back_now(self) -> None:
        self._give_back = None
        if self._given:
            self._write(self._return_all())

    async def _return_all(self) -> None:
        while self._given:
            await self.take((), 0)

    # Heads --------------------------------------------------------------------------------------------------------

    async def head(self, partition: Partition, rid: str, score: int) -> None:
        """Make known that an index has a new head, and wake whoever waits for such work.

        Returns when everybody can find it; those of one turn of the event loop share a call. The operation has
        happened by now, so a store that fails just then is no reason to say otherwise: it is made known later.
        """
        _add_offer(self._offers, (rid, partition.number), score, 1)
        if self._offering is None:
            self._offering = self._write(self._offer_all())
        offering = self._offering
        try:
            await asyncio.shield(offering)
        except asyncio.CancelledError:
            if not offering.cancelled():
                raise
            # The store is being closed and took too long to hear of it: the sweep will find it.

    async def _offer_all(self) -> None:
        await asyncio.sleep(0)
        offers, self._offers, self._offering = self._offers, {}, None
        await self._offer_these(offers)

    async def _offer_these(self, offers: dict[tuple[str, int], _Offer]) -> None:
        found = [(rid, number, offer.score, offer.count) for (rid, number), offer in offers.items()]
        for start in range(0, len(found), OFFERS_PER_CALL_MAX):
            try:
                await self.offer(found[start : start + OFFERS_PER_CALL_MAX])
            except Unavailable:
                for rid, number, score, count in found[start:]:
                    _add_offer(self._late_offers, (rid, number), score, count)
                self._offer_later()
                return

    async def offer(self, found: Sequence[tuple[str, int, int, int]]) -> None:
        """Write heads (route, partition, score, how many to wake) and wake; who waits in this process needs no bell."""
        at: dict[str, int] = {}
        idle: dict[str, int] = {}
        here: dict[str, int] = {}
        values: list[int] = []
        for rid, partition, score, count in found:
            if rid not in at:
                at[rid] = len(at) + 1
                topic = self.topic(rid)
                idle[rid] = self._bells.count_idle(topic) if topic is not None else 0
                here[rid] = 0
            served = min(idle[rid] - here[rid], count)
            here[rid] += served
            values += (at[rid], partition, score, count - served)
        await self._calls.call(None, "hints_offer", (keys.HELD, *map(keys.hints, at)), offers=values)
        for rid, count in here.items():
            topic = self.topic(rid)
            if count and topic is not None:
                deliver(self._bells.ring_work(topic, count))

    async def ring(self, rids: Sequence[str]) -> list[str]:
        """Wake those who wait for work of these routes, where there is some; return the routes that have it."""
        if not rids:
            return []
        found: list[int] = await self._calls.call(None, "hints_ring", (keys.HELD, *map(keys.hints, rids)))
        return [str(rids[number - 1]) for number in found]

    def topic(self, rid: str) -> Topic | None:
        """Return what a claim must match to be given work of a route."""
        known = self._topics.get(rid)
        if known is None:
            route = self._catalog.route(rid)
            if route is None:
                return None
            known = Topic(route.namespace, route.lane, route.kind, tuple(sorted(route.required)))
            self._topics[rid] = known
            self._rids[known] = rid
        return known

    def rid(self, topic: Topic) -> str | None:
        """Return the route of a topic that `topic` has returned before."""
        return self._rids.get(topic)

    async def resumed(self, lane: str) -> None:
        """Wake those who wait for work of a lane that gives it out again."""
        await self.ring([route.rid for route in self._catalog.routes_of(lane)])

    # Timers -------------------------------------------------------------------------------------------------------

    def due(self, partition: Partition, at_ms: int) -> None:
        """Make known, soon, that something is due in a partition at an instant."""
        number = partition.number
        known = self._due_known.get(number)
        is_known = known is not None and known <= at_ms and self._is_ahead(known, DUE_KNOWN_MS)
        if is_known or self._is_ahead(at_ms, DUE_FAR_MS):
            # There is time. But it has to be told: what is known may go away without this process hearing of it.
            _keep_earliest(self._later_dues, number, at_ms)
            if self._tell_later is None:
                self._tell_later = asyncio.get_running_loop().call_later(DUE_LATER_S, self._tell_now)
            return
        self._tell({number: at_ms})

    def _tell_now(self) -> None:
        self._tell_later = None
        later, self._later_dues = self._later_dues, {}
        self._tell(later)

    def _tell(self, dues: Mapping[int, int]) -> None:
        for number, at_ms in dues.items():
            _keep_earliest(self._dues, number, at_ms)
        if self._due_offering is None:
            self._due_offering = self._write(self._offer_dues())

    def _is_ahead(self, at_ms: int, by_ms: int) -> bool:
        """Say whether an instant is so far ahead, as far as this process knows the store's time."""
        if self._clock is not None or self._ahead_ms is None:
            return False
        return at_ms > time.monotonic() * 1_000 + self._ahead_ms + by_ms

    async def settled(self) -> None:
        """Wait until everything that this process makes known at once is written."""
        if self._writes:
            # Whoever stops waiting leaves the writes alone: others wait for them.
            await asyncio.wait(set(self._writes))

    async def _offer_dues(self) -> None:
        await asyncio.sleep(0)
        dues, self._dues, self._due_offering = self._dues, {}, None
        await self._offer_these_dues(dues)

    async def _offer_these_dues(self, dues: dict[int, int]) -> None:
        found = list(dues.items())
        for start in range(0, len(found), OFFERS_PER_CALL_MAX):
            try:
                await self.offer_dues(found[start : start + OFFERS_PER_CALL_MAX])
            except Unavailable:
                for number, at_ms in found[start:]:
                    _keep_earliest(self._late_dues, number, at_ms)
                self._offer_later()
                return

    async def offer_dues(self, dues: Sequence[tuple[int, int]]) -> None:
        """Make known that something is due in partitions at instants."""
        now_ms, *known = await self._calls.call(
            None, "hints_offer_due", (keys.DUE_HINTS,), offers=[value for due in dues for value in due]
        )
        self._ahead_ms = now_ms - time.monotonic() * 1_000
        for (partition, _), at_ms in zip(dues, known, strict=True):
            self._due_known[partition] = at_ms
        deliver(self._bells.ring_due(min(at_ms for _, at_ms in dues)))

    def doubt(self, partition: Partition, rid: str | None) -> None:
        """Find out, soon, what a call changed whose reply did not come: an execution at the head, a timer."""
        self._doubts.add((partition, rid))
        self._offer_later()

    # Private ------------------------------------------------------------------------------------------------------

    def _offer_later(self) -> None:
        """Have what is late written as soon as the store takes it; writing a hint twice does no harm."""
        if not self._is_late:
            self._is_late = True
            self._spawn(self._offer_late())

    async def _offer_late(self) -> None:
        try:
            while self._late_offers or self._late_dues or self._doubts:
                await asyncio.sleep(AGAIN_AFTER_S)
                doubts, self._doubts = self._doubts, set()
                await asyncio.gather(*(self._find_out(partition, rid) for partition, rid in doubts))
                offers, self._late_offers = self._late_offers, {}
                dues, self._late_dues = self._late_dues, {}
                await self._offer_these(offers)
                await self._offer_these_dues(dues)
        finally:
            self._is_late = False

    async def _find_out(self, partition: Partition, rid: str | None) -> None:
        """Read what the hints of a partition should be, to have that written with what is late."""
        indexes = [partition.due] if rid is None else [partition.due, partition.eligible(rid)]
        try:
            due, *eligible = await self._calls.read(
                partition, [("ZRANGE", index, "0", "0", "WITHSCORES") for index in indexes]
            )
        except Unavailable:
            self._doubts.add((partition, rid))
            return
        for _, at_ms in due:
            _keep_earliest(self._late_dues, partition.number, int(at_ms))
        for entries in eligible:
            for _, score in entries:
                assert rid is not None, "no route was asked for"
                _add_offer(self._late_offers, (rid, partition.number), int(score), 1)

    def _write(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(self._quietly(work))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return task

    async def _quietly(self, work: Any) -> None:
        """Write a hint; what cannot be written now, or not any more since the store was closed, is for the sweep."""
        with contextlib.suppress(Unavailable, Misuse):
            await work

    async def close(self) -> None:
        """Give back what is held and write what is waiting, as far as the store answers soon."""
        if self._give_back is not None:
            self._give_back.cancel()
            self._give_back_now()
        if self._tell_later is not None:
            self._tell_later.cancel()
            self._tell_now()
        if self._writes:
            _, late = await asyncio.wait(set(self._writes), timeout=CLOSE_WITHIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _keep_earliest(dues: dict[int, int], number: int, at_ms: int) -> None:
    known = dues.get(number)
    if known is None or at_ms < known:
        dues[number] = at_ms


def _add_offer(offers: dict[tuple[str, int], _Offer], key: tuple[str, int], score: int, count: int) -> None:
    known = offers.get(key)
    if known is None:
        offers[key] = _Offer(score, count)
    else:
        known.score = min(known.score, score)
        known.count += count
