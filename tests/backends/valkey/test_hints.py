"""Hints: how claimers share out partitions, and that no work is ever without a hint for long."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.hints import Hint, Hints, Taken
from flowfabric.backends.valkey.store import Store
from flowfabric.contract.errors import InvalidInput
from tests.backends.valkey.conftest import Opens
from tests.backends.valkey.wire.servers import Server

A, B, C = "a" * 20, "b" * 20, "c" * 20
CLAIM: Final = "11111111-1111-4111-8111-111111111111"
HOLD_MS: Final = 2_000


@pytest.fixture
async def store(place: str, opens: Opens, clock: ManualClock) -> Store:
    """An empty store whose clock stands still."""
    return await opens(place, clock=clock)


@pytest.fixture
def hints(store: Store) -> Hints:
    """The hints of the store, as one process uses them."""
    return Hints(store)


async def offer(hints: Hints, rid: str, scores: dict[int, int]) -> None:
    """Offer heads, each with a token."""
    await hints.offer([(rid, partition, score, 1) for partition, score in scores.items()])


def places(taken: Taken) -> list[tuple[str, int, float]]:
    """Return what was taken."""
    return [(hint.rid, hint.partition, float(hint.score)) for hint in taken.hints]


async def tokens(store: Store, rid: str) -> int:
    """Count the tokens of a bell."""
    (count,) = await store.calls.read(None, [("LLEN", keys.bell(rid))])
    return count


async def ring_out(store: Store, rid: str) -> None:
    """Take all tokens away, as those who wait would."""
    await store.calls.read(None, [("DEL", keys.bell(rid))])


async def test_the_best_of_several_routes_come_first(hints: Hints) -> None:
    """Hints come best first over all routes asked for, with the score of the best that is left."""
    await offer(hints, A, {1: 50, 2: 10, 3: 30})
    await offer(hints, B, {1: 20, 2: 40, 300: -7_000_000_000_000_000})
    await offer(hints, C, {9: 1})
    taken = await hints.take((A, B), 3)
    assert places(taken) == [(B, 300, -7e15), (A, 2, 10), (B, 1, 20)]
    assert taken.bound == 30
    rest = await hints.take((A, B), 10)
    # What somebody else holds comes along when it is better by more than a little age.
    assert places(rest) == [(A, 3, 30), (B, 2, 40), (A, 1, 50), (B, 300, -7e15)]
    assert [hint.is_shared for hint in rest.hints] == [False, False, False, True]
    assert rest.bound is None


async def test_one_route_alone(hints: Hints) -> None:
    """The same holds for a single route, where the bound is its next hint."""
    await offer(hints, A, {1: 50, 2: 10, 3: 30})
    taken = await hints.take((A,), 1)
    assert (places(taken), taken.bound) == ([(A, 2, 10)], 30)


async def test_nobody_else_gets_a_hint_that_is_taken(hints: Hints) -> None:
    """A second claimer gets the next best; when nothing else is left it may go where the first one is."""
    await offer(hints, A, {1: 10, 2: 20})
    (first,) = (await hints.take((A,), 1)).hints
    (second,) = (await hints.take((A,), 1)).hints
    assert (first.partition, second.partition) == (1, 2)
    third = await hints.take((A,), 1)
    assert places(third) == [(A, 1, 10)]
    assert third.hints[0].is_shared and not first.is_shared and third.bound is None
    hints.give_back(third.hints[0], None, 0)
    hints.give_back(first, None, 0)
    hints.give_back(second, None, 0)
    assert (await hints.take((A,), 1)).hints == []


async def test_who_waits_is_not_told_what_others_hold(hints: Hints) -> None:
    """A claimer that waits hears of what others hold only where that is better than what it gets."""
    await offer(hints, A, {1: 10, 2: 20, 3: 1_000})
    await hints.take((A,), 2, waits=True)
    both = await hints.take((A,), 1, waits=True)
    assert places(both) == [(A, 3, 1_000), (A, 1, 10), (A, 2, 20)]
    assert (await hints.take((A,), 1, waits=True)).hints == []
    assert len((await hints.take((A,), 3)).hints) == 3


async def test_holds_run_out_each_in_its_time(hints: Hints, clock: ManualClock) -> None:
    """However many are held, each runs out two seconds after it was taken, also for who serves its route later."""
    for number in range(4):
        await offer(hints, A if number % 2 else B, {number: 10 + number})
        await hints.take((A, B), 1)
        clock.advance(HOLD_MS // 4)
    found: list[tuple[str, int, float]] = []
    for _ in range(4):
        taken = await hints.take((A,), 9)
        found += places(Taken(None, None, [hint for hint in taken.hints if not hint.is_shared]))
        clock.advance(HOLD_MS // 4)
    assert found == [(A, 1, 11), (A, 3, 13)]
    late = await hints.take((B,), 9)
    assert places(late) == [(B, 0, 10), (B, 2, 12)]
    assert not any(hint.is_shared for hint in late.hints)
    clock.advance(-3 * HOLD_MS)
    assert all(hint.is_shared for hint in (await hints.take((A, B), 9)).hints)


async def test_what_is_given_back_can_be_taken_again(hints: Hints) -> None:
    """A hint goes back with the new head of its index, or not at all when that is empty."""
    await offer(hints, A, {1: 10, 2: 20})
    one, two = (await hints.take((A,), 2)).hints
    hints.give_back(one, 25, 1)
    hints.give_back(two, None, 0)
    assert places(await hints.take((A,), 2)) == [(A, 1, 25)]


async def test_a_hint_goes_back_by_itself(store: Store, hints: Hints) -> None:
    """Without another look a hint is given back within milliseconds, and rings."""
    await offer(hints, A, {1: 10})
    (hint,) = (await hints.take((A,), 1)).hints
    assert await tokens(store, A) == 0
    hints.give_back(hint, 11, 3)
    async with asyncio.timeout(5):
        while await tokens(store, A) == 0:  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.001)
    assert await tokens(store, A) == 3
    assert places(await hints.take((A,), 1)) == [(A, 1, 11)]


async def test_a_better_head_that_came_meanwhile_stays(hints: Hints) -> None:
    """An offer while the hint is taken is not overwritten by what the claimer gives back."""
    await offer(hints, A, {1: 10})
    (hint,) = (await hints.take((A,), 1)).hints
    await offer(hints, A, {1: 5})
    hints.give_back(hint, 30, 1)
    assert places(await hints.take((A,), 1)) == [(A, 1, 5)]


async def test_a_claimer_that_is_gone_holds_a_hint_for_two_seconds(hints: Hints, clock: ManualClock) -> None:
    """A hint that is not given back is found by others after two seconds, as it was."""
    await offer(hints, A, {1: 10, 2: 20})
    await hints.take((A,), 2)
    clock.advance(HOLD_MS - 1)
    assert [hint.is_shared for hint in (await hints.take((A,), 2)).hints] == [True, True]
    clock.advance(1)
    again = await hints.take((A,), 2)
    assert places(again) == [(A, 1, 10), (A, 2, 20)]
    assert not any(hint.is_shared for hint in again.hints)


async def test_others_holds_are_left_alone(hints: Hints, clock: ManualClock) -> None:
    """A hold of another route that ran out is for those who serve that route."""
    await offer(hints, A, {1: 10})
    await hints.take((A,), 1)
    clock.advance(HOLD_MS)
    assert (await hints.take((B,), 1)).hints == []
    assert places(await hints.take((B, A), 1)) == [(A, 1, 10)]


async def test_closing_takes_nobody_along(single: Server, opens: Opens) -> None:
    """Who has created something is not given up when the store is closed and takes too long to hear of it."""
    store = await opens(single.url)
    hints = Hints(store)
    await offer(hints, A, {1: 10})
    single.pause()
    try:
        telling = asyncio.create_task(hints.head(store.partitions.all[1], A, 5))
        await asyncio.sleep(0)
        await hints.close()
        await telling
    finally:
        single.resume()


async def test_offers_keep_the_better_score(hints: Hints) -> None:
    """Of several offers for one partition the best stays."""
    await offer(hints, A, {1: 10})
    await offer(hints, A, {1: 20})
    assert places(await hints.take((A,), 1)) == [(A, 1, 10)]


# Bells ------------------------------------------------------------------------------------------------------------


async def test_every_offer_brings_a_token(store: Store, hints: Hints) -> None:
    """Each head offered puts a token on its route's bell, up to a bound."""
    await offer(hints, A, {number: number for number in range(3)})
    await offer(hints, A, {1: 0})
    await offer(hints, B, {1: 1})
    assert (await tokens(store, A), await tokens(store, B)) == (4, 1)
    for _ in range(5):
        await offer(hints, A, {number: number for number in range(300)})
    assert await tokens(store, A) == 1_024


