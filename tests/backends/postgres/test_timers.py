"""The due-time index of Postgres: engines hear of each other's timers, one leads and the others help, none is lost."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres import timers
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.backends.postgres.timers import OVERDUE_MS
from flowfabric.contract.backend import Due, DueKind
from flowfabric.contract.execution import ExecutionCancel, ExecutionPromote
from flowfabric.contract.ids import Lane, WorkerId, WorkerInstance
from flowfabric.contract.states import CancelSource
from flowfabric.contract.worker import WorkerRegister
from flowfabric.engine.timers import timer_loop
from tests.backends.postgres.work import LONG_S, asleep_for_timers, opened, store_of, told_of_timers
from tests.backends.working import PATIENCE_S, claim, create, gone, served, waiting


@pytest.fixture(autouse=True)
def told_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by itself within a test."""
    for name in ("LOOK_AGAIN_S", "POLL_S"):
        monkeypatch.setattr(timers, name, 600.0)


async def promote(backend: PostgresBackend, due: Due) -> None:
    """Serve a delay that is over."""
    assert due.execution_id is not None
    await backend.execution.promote(ExecutionPromote(execution_id=due.execution_id))


async def test_something_earlier_wakes_every_process(place: str, clock: ManualClock) -> None:
    """A wait in another process ends when something is due before what it waits for, and not for something later."""
    async with opened(place, 2, clock=clock) as (one, other):
        now = clock.now_ms()
        await create(one, delay_until_ms=now + 5_000)
        await told_of_timers(other)
        assert (await other.timers.read_due(1)).next_due_at_ms == now + 5_000
        wait = await asleep_for_timers(other, now + 5_000)
        await create(one, delay_until_ms=now + 6_000)
        await asyncio.sleep(0.05)  # sleeps: so that a wrong wake-up would show
        assert not wait.done()
        await create(one, delay_until_ms=now + 3_000)
        async with asyncio.timeout(PATIENCE_S):
            await wait
        assert (await other.timers.read_due(1)).next_due_at_ms == now + 3_000


