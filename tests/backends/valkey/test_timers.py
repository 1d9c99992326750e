"""The due-time hints of Valkey: several engines share the work, hear of each other's timers, and lose none."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import hiredis
import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.backend import ValkeyBackend
from flowfabric.contract.backend import DueKind
from flowfabric.contract.execution import ExecutionCancel, ExecutionPromote
from flowfabric.contract.ids import Lane, WorkerId, WorkerInstance
from flowfabric.contract.states import CancelSource
from flowfabric.contract.worker import WorkerRegister
from flowfabric.engine.timers import run_due, timer_loop
from tests.backends.valkey.wire.servers import Cluster, Server
from tests.backends.valkey.work import forget_hints, in_partition, opened, settled, store_of
from tests.backends.working import PATIENCE_S, claim, create, gone, served, until, waiting

LONG_S = 30.0
HOLD_MS = 2_000


def sleeping(backend: ValkeyBackend, until_ms: int | None) -> asyncio.Task[None]:
    """Start to wait for timers."""
    return asyncio.create_task(backend.timers.wait_change(until_ms, LONG_S))


async def promote(backend: ValkeyBackend, due: Any) -> None:
    """Serve a delay that is over."""
    await backend.execution.promote(ExecutionPromote(execution_id=due.execution_id))


async def test_something_earlier_wakes_every_process(place: str, clock: ManualClock) -> None:
    """A wait in another process ends when something is due before what it waits for, and not for something later."""
    async with opened(place, 2, clock=clock) as (one, other):
        now = clock.now_ms()
        await create(one, delay_until_ms=now + 10_000)
        await settled(one)
        assert (await other.timers.read_due(1)).next_due_at_ms == now + 10_000
        wait = sleeping(other, now + 10_000)
        await until(lambda: store_of(other).bells.waiting == 1)
        await create(one, delay_until_ms=now + 20_000)
        await settled(one)
        await asyncio.sleep(0.02)  # sleeps: so that a wrong wake-up would show
        assert not wait.done()
        await create(one, delay_until_ms=now + 5_000)
        async with asyncio.timeout(PATIENCE_S):
            await wait
        assert (await other.timers.read_due(1)).next_due_at_ms == now + 5_000


async def test_what_came_in_between_is_not_missed(place: str, clock: ManualClock) -> None:
    """A wait that begins after something earlier became due ends at once."""
    async with opened(place, clock=clock) as (store,):
        batch = await store.timers.read_due(1)
        await create(store, delay_until_ms=clock.now_ms() + 5_000)
        async with asyncio.timeout(PATIENCE_S):
            await store.timers.wait_change(batch.next_due_at_ms, LONG_S)
        assert (await store.timers.read_due(1)).next_due_at_ms == clock.now_ms() + 5_000


async def test_moving_the_clock_wakes(place: str, clock: ManualClock) -> None:
    """A wait ends when the clock is moved to its instant, and what is due is what was waited for."""
    async with opened(place, clock=clock) as (store,):
        execution_id = await create(store, delay_until_ms=clock.now_ms() + 5_000)
        batch = await store.timers.read_due(10)
        assert batch.due == ()
        wait = sleeping(store, batch.next_due_at_ms)
        await until(lambda: store_of(store).bells.waiting == 1)
        clock.advance(5_000)
        async with asyncio.timeout(PATIENCE_S):
            await wait
        (due,) = (await store.timers.read_due(10)).due
        assert (due.kind, due.execution_id) == (DueKind.DELAYED, execution_id)
        await promote(store, due)
        assert len(await claim(store)) == 1


async def test_the_servers_clock_ends_a_wait(single: Server) -> None:
    """On the servers' clock a wait ends when its instant comes."""
    async with opened(single.url) as (store,):
        now = await store.now_ms()
        execution_id = await create(store, delay_until_ms=now + 80)
        batch = await store.timers.read_due(10)
        assert (batch.due, batch.next_due_at_ms) == ((), now + 80)
        async with asyncio.timeout(PATIENCE_S):
            await store.timers.wait_change(batch.next_due_at_ms, LONG_S)
            while not (due := (await store.timers.read_due(10)).due):
                pass
        assert due[0].execution_id == execution_id
        assert await store.now_ms() >= now + 80


async def test_engines_share_what_is_due(place: str, clock: ManualClock) -> None:
    """What one engine has taken another is not given, until the first has served it; together they serve all."""
    async with opened(place, 2, clock=clock) as (one, other):
        now = clock.now_ms()
        for number in range(8):
            await create(one, execution_id=in_partition(number), delay_until_ms=now + 100 + number)
        clock.advance(1_000)
        first = await one.timers.read_due(100)
        assert [due.due_at_ms for due in first.due] == [now + 100 + number for number in range(8)]
        second = await other.timers.read_due(100)
        assert second.due == ()
        assert second.next_due_at_ms == clock.now_ms() + HOLD_MS
        for due in first.due:
            await promote(one, due)
        assert (await one.timers.read_due(100)).due == ()
        assert len(await claim(other, max_tasks=10)) == 8


