"""A worker runs as many handlers as it may, never more, and keeps its slots busy."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import Misuse
from flowfabric.contract.execution import ResultCompleted
from flowfabric.contract.ids import Kind
from flowfabric.worker import App, Context, SyncContext, Worker
from flowfabric.worker.slots import Slots
from tests.worker.rig import Rig, until

app = App("concurrency")


class Gauge:
    now = 0
    most = 0

    def __enter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        self.now -= 1


gauges = {"any": Gauge(), "capped": Gauge()}


@pytest.fixture(autouse=True)
def _clean() -> None:
    for name in gauges:
        gauges[name] = Gauge()


@app.task
async def short(number: int) -> int:
    with gauges["any"]:
        await asyncio.sleep(0.001)
    return number


@app.task(max_concurrency=2)
async def capped(number: int) -> int:
    with gauges["any"], gauges["capped"]:
        await asyncio.sleep(0.001)
    return number


@app.task
def in_thread(ctx: SyncContext, number: int) -> int:
    with gauges["any"]:
        ctx.stream(number)
    return number


@app.task(max_concurrency=1)
async def one_at_a_time(ctx: Context) -> None:
    with gauges["capped"]:
        await asyncio.sleep(0.001)


async def test_no_more_handlers_run_than_allowed(backend: Backend, rig: Rig) -> None:
    """With concurrency 4, four handlers run at once, never five, and everything is done."""
    ids = [await rig.submit(short, number=number) for number in range(200)]
    async with Worker(backend, app, concurrency=4):
        for execution_id in ids:
            assert isinstance(await rig.result(execution_id), ResultCompleted)
    assert gauges["any"].most == 4


async def test_a_task_can_be_limited_by_itself(backend: Backend, rig: Rig) -> None:
    """max_concurrency bounds one task while others use the remaining slots."""
    ids = []
    for number in range(100):
        ids += [await rig.submit(capped, number=number), await rig.submit(short, number=number)]
    async with Worker(backend, app, concurrency=8):
        for execution_id in ids:
            assert isinstance(await rig.result(execution_id), ResultCompleted)
    assert gauges["capped"].most <= 2
    assert gauges["any"].most > 2


async def test_a_limited_task_is_claimed_again_as_soon_as_it_may(backend: Backend, rig: Rig) -> None:
    """A task at its limit is claimed again the moment it is below, not when the waiting claim ends."""
    async with Worker(backend, app, concurrency=4, claim_wait_ms=30_000):
        ids = [await rig.submit(one_at_a_time) for _ in range(20)]
        async with asyncio.timeout(10):
            for execution_id in ids:
                assert isinstance(await rig.result(execution_id), ResultCompleted)
    assert gauges["capped"].most == 1


async def test_threads_share_the_limit(backend: Backend, rig: Rig) -> None:
    """Plain functions count like async ones."""
    ids = [await rig.submit(in_thread, number=number) for number in range(60)]
    async with Worker(backend, app, concurrency=3):
        for execution_id in ids:
            assert isinstance(await rig.result(execution_id), ResultCompleted)
    assert 1 <= gauges["any"].most <= 3


async def test_a_waiting_worker_is_woken(backend: Backend, rig: Rig) -> None:
    """An idle worker runs what is submitted without waiting for its claim to end."""
    async with Worker(backend, app, claim_wait_ms=30_000) as worker:
        for number in range(20):
            async with asyncio.timeout(5):
                await rig.run(short, number=number)
        await until(lambda: worker.attempts_ended == 20)


def test_a_worker_without_tasks_is_refused(backend: Backend) -> None:
    """A worker needs tasks with distinct names, and options within their bounds."""
    other = App("other")

    @other.task(name="short")
    def different() -> None: ...

    with pytest.raises(Misuse, match="at least one task"):
        Worker(backend, App("empty"))
    with pytest.raises(Misuse, match="two tasks are named short"):
        Worker(backend, [short, different])
    with pytest.raises(Misuse, match="concurrency must be"):
        Worker(backend, app, concurrency=0)
    with pytest.raises(Misuse, match="lane name"):
        Worker(backend, app, lanes=["{}"])
    with pytest.raises(Misuse, match="lease_ttl_ms"):
        Worker(backend, app, lease_ttl=0)
    with pytest.raises(Misuse, match="worker:"):
        Worker(backend, app, capabilities=["a b"])


async def test_only_capable_workers_in_the_lane_get_the_work(backend: Backend, rig: Rig) -> None:
    """Work that requires a capability, or waits in another lane, is left to workers that have it or look there."""
    special = App("special")

    @special.task(requires={"cuda"}, lane="gpu")
    async def render(number: int) -> int:
        return number

    async with Worker(backend, special, worker_id="plain", instance="plain"):
        execution_id = await rig.submit(render, number=1)
        async with Worker(backend, special, lanes=["other"], capabilities=["cuda"]):
            snapshot = await rig.describe(execution_id)
            assert snapshot.total_attempt_count == 0
            assert (snapshot.lane, snapshot.required_capabilities) == ("gpu", ("cuda",))
        async with Worker(backend, special, capabilities=["cuda", "more"]):
            ended = await rig.result(execution_id)
    assert isinstance(ended, ResultCompleted)


async def test_a_waiting_claim_leaves_a_slot_for_capped_kinds() -> None:
    """A claimer of kinds without a cap never holds every slot while the claimer of capped kinds has none."""
    slots = Slots(4, {"capped": 1})
    kinds = (Kind("capped"), Kind("other"))
    second = await slots.reserve(1, kinds)
    assert (second.size, second.kinds) == (3, (Kind("other"),))
    first = await asyncio.wait_for(slots.reserve(0, kinds), 1)
    assert (first.size, first.kinds) == (1, kinds)
    slots.give_back(second)
    assert (await slots.reserve(1, kinds)).size == 3