async def test_what_is_far_away_is_looked_for(
    place: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is due only in a while is told to nobody; a wait reads the earliest instant now and then."""
    monkeypatch.setattr(timers, "LOOK_AGAIN_S", 0.2)
    async with opened(place, 2, clock=clock) as (one, other):
        now = clock.now_ms()
        wait = await asleep_for_timers(other, now + 60_000)
        await create(one, delay_until_ms=now + 30_000)
        async with asyncio.timeout(PATIENCE_S):
            await wait
        assert (await other.timers.read_due(1)).next_due_at_ms == now + 30_000
        wait = await asleep_for_timers(other, now + 30_000)
        await asyncio.sleep(0.5)  # sleeps: some looks are made
        assert not wait.done()
        await gone(wait)


async def test_what_came_in_between_is_not_missed(place: str, clock: ManualClock) -> None:
    """A wait that begins after something earlier became due ends at once."""
    async with opened(place, clock=clock) as (store,):
        await told_of_timers(store)
        batch = await store.timers.read_due(1)
        await create(store, delay_until_ms=clock.now_ms() + 5_000)
        async with asyncio.timeout(PATIENCE_S):
            await store.timers.wait_change(batch.next_due_at_ms, LONG_S)
        assert (await store.timers.read_due(1)).next_due_at_ms == clock.now_ms() + 5_000


async def test_the_first_wait_looks_once_more(place: str, clock: ManualClock) -> None:
    """What was written between a look and the first wait, when nobody was told yet, ends that wait."""
    async with opened(place, clock=clock) as (store,):
        batch = await store.timers.read_due(1)
        await create(store, delay_until_ms=clock.now_ms() + 5_000)
        async with asyncio.timeout(PATIENCE_S):
            await store.timers.wait_change(batch.next_due_at_ms, LONG_S)


async def test_moving_the_clock_wakes(place: str, clock: ManualClock) -> None:
    """A wait ends when the clock is moved to its instant, and what is due is what was waited for."""
    async with opened(place, clock=clock) as (store,):
        execution_id = await create(store, delay_until_ms=clock.now_ms() + 5_000)
        wait = await asleep_for_timers(store, clock.now_ms() + 5_000)
        clock.advance(5_000)
        async with asyncio.timeout(PATIENCE_S):
            await wait
        (due,) = (await store.timers.read_due(10)).due
        assert (due.kind, due.execution_id) == (DueKind.DELAYED, execution_id)
        await promote(store, due)
        assert len(await claim(store)) == 1


async def test_the_servers_clock_ends_a_wait(place: str) -> None:
    """On the server's clock a wait ends when its instant comes."""
    async with opened(place) as (store,):
        await told_of_timers(store)
        now = await store.now_ms()
        execution_id = await create(store, delay_until_ms=now + 300)
        batch = await store.timers.read_due(10)
        assert (batch.due, batch.next_due_at_ms) == ((), now + 300)
        async with asyncio.timeout(PATIENCE_S):
            await store.timers.wait_change(batch.next_due_at_ms, LONG_S)
            while not (due := (await store.timers.read_due(10)).due):
                pass
        assert due[0].execution_id == execution_id
        assert await store.now_ms() >= now + 300


async def test_the_earliest_come_first(place: str, clock: ManualClock) -> None:
    """A look gives what is due by its instant, workers and executions together, and no more than was asked for."""
    async with opened(place, clock=clock) as (store,):
        now = clock.now_ms()
        created = [await create(store, delay_until_ms=now + 1_000 * number) for number in (5, 1, 3)]
        for number, worker in ((2, "a"), (4, "b")):
            await store.worker.register(
                WorkerRegister(
                    worker_id=WorkerId(worker),
                    worker_instance=WorkerInstance(worker),
                    lanes=(Lane("default"),),
                    liveness_ttl_ms=1_000 * number,
                )
            )
        clock.advance(10_000)
        batch = await store.timers.read_due(4)
        assert [due.due_at_ms - now for due in batch.due] == [1_000, 2_000, 3_000, 4_000]
        assert [due.execution_id or due.worker_instance for due in batch.due] == [
            created[1],
            "a",
            created[2],
            "b",
        ]
        assert len((await store.timers.read_due(10)).due) == 5


async def test_wrong_entries_hide_nothing(place: str, clock: ManualClock) -> None:
    """Entries of executions that do not exist are passed over, however many there are: they are fsck's."""
    async with opened(place, clock=clock) as (store,):
        execution_id = await create(store, delay_until_ms=clock.now_ms() + 100)
        await store_of(store).calls.change(
            "INSERT INTO ff.agenda (seq, due_at_ms, due_kind, id) "
            "SELECT -n, n, 'delayed', gen_random_uuid() FROM generate_series(1, 50) AS n"
        )
        clock.advance(100)
        assert [due.execution_id for due in (await store.timers.read_due(1)).due] == [execution_id]


async def test_one_engine_leads(place: str, clock: ManualClock) -> None:
    """What is due is given to one engine at first; the others get what that one leaves for two seconds."""
    async with opened(place, 2, clock=clock) as (one, other):
        await told_of_timers(one)
        await told_of_timers(other)
        now = clock.now_ms()
        for number in range(8):
            await create(one, delay_until_ms=now + 100 + number)
        assert (await other.timers.read_due(100)).next_due_at_ms == now + 100 + OVERDUE_MS
        clock.advance(1_000)
        first = await one.timers.read_due(100)
        assert [due.due_at_ms for due in first.due] == [now + 100 + number for number in range(8)]
        second = await other.timers.read_due(100)
        assert second.due == ()
        assert second.next_due_at_ms == now + 100 + OVERDUE_MS
        clock.advance(OVERDUE_MS)
        assert (await other.timers.read_due(100)).due == first.due
        for due in first.due:
            await promote(one, due)
        assert (await other.timers.read_due(100)).due == (await one.timers.read_due(100)).due == ()
        assert len(await claim(other, max_tasks=10)) == 8


async def test_an_engine_that_closes_is_followed_by_another(place: str, clock: ManualClock) -> None:
    """When the one that leads is closed, what is due is given to another at once."""
    async with opened(place, clock=clock) as (other,):
        async with opened(place, clock=clock) as (one,):
            await told_of_timers(one)
            await told_of_timers(other)
            await create(one, delay_until_ms=clock.now_ms() + 100)
            clock.advance(1_000)
            assert (await other.timers.read_due(100)).due == ()
            assert len((await one.timers.read_due(100)).due) == 1
        async with asyncio.timeout(PATIENCE_S):
            while not (due := (await other.timers.read_due(100)).due):  # noqa: ASYNC110 (asks as an engine would)
                await asyncio.sleep(0.01)
        assert len(due) == 1


async def test_engines_share_what_has_piled_up(place: str, clock: ManualClock) -> None:
    """Of much that is overdue, the engines that do not lead are given something further down."""
    async with opened(place, 2, clock=clock) as (one, other):
        await told_of_timers(one)
        await told_of_timers(other)
        now = clock.now_ms()
        await asyncio.gather(*(create(one, delay_until_ms=now + 1_000 + number) for number in range(100)))
        clock.advance(10_000)
        first = {due.execution_id for due in (await one.timers.read_due(10)).due}
        second = {due.execution_id for due in (await other.timers.read_due(10)).due}
        assert len(first) == len(second) == 10
        assert not first & second


async def test_whoever_hears_nothing_is_given_everything(place: str, clock: ManualClock) -> None:
    """A process without a listener sees everything that is due, whoever leads."""
    async with (
        opened(place, clock=clock) as (one,),
        opened(f"{place}?pooler=transaction", clock=clock) as (deaf,),
    ):
        await told_of_timers(one)
        await create(one, delay_until_ms=clock.now_ms() + 100)
        clock.advance(1_000)
        assert len((await one.timers.read_due(100)).due) == 1
        assert len((await deaf.timers.read_due(100)).due) == 1


async def test_engines_together_serve_everything_once(place: str, clock: ManualClock) -> None:
    """Engines of several processes serve what is due without errors, and waiting workers get all of it."""
    async with opened(place, 3, clock=clock) as backends:
        now = clock.now_ms()
        created = [
            await create(backends[number % 3], delay_until_ms=now + 1_000 + number % 10)
            for number in range(60)
        ]
        doomed = await create(backends[0], delay_until_ms=now + 60_000)
        loops = [asyncio.create_task(timer_loop(backend)) for backend in backends]
        workers = [waiting(backends[number % 3], f"w{number}", max_tasks=1) for number in range(60)]
        await backends[1].execution.cancel(
            ExecutionCancel(execution_id=doomed, source=CancelSource.OPERATOR_OVERRIDE, reason="test")
        )
        clock.advance(2_000)
        leases = await served(*workers)
        assert sorted(lease.execution_id for lease in leases) == sorted(created)
        for loop in loops:
            loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*loops)
        assert not (await backends[0].maintenance.fsck()).findings


async def test_what_waits_ends_when_the_store_is_closed(place: str, clock: ManualClock) -> None:
    """A wait for timers ends when the store is closed."""
    async with opened(place, clock=clock) as (store,):
        wait = await asleep_for_timers(store, None)
        await store.close()
        (outcome,) = await asyncio.gather(wait, return_exceptions=True)
        assert outcome is None or getattr(outcome, "code", None) == "unavailable"
