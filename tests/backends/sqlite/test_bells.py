"""Who is woken by what, without a store: the bells of one process, which other backends have no use for."""

from __future__ import annotations

import asyncio

from flowfabric.backends.bells import Bells, Topic, deliver
from flowfabric.backends.sqlite import news
from tests.backends.sqlite.store import claiming, settled

WORK = Topic("default", "default", "k", ())


async def test_one_token_wakes_one_claim_in_order() -> None:
    """Each token goes to the claim that has slept longest and has none."""
    bells = Bells()
    waiters = [bells.add_claim(claiming(f"w{n}")) for n in range(3)]
    for waiter in waiters:
        waiter.idle = True
    assert [wake[1] for wake in bells.ring_work(WORK)] == [waiters[0].wake]
    assert [wake[1] for wake in bells.ring_work(WORK, 5)] == [waiters[1].wake, waiters[2].wake]
    assert bells.ring_work(WORK) == []


async def test_a_token_is_passed_on() -> None:
    """A claim that ends without having looked for its token gives it to the next; one that looked does not."""
    bells = Bells()
    first, second, third = (bells.add_claim(claiming(f"w{n}")) for n in range(3))
    for waiter in (first, second, third):
        waiter.idle = True
    bells.ring_work(WORK)
    assert [wake[1] for wake in bells.remove_claim(first, served=True)] == [second.wake]
    bells.look(second)
    assert [wake[1] for wake in bells.remove_claim(second, served=False)] == [third.wake]
    bells.look(third)
    assert bells.remove_claim(third, served=True) == []
    assert bells.claims_waiting == 0


async def test_tokens_for_nobody_are_reported() -> None:
    """Whoever wants to know is told of tokens that no claim here could take, also of one left by a claim that ends."""
    bells = Bells()
    told: list[tuple[Topic, int]] = []
    bells.on_unclaimed = lambda topic, count: told.append((topic, count))
    assert bells.ring_work(WORK) == [] and told == [(WORK, 1)]
    first, second = (bells.add_claim(claiming(f"w{n}")) for n in range(2))
    first.idle = second.idle = True
    assert bells.count_idle(WORK) == 2
    assert len(bells.ring_work(WORK, 5)) == 2 and told[1:] == [(WORK, 3)]
    assert bells.count_idle(WORK) == 0
    assert bells.remove_claim(first, served=True) == [] and told[2:] == [(WORK, 1)]
    bells.look(second)
    assert bells.remove_claim(second, served=True) == [] and len(told) == 3


async def test_who_looks_while_it_rings_looks_again() -> None:
    """Work that appears while a claim looks keeps it from falling asleep."""
    bells = Bells()
    waiter = bells.add_claim(claiming())
    bells.look(waiter)
    assert bells.ring_work(WORK) == []
    async with asyncio.timeout(1.0):
        await bells.sleep(waiter, 30.0)
    bells.look(waiter)
    assert bells.remove_claim(waiter, served=True) == []


async def test_timers_wake_for_what_is_earlier() -> None:
    """A timer wakes for an instant before the one it sleeps until, and not for a later one."""
    bells = Bells()
    late, early = bells.add_timer(1_000), bells.add_timer(100)
    assert [wake[1] for wake in bells.ring_due(500)] == [late.wake]
    assert bells.ring_due(2_000) == []
    assert bells.earliest_due_ms == 500
    bells.remove_timer(late)
    assert [wake[1] for wake in bells.ring_due(50)] == [early.wake]


async def test_a_wake_is_not_lost_between_looks() -> None:
    """Being rung before falling asleep is remembered until the next rest."""
    bells = Bells()
    waiter = bells.add_watcher("x")
    deliver(bells.ring_executions(["x", "y"]))
    await settled()
    assert await waiter.wait(30.0)
    waiter.rest()
    assert not await waiter.wait(0.001)
    bells.remove_watcher("x", waiter)
    assert bells.ring_executions(["x"]) == []


def test_news_travels() -> None:
    """A datagram says what the group said; too much of it, or anything unreadable, means everything."""
    said = news.News()
    said.claimable(WORK)
    said.claimable(WORK)
    said.due(7)
    said.lanes.add("default")
    said.changed.add("x")
    heard = news.decode(said.encode())
    assert heard is not None
    assert (heard.work, heard.lanes, heard.changed, heard.due_at_ms) == ({WORK: 2}, {"default"}, {"x"}, 7)
    said.changed.update(str(number) for number in range(100))
    assert said.encode() == news.EVERYTHING
    assert news.decode(news.EVERYTHING) is None
    assert news.decode(b"\xc1garbage") is None