async def test_an_engine_that_dies_is_made_up_for(place: str, clock: ManualClock) -> None:
    """What an engine has taken and not served is given to another after two seconds."""
    async with opened(place, 2, clock=clock) as (one, other):
        await create(one, delay_until_ms=clock.now_ms() + 100)
        clock.advance(1_000)
        assert len((await one.timers.read_due(100)).due) == 1
        clock.advance(HOLD_MS - 1)
        assert (await other.timers.read_due(100)).due == ()
        clock.advance(1)
        (due,) = (await other.timers.read_due(100)).due
        assert due.kind is DueKind.DELAYED


async def test_an_engine_that_closes_leaves_its_work(place: str, clock: ManualClock) -> None:
    """What an engine has taken and not served when it is closed can be taken at once."""
    async with opened(place, clock=clock) as (other,):
        async with opened(place, clock=clock) as (one,):
            await create(one, delay_until_ms=clock.now_ms() + 100)
            clock.advance(1_000)
            assert len((await one.timers.read_due(100)).due) == 1
        assert len((await other.timers.read_due(100)).due) == 1


async def test_what_stays_due_stays_taken(place: str, clock: ManualClock) -> None:
    """Entries that are not served are read again each time, by the one who has them."""
    async with opened(place, 2, clock=clock) as (one, other):
        await create(one, delay_until_ms=clock.now_ms() + 100)
        clock.advance(1_000)
        for _ in range(4):
            assert len((await one.timers.read_due(100)).due) == 1
            assert (await other.timers.read_due(100)).due == ()
            clock.advance(HOLD_MS - 1)


async def test_the_limit_holds_and_nothing_is_skipped(place: str, clock: ManualClock) -> None:
    """With a small limit what is due comes in steps until all of it was served."""
    async with opened(place, clock=clock) as (store,):
        now = clock.now_ms()
        for number in range(12):
            await create(store, execution_id=in_partition(number % 3), delay_until_ms=now + 100 + number)
        clock.advance(1_000)
        served = 0
        while due := (await store.timers.read_due(5)).due:
            assert len(due) <= 5
            for each in due:
                await promote(store, each)
                served += 1
        assert served == 12


async def test_workers_are_due_too(place: str, clock: ManualClock) -> None:
    """A heartbeat that lapses is due at its instant, and wakes a wait that ends later."""
    async with opened(place, 2, clock=clock) as (one, other):
        wait = sleeping(other, clock.now_ms() + 100_000)
        await until(lambda: store_of(other).bells.waiting == 1)
        await one.worker.register(
            WorkerRegister(
                worker_id=WorkerId("w"),
                worker_instance=WorkerInstance("w-1"),
                lanes=(Lane("default"),),
                liveness_ttl_ms=1_000,
            )
        )
        async with asyncio.timeout(PATIENCE_S):
            await wait
        batch = await other.timers.read_due(10)
        assert (batch.due, batch.next_due_at_ms) == ((), clock.now_ms() + 1_000)
        clock.advance(1_000)
        (due,) = (await other.timers.read_due(10)).due
        assert (due.kind, due.worker_instance, due.namespace) == (DueKind.WORKER_LIVENESS, "w-1", "default")


async def test_an_early_timer_that_went_away_hides_no_later_one(single: Server) -> None:
    """What a process knows of a partition's timers does not keep it from telling of one after these were served."""
    async with opened(single.url, 2) as (one, other):
        engine = asyncio.create_task(timer_loop(one))
        now = await one.now_ms()
        early = await create(one, execution_id=in_partition(3), delay_until_ms=now + 1_100)
        await settled(one)
        await create(other, execution_id=in_partition(3), delay_until_ms=now + 60_000)
        await settled(other)
        await one.execution.cancel(
            ExecutionCancel(execution_id=early, source=CancelSource.OPERATOR_OVERRIDE, reason="test")
        )

        def hint_ms() -> float:
            return float(single.call("ZSCORE", keys.DUE_HINTS, "3") or 0)

        assert hint_ms() == now + 1_100
        await until(lambda: hint_ms() == now + 60_000)
        waits = waiting(one)
        late = await create(other, execution_id=in_partition(3), delay_until_ms=await one.now_ms() + 100)
        assert [lease.execution_id for lease in await served(waits)] == [late]
        await gone(engine)


async def test_a_known_timer_that_went_away_hides_no_later_one(single: Server) -> None:
    """A timer is told also when an earlier one of its partition is known, which may have gone away unheard."""
    async with opened(single.url, 2) as (one, other):
        now = await one.now_ms()
        early = await create(one, execution_id=in_partition(3), delay_until_ms=now + 20_000)
        await settled(one)
        await one.execution.cancel(
            ExecutionCancel(execution_id=early, source=CancelSource.OPERATOR_OVERRIDE, reason="test")
        )
        await create(other, execution_id=in_partition(3), delay_until_ms=now + 100)
        await settled(other)
        while not await run_due(other):  # noqa: ASYNC110 (the servers' clock has no event)
            await asyncio.sleep(0.01)  # sleeps: until the servers' clock is there

        def hint_ms() -> float:
            return float(single.call("ZSCORE", keys.DUE_HINTS, "3") or 0)

        assert hint_ms() > now + 60_000
        await create(one, execution_id=in_partition(3), delay_until_ms=now + 25_000)
        await until(lambda: hint_ms() == now + 25_000)