async def test_a_bell_without_work_is_silent(store: Store, hints: Hints) -> None:
    """Whoever takes the last hint of a route takes its tokens away, too; before, they stay."""
    await offer(hints, A, {1: 10, 2: 20})
    await offer(hints, B, {1: 15})
    await hints.take((A, B), 1)
    assert (await tokens(store, A), await tokens(store, B)) == (2, 1)
    await hints.take((A, B), 2)
    assert (await tokens(store, A), await tokens(store, B)) == (0, 0)


async def test_giving_work_back_rings(store: Store, hints: Hints) -> None:
    """A hint that comes back wakes somebody, more of them when its partition has more work; an empty one nobody."""
    await offer(hints, A, {1: 10, 2: 20, 3: 30})
    one, two, three = (await hints.take((A,), 3)).hints
    hints.give_back(one, None, 0)
    await hints.take((B,), 1)
    assert await tokens(store, A) == 0
    hints.give_back(two, 21, 5)
    await hints.take((B,), 1)
    assert await tokens(store, A) == 5
    hints.give_back(three, 31, 500)
    await hints.take((B,), 1)
    assert await tokens(store, A) == 16


async def test_who_takes_from_another_route_passes_the_token_on(store: Store, hints: Hints) -> None:
    """A claimer woken for one route that finds better work in another leaves a token for the first."""
    await offer(hints, A, {1: 10})
    await offer(hints, B, {1: 5})
    await ring_out(store, A)
    assert places(await hints.take((A, B), 1, woken=A)) == [(B, 1, 5)]
    assert await tokens(store, A) == 1
    await ring_out(store, A)
    assert places(await hints.take((A, B), 1, woken=A)) == [(A, 1, 10)]
    assert await tokens(store, A) == 0


