"""Being woken across processes: whatever makes work claimable wakes a claim that waits elsewhere, and none is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from flowfabric.backends import waiting as waits
from flowfabric.backends.valkey import keys, wakes
from flowfabric.backends.valkey.backend import ValkeyBackend
from flowfabric.contract.execution import ExecutionCreate, ExecutionReadResult
from flowfabric.contract.ids import ExecutionId, Kind, Lane
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.lease import LeaseRelease
from flowfabric.contract.policies import ExecutionPolicy, RoutingRequirements
from flowfabric.contract.states import LaneState
from flowfabric.contract.stream import FrameInput, StreamAppend, StreamTail
from tests.backends.valkey.wire.servers import Server
from tests.backends.valkey.work import asleep, in_partition, opened, store_of
from tests.backends.working import (
    PATIENCE_S,
    WAIT_MS,
    claim,
    complete,
    create,
    create_many,
    gone,
    served,
    until,
    waiting,
)


@pytest.fixture(autouse=True)
def bells_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by itself within a test: whoever wakes was woken."""
    monkeypatch.setattr(wakes, "LISTEN_S", 600.0)
    monkeypatch.setattr(waits, "LOOK_AGAIN_S", 600.0)


@pytest.fixture
async def pair(place: str) -> AsyncIterator[list[ValkeyBackend]]:
    """The same store in two processes, so to speak."""
    async with opened(place, 2) as backends:
        yield backends


def tokens(server: Server) -> int:
    """Count the tokens on all bells."""
    return sum(server.call("LLEN", bell) for bell in server.call("KEYS", "{w}:bell:*"))


async def listening(backend: ValkeyBackend) -> None:
    """Wait until a backend listens for its sleeping claims."""
    await until(lambda: backend._wakes._heard_for is not None and not backend._wakes._is_poked)


# What wakes -------------------------------------------------------------------------------------------------------


async def _create(one: ValkeyBackend) -> ExecutionId:
    return await create(one)


async def _create_many(one: ValkeyBackend) -> ExecutionId:
    return (await create_many(one, [ExecutionCreate(kind=Kind("k"))]))[0]


async def _new_route(one: ValkeyBackend) -> ExecutionId:
    return await create(one, kind=Kind("never-seen"), lane=Lane("other"))


STEPS: dict[str, Callable[[ValkeyBackend], Awaitable[ExecutionId]]] = {
    "create": _create,
    "create_many": _create_many,
    "new route": _new_route,
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_another_process_is_woken(
    pair: list[ValkeyBackend], step: Callable[[ValkeyBackend], Awaitable[ExecutionId]]
) -> None:
    """What one process makes claimable wakes a claim that waits in another, which gets it."""
    one, other = pair
    task = waiting(other, lanes=(Lane("default"), Lane("other")))
    await asleep(other, count=1)
    execution_id = await step(one)
    assert [lease.execution_id for lease in await served(task)] == [execution_id]


async def test_what_is_handed_back_wakes(pair: list[ValkeyBackend]) -> None:
    """Work that one process hands back goes to a claim that waits in another."""
    one, other = pair
    await create(one)
    (lease,) = await claim(one)
    task = waiting(other)
    await asleep(other, count=1)
    await one.lease.release(LeaseRelease(execution_id=lease.execution_id, fence=lease.fence))
    assert [each.execution_id for each in await served(task)] == [lease.execution_id]


async def test_a_lane_that_goes_on_wakes_as_many_as_it_has_work_for(pair: list[ValkeyBackend]) -> None:
    """Resuming a lane wakes waiting claims of every process until all its work is done."""
    one, other = pair
    for state in (LaneState.ACTIVE, LaneState.PAUSED):
        await one.lane.set_state(LaneSetState(lane=Lane("default"), state=state))
    created = await create_many(one, [ExecutionCreate(kind=Kind(f"k{number % 3}")) for number in range(20)])
    tasks = [waiting(backend, f"w{number}") for number, backend in enumerate((one, other) * 10)]
    await asleep(one, other, count=20)
    await one.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.ACTIVE))
    leases = await served(*tasks)
    assert sorted(lease.execution_id for lease in leases) == sorted(created)


async def test_work_for_others_wakes_nobody_in_vain(pair: list[ValkeyBackend]) -> None:
    """Work of other lanes, kinds, namespaces or requirements leaves claims in other processes asleep."""
    one, other = pair
    gpu = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=("gpu",)))
    task = waiting(other, kinds=(Kind("k"),), capabilities=("cpu",))
    await asleep(other, count=1)
    await create(one, lane=Lane("other"))
    await create(one, kind=Kind("other"))
    await create(one, namespace="other")
    await create(one, policy=gpu)
    await asyncio.sleep(0.05)  # sleeps: so that a wrong wake-up would show
    assert store_of(other).bells.claims_sleeping == 1
    execution_id = await create(one)
    assert [lease.execution_id for lease in await served(task)] == [execution_id]