async def test_closing_tells_what_was_to_be_told_later(single: Server) -> None:
    """What waits to be told of timers is told before the store is closed."""
    async with opened(single.url) as (store,):
        now = await store.now_ms()
        await create(store, execution_id=in_partition(3), delay_until_ms=now + 20_000)
        await settled(store)
        await create(store, execution_id=in_partition(3), delay_until_ms=now + 25_000)
        single.call("DEL", keys.DUE_HINTS)
    assert float(single.call("ZSCORE", keys.DUE_HINTS, "3") or 0) == now + 25_000


async def test_who_stops_reading_takes_nobody_along(single: Server) -> None:
    """An engine that is stopped while it waits for timers to be told leaves the calls alone that tell them."""
    async with opened(single.url) as (store,):
        await create(store)
        head = store._hints.head(
            store_of(store).partitions.all[3], keys.route_id("default", "default", "k|"), 5
        )
        telling = asyncio.create_task(head)
        await asyncio.sleep(0)
        reading = asyncio.create_task(store.timers.read_due(5))
        await asyncio.sleep(0)
        await gone(reading)
        await telling
        assert reading.cancelled() and not telling.cancelled()


async def test_many_timers_take_few_calls(single: Server) -> None:
    """A timer far ahead, or later than what is known of its partition, costs no call of its own, and is told."""

    def offers() -> int:
        found = [
            line for line in single.call("INFO", "commandstats").decode().splitlines() if "_zmscore:" in line
        ]
        return int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0

    async with opened(single.url) as (store,):
        now = await store.now_ms()
        await create(store, execution_id=in_partition(1), delay_until_ms=now + 60_000)
        await settled(store)
        before = offers()
        for later_ms in range(50):
            await create(store, execution_id=in_partition(1), delay_until_ms=now + 60_000 + later_ms)
        await settled(store)
        assert offers() == before
        for number in range(2, 5):
            await create(store, execution_id=in_partition(number), delay_until_ms=now + 50_000)
        await settled(store)
        assert offers() == before
        await create(store, execution_id=in_partition(1), delay_until_ms=now + 20_000)
        await settled(store)
        assert offers() == before + 1
        await until(lambda: offers() == before + 2)
        assert [int(single.call("ZSCORE", keys.DUE_HINTS, name)) for name in "1234"] == [
            now + 20_000,
            *[now + 50_000] * 3,
        ]


# Lost hints -------------------------------------------------------------------------------------------------------


async def test_lost_hints_are_put_back(
    place: str, request: pytest.FixtureRequest, clock: ManualClock
) -> None:
    """A sweep finds work and timers whose hints are gone, wakes who waits, and finds nothing to do the next time."""
    server: Server | Cluster = request.getfixturevalue("cluster" if "cluster" in place else "single")
    nodes = server.nodes if isinstance(server, Cluster) else [server]
    async with opened(place, 2, clock=clock) as (one, other):
        for number in range(6):
            await create(one, execution_id=in_partition(number))
            await create(one, execution_id=in_partition(number), delay_until_ms=clock.now_ms() + 1_000)
        await settled(one)
        forget_hints(*nodes)
        assert await claim(other) == ()
        assert (await other.timers.read_due(10)).next_due_at_ms is None
        task = asyncio.create_task(claim(other, "waits", wait_ms=20_000, max_tasks=2))
        await until(lambda: store_of(other).bells.claims_sleeping == 1)
        assert await one.timers.sweep() == 0
        async with asyncio.timeout(PATIENCE_S):
            assert len(await task) == 2
        assert len(await claim(other, max_tasks=10)) == 4
        clock.advance(1_000)
        assert len((await other.timers.read_due(10)).due) == 6
        repaired = one.timers._sweep.repaired
        assert repaired == 12
        for node in nodes:
            if b"role:master" in node.call("INFO", "replication"):
                with contextlib.suppress(hiredis.ReplyError):
                    node.call("DEL", keys.SWEEPER)
        await one.timers.sweep()
        assert one.timers._sweep.repaired == repaired


async def test_one_process_sweeps_for_all(single: Server, clock: ManualClock) -> None:
    """Of several processes one sweeps; the others leave it alone until its turn is over."""
    async with opened(single.url, 2, clock=clock) as (one, other):
        await create(one)
        await one.timers.sweep()
        forget = single.call("KEYS", "{w}:h:*")
        single.call("DEL", *forget)
        await other.timers.sweep()
        assert await claim(other) == ()
        assert single.call("PTTL", keys.SWEEPER) > 0
        single.call("DEL", keys.SWEEPER)
        await other.timers.sweep()
        assert len(await claim(other)) == 1