async def test_a_look_rings_for_what_is_there(store: Store, hints: Hints, clock: ManualClock) -> None:
    """Looking at routes names those with work, gives back lost holds, and makes up for lost tokens."""
    await offer(hints, A, {1: 10, 2: 20})
    await offer(hints, B, {1: 10})
    await hints.take((B,), 1)
    await ring_out(store, A)
    assert await hints.ring((A, B, C)) == [A]
    assert (await tokens(store, A), await tokens(store, B)) == (2, 0)
    clock.advance(HOLD_MS)
    assert await hints.ring((A, B, C)) == [A, B]
    assert (await tokens(store, A), await tokens(store, B)) == (2, 1)


# Claims -----------------------------------------------------------------------------------------------------------


async def test_a_claim_is_remembered_with_its_partitions(store: Store, hints: Hints) -> None:
    """A claim id that took hints before is answered with the partitions, of all looks of that claim."""
    await offer(hints, A, {1: 10, 2: 20, 3: 30})
    await hints.take((A,), 1, claim_id=CLAIM, keep_ms=60_000)
    await hints.take((A,), 1, claim_id=CLAIM, is_again=True, keep_ms=60_000)
    known = await hints.take((A,), 1, claim_id=CLAIM, keep_ms=60_000)
    assert (known.hints, known.repeated) == ([], (1, 2))
    assert (await hints.take((), 0, claim_id=CLAIM, keep_ms=60_000)).repeated == (1, 2)
    (left_ms,) = await store.calls.read(None, [("PTTL", keys.claim(CLAIM))])
    assert 50_000 < left_ms <= 60_000
    assert places(await hints.take((A,), 5)) == [(A, 3, 30)]