# Many at once -----------------------------------------------------------------------------------------------------


async def test_a_burst_strands_nothing(place: str) -> None:
    """Each of many workers in several processes gets something of a burst as large as they are many."""
    async with opened(place, 6) as backends:
        tasks = [waiting(backends[number % 5], f"w{number}") for number in range(60)]
        await asleep(*backends, count=60)
        submitter = backends[5]
        await asyncio.gather(*(create(submitter) for _ in range(30)))
        await create_many(submitter, [ExecutionCreate(kind=Kind("k"))] * 30)
        leases = await served(*tasks)
        assert len({lease.execution_id for lease in leases}) == 60


async def test_a_burst_into_one_partition_strands_nothing(place: str) -> None:
    """The same when all the work is in one partition, where only one piece at a time is the first."""
    async with opened(place, 6) as backends:
        tasks = [waiting(backends[number % 5], f"w{number}") for number in range(40)]
        await asleep(*backends, count=40)
        await asyncio.gather(*(create(backends[5], execution_id=in_partition(7)) for _ in range(40)))
        leases = await served(*tasks)
        assert len({lease.execution_id for lease in leases}) == 40


async def test_mixed_routes_strand_nothing(place: str) -> None:
    """Workers that fit several routes, taking from any of them, leave none of the others' work asleep."""
    async with opened(place, 5) as backends:
        kinds = [Kind(f"k{number}") for number in range(4)]
        await create_many(backends[4], [ExecutionCreate(kind=kind) for kind in kinds])
        assert len(await claim(backends[4], max_tasks=10)) == 4
        picky = [
            waiting(backends[number % 4], f"p{number}", kinds=(kinds[number % 4],)) for number in range(20)
        ]
        broad = [waiting(backends[number % 4], f"b{number}") for number in range(20)]
        await asleep(*backends, count=40)
        for turn in range(20):
            # More of each kind than broad workers can take away from the picky ones.
            await asyncio.gather(
                *(create(backends[4], kind=kind, priority=turn) for kind in kinds),
            )
        assert len(await served(*picky, *broad)) == 40


async def test_workers_that_come_and_go_strand_nothing(place: str) -> None:
    """Claims that are given up the moment they are woken leave their work to others."""
    async with opened(place, 3) as backends:
        for number in range(20):
            leaving = [waiting(backends[0], f"l{number}"), waiting(backends[1], f"m{number}")]
            await asleep(*backends[:2], count=2)
            creating = asyncio.create_task(create(backends[2]))
            for _ in range(number % 7):
                await asyncio.sleep(0.0002)
            for task in leaving:
                task.cancel()
            outcomes = await asyncio.gather(*leaving, return_exceptions=True)
            execution_id = await creating
            kept = [lease for outcome in outcomes if isinstance(outcome, tuple) for lease in outcome]
            leases = kept or await served(waiting(backends[2], "stays"))
            assert [lease.execution_id for lease in leases] == [execution_id]
            await complete(backends[2], leases[0])


async def test_a_token_for_nobody_goes_back(place: str) -> None:
    """A process that is told of work when nobody in it waits any more tells the others."""
    async with opened(place, 3) as (one, other, submitter):
        await create(submitter)
        await claim(submitter)
        leaving = waiting(one)
        await asleep(one, count=1)
        await listening(one)
        await gone(leaving)
        assert one._wakes._heard_for is not None
        task = waiting(other)
        await asleep(other, count=1)
        await listening(other)
        execution_id = await create(submitter)
        assert [lease.execution_id for lease in await served(task)] == [execution_id]


async def test_a_bell_that_was_not_listened_to_is(pair: list[ValkeyBackend]) -> None:
    """A claim of other routes that begins to wait while its process listens for some is heard for at once."""
    one, other = pair
    for kind in ("k", "l"):
        await create(one, kind=Kind(kind))
    await claim(one, max_tasks=2)
    first = waiting(other, kinds=(Kind("k"),))
    await asleep(other, count=1)
    await listening(other)
    second = waiting(other, kinds=(Kind("l"),))
    await asleep(other, count=2)
    execution_id = await create(one, kind=Kind("l"))
    assert [lease.execution_id for lease in await served(second)] == [execution_id]
    await gone(first)


async def test_a_broken_connection_is_made_up_for(single: Server) -> None:
    """A process whose waiting call was cut off, and perhaps a token with it, looks and listens again."""
    async with opened(single.url, 2) as (one, other):
        await create(one)
        await claim(one)
        task = waiting(other)
        await asleep(other, count=1)
        await listening(other)

        def blocked() -> list[str]:
            clients = single.call("CLIENT", "LIST").decode().splitlines()
            return [line.split()[0].partition("=")[2] for line in clients if "cmd=blmpop" in line]

        await until(lambda: bool(blocked()))
        for number in blocked():
            single.call("CLIENT", "KILL", "ID", number)
        execution_id = await create(one)
        single.call("DEL", *single.call("KEYS", "{w}:bell:*") or ["none"])
        assert [lease.execution_id for lease in await served(task)] == [execution_id]