async def test_a_claim_that_found_nothing_is_not_remembered(hints: Hints) -> None:
    """Only a claim that took hints is known."""
    assert (await hints.take((A,), 1, claim_id=CLAIM, keep_ms=60_000)).repeated is None
    await offer(hints, A, {1: 10})
    assert places(await hints.take((A,), 1, claim_id=CLAIM, keep_ms=60_000)) == [(A, 1, 10)]


@pytest.mark.parametrize(
    "fields",
    [
        {"given": [1]},
        {"given": [2, 1, "1", "", 0]},
        {"given": [0, 1, "1", "", 0]},
        {"given": [1, "x", "1", "", 0]},
        {"given": [1, 1, "nan", "", 0]},
        {"given": [1, 1, "1", "1e400", 0]},
        {"given": [1, 1, "1", "5", "-1"]},
        {"wanted": 2},
        {"woken": 2},
        {"most": 257},
    ],
    ids=str,
)
async def test_malformed_calls_write_nothing(store: Store, hints: Hints, fields: dict[str, Any]) -> None:
    """A call that is not well formed is refused and takes nothing."""
    await offer(hints, A, {1: 10})
    given = {"wanted": 1, "most": 1, "waits": False, "woken": 0}
    given |= {"claim_id": CLAIM, "again": False, "keep_ms": 1, "given": []}
    with pytest.raises(InvalidInput):
        await store.calls.call(
            None, "hints_take", (keys.META, keys.HELD, keys.hints(A)), **{**given, **fields}
        )
    taken = await hints.take((A,), 1, claim_id=CLAIM, keep_ms=1)
    assert places(taken) == [(A, 1, 10)] and taken.repeated is None


# Nothing is lost --------------------------------------------------------------------------------------------------


class Indexes:
    """Eligible indexes by partition, and claimers and creators that follow the rules of hints, or die."""

    def __init__(self, hints: Hints, chance: random.Random) -> None:
        self.hints: Final = hints
        self.chance: Final = chance
        self.entries: Final[dict[int, list[int]]] = {number: [] for number in range(8)}
        self.created = 0
        self.got: Final[list[int]] = []

    async def create(self) -> None:
        """Add an entry, and offer it if it is the new head."""
        self.created += 1
        index = self.entries[self.chance.randrange(8)]
        score = self.chance.randrange(1_000) * 10_000 + self.created
        index.append(score)
        index.sort()
        number = next(key for key, value in self.entries.items() if value is index)
        await asyncio.sleep(0)
        if index and index[0] == score:
            await offer(self.hints, A, {number: score})

    async def claim(self, *, dies: bool = False) -> int:
        """Take some hints, claim one entry each, and give the hints back; or die at some point."""
        taken = await self.hints.take((A,), self.chance.randrange(1, 4))
        for hint in taken.hints:
            if dies and self.chance.random() < 0.5:
                continue
            await self._claim_at(hint, dies=dies)
        return len(taken.hints)

    async def _claim_at(self, hint: Hint, *, dies: bool) -> None:
        await asyncio.sleep(0)
        index = self.entries[hint.partition]
        if index:
            self.got.append(index.pop(0))
        head, depth = (index[0] if index else None), len(index)
        await asyncio.sleep(0)
        if not dies:
            self.hints.give_back(hint, head, depth)


@pytest.mark.parametrize("seed", range(5))
async def test_no_work_is_left_without_a_hint(hints: Hints, clock: ManualClock, seed: int) -> None:
    """However creates, claims and deaths of claimers interleave, in the end every entry was found by hints."""
    indexes = Indexes(hints, random.Random(seed))
    for _ in range(40):
        dies = indexes.chance.random() < 0.2
        await asyncio.gather(
            *(indexes.create() for _ in range(indexes.chance.randrange(4))),
            *(indexes.claim() for _ in range(indexes.chance.randrange(3))),
            *([indexes.claim(dies=True)] if dies else []),
        )
    clock.advance(HOLD_MS)
    while await indexes.claim():
        pass
    assert indexes.entries == {number: [] for number in range(8)}
    assert len(indexes.got) == len(set(indexes.got)) == indexes.created