async def test_nobody_waits_on_the_server_for_nobody(single: Server) -> None:
    """Without waiting claims there is no blocking call, and what waits is the store's own business."""
    async with opened(single.url, 2):
        assert b"cmd=blmpop" not in single.call("CLIENT", "LIST")


async def test_waiting_costs_little(single: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten processes with a waiting claim each ask the server for less than thirty things a second."""
    monkeypatch.setattr(wakes, "LISTEN_S", 1.0)
    async with opened(single.url, 10) as backends:
        await create(backends[0])
        await claim(backends[0])
        tasks = [waiting(backend) for backend in backends]
        await asleep(*backends, count=10)

        def commands() -> int:
            stats = single.call("INFO", "stats").decode()
            return int(stats.partition("total_commands_processed:")[2].split()[0])

        before, started = commands(), time.monotonic()
        await asyncio.sleep(3)  # sleeps: what happens while nothing happens is what is measured
        rate = (commands() - before) / (time.monotonic() - started)
        # Five times as often as usual: every second instead of every five.
        assert rate / 5 < 30
        await gone(*tasks)


# Executions -------------------------------------------------------------------------------------------------------


async def test_the_end_wakes_who_waits_for_it(pair: list[ValkeyBackend]) -> None:
    """Whoever waits for a result in another process gets it as soon as it is there; then nothing is subscribed to."""
    one, other = pair
    execution_id = await create(one)
    (lease,) = await claim(one)
    tasks = [
        asyncio.create_task(
            other.execution.read_result(ExecutionReadResult(execution_id=execution_id, wait_ms=WAIT_MS))
        )
        for _ in range(20)
    ]
    await until(lambda: store_of(other).bells.waiting == 20)
    await complete(one, lease, b"42")
    async with asyncio.timeout(PATIENCE_S):
        results = await asyncio.gather(*tasks)
    assert {result.result.data for result in results} == {b"42"}  # type: ignore[union-attr]
    assert other._wakes._watched == {}


async def test_who_stops_waiting_stays_subscribed_to_nothing(single: Server) -> None:
    """A wait for a result that is cancelled, and cancelled again while it ends, leaves no subscription behind."""
    async with opened(single.url) as (store,):
        execution_id = await create(store)
        for turns in range(6):
            read = ExecutionReadResult(execution_id=execution_id, wait_ms=WAIT_MS)
            task = asyncio.create_task(store.execution.read_result(read))
            await until(lambda: store_of(store).bells.waiting == 1)
            task.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            await gone(task)
            await until(lambda: not single.call("PUBSUB", "SHARDCHANNELS", "{fp:*"))


async def test_frames_wake_tails_elsewhere(pair: list[ValkeyBackend]) -> None:
    """A tail in another process sees a frame, and then the end."""
    one, other = pair
    execution_id = await create(one)
    (lease,) = await claim(one)

    async def tail(after: str) -> Any:
        return await other.stream.tail(StreamTail(execution_id=execution_id, after=after, wait_ms=WAIT_MS))

    tails = [asyncio.create_task(tail("0:0-1")) for _ in range(10)]
    await until(lambda: store_of(other).bells.waiting == 10)
    await one.stream.append(
        StreamAppend(
            execution_id=execution_id, attempt_index=0, fence=lease.fence, frames=(FrameInput(sequence=1),)
        )
    )
    async with asyncio.timeout(PATIENCE_S):
        pages = await asyncio.gather(*tails)
    assert {len(page.frames) for page in pages} == {1}
    tails = [asyncio.create_task(tail(pages[0].next_cursor)) for _ in range(10)]
    await until(lambda: store_of(other).bells.waiting == 10)
    await complete(one, lease)
    async with asyncio.timeout(PATIENCE_S):
        pages = await asyncio.gather(*tails)
    assert all(page.closed_at_ms is not None and not page.frames for page in pages)


async def test_a_look_rings_for_lost_tokens(single: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was lost with somebody who died is made up for by the next look at the hints."""
    async with opened(single.url, 2) as (one, other):
        await create(one)
        await claim(one)
        monkeypatch.setattr(wakes, "LISTEN_S", 0.2)
        task = waiting(other)
        await asleep(other, count=1)
        partition = store_of(one).partitions.all[5]
        rid = keys.route_id("default", "default", "k|")
        execution_id = await create(one, execution_id=in_partition(5), lane=Lane("default"), delay_until_ms=0)
        single.call("DEL", keys.bell(rid))
        assert [lease.execution_id for lease in await served(task)] == [execution_id]
        assert partition.number == 5
