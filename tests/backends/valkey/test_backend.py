"""What holds the Valkey backend together: opening and closing over connections, and several processes on one store."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from flowfabric.backends import connect
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import Kind, Lane, PartitionCounts, WorkerId, WorkerInstance
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.lease import LeaseClaim, LeasesClaimed
from flowfabric.contract.states import Durability, LaneState
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.wire.servers import Server
from tests.backends.valkey.work import opened, store_of

LANE = Lane("lane")


class Connects(Protocol):
    """Opens backends that are closed when the test is over."""

    async def __call__(self, url: str) -> Backend: ...


@pytest.fixture
async def connects() -> AsyncIterator[Connects]:
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(url: str) -> Backend:
            backend = await connect(url, partitions=FEW)
            stack.push_async_callback(backend.close)
            return backend

        yield open_one


def waiting_claim(backend: Backend, *, wait_ms: int = 20_000) -> asyncio.Task[LeasesClaimed]:
    """Start a claim that waits."""
    command = LeaseClaim(
        worker_id=WorkerId("w"), worker_instance=WorkerInstance("i"), lanes=(LANE,), wait_ms=wait_ms
    )
    return asyncio.create_task(_claimed(backend, command))


async def _claimed(backend: Backend, command: LeaseClaim) -> LeasesClaimed:
    return await backend.lease.claim(command)


async def set_state(backend: Backend, state: LaneState) -> None:
    await backend.lane.set_state(LaneSetState(lane=LANE, state=state))


async def test_it_says_what_it_is(place: str, connects: Connects) -> None:
    """The capabilities name the servers' version, the durability found and the counts of the store."""
    backend = await connects(place)
    found = await backend.capabilities()
    assert (found.family, found.several_nodes, found.push) == ("valkey", True, True)
    assert found.durability is Durability.MEMORY
    assert found.partitions == PartitionCounts(flow=FEW.flow)
    assert tuple(map(int, found.version.split("."))) >= (7, 2, 0)
    assert "@" not in backend.url
    await backend.ping()
    now_ms = await backend.now_ms()
    assert abs(now_ms - time.time() * 1_000) < 60_000


async def test_closing_ends_who_waits(place: str, connects: Connects) -> None:
    """A waiting claim of a store that is closed ends with Unavailable, and so does what is called afterwards."""
    backend = await connects(place)
    claim = waiting_claim(backend)
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await backend.close()
        with pytest.raises(Unavailable):
            await claim
    await backend.close()


async def test_closing_does_not_wait_for_a_server_that_is_gone(connects: Connects) -> None:
    """A store whose server was killed is closed within seconds."""
    with Server() as server:
        backend = await connects(server.url)
        await backend.execution.create(ExecutionCreate(kind=Kind("k"), lane=LANE))
        server.kill()
        async with asyncio.timeout(8):
            with pytest.raises(Unavailable):
                async with asyncio.timeout(4):
                    await backend.ping()
            await backend.close()


async def test_work_of_one_process_is_found_by_another(place: str, connects: Connects) -> None:
    """A claim that waits in one process gets what another creates, on a route that neither knew."""
    one, other = await connects(place), await connects(place)
    claim = waiting_claim(other)
    await asyncio.sleep(0)
    created = await one.execution.create(ExecutionCreate(kind=Kind("k"), lane=LANE))
    async with asyncio.timeout(5):
        (lease,) = (await claim).leases
    assert lease.execution_id == created.execution_id


async def test_what_was_created_before_is_found_at_once(place: str, connects: Connects) -> None:
    """A claim that does not wait finds work on a route that its process has not heard of."""
    one, other = await connects(place), await connects(place)
    for number in range(20):
        await one.execution.create(ExecutionCreate(kind=Kind(f"k{number}"), lane=LANE))
        (lease,) = (await waiting_claim(other, wait_ms=0)).leases
        assert lease.kind == f"k{number}"


async def test_a_lane_resumed_elsewhere_gives_its_work_out(place: str, connects: Connects) -> None:
    """A claim that waits on a paused lane in one process is woken when another resumes it."""
    one, other = await connects(place), await connects(place)
    await set_state(one, LaneState.PAUSED)
    created = await one.execution.create(ExecutionCreate(kind=Kind("k"), lane=LANE))
    assert not (await waiting_claim(other, wait_ms=0)).leases
    claim = waiting_claim(other)
    await asyncio.sleep(0)
    await set_state(one, LaneState.ACTIVE)
    async with asyncio.timeout(5):
        (lease,) = (await claim).leases
    assert lease.execution_id == created.execution_id


async def test_a_state_set_elsewhere_acts_on_the_next_claim(place: str, connects: Connects) -> None:
    """When set_state has answered in one process, the next claim of another acts by it, whatever it has heard."""
    one, other = await connects(place), await connects(place)
    for number in range(20):
        await one.execution.create(ExecutionCreate(kind=Kind("k"), lane=LANE, priority=number))
        await set_state(one, LaneState.PAUSED)
        assert not (await waiting_claim(other, wait_ms=0)).leases
        await set_state(one, LaneState.ACTIVE)
        assert len((await waiting_claim(other, wait_ms=0)).leases) == 1


async def test_a_read_that_is_not_answered(single: Server) -> None:
    """A read that the server was sent and did not answer is unavailable: of what changes nothing all is known."""
    async with opened(single.url) as (backend,):
        partition = store_of(backend).partitions.all[3]
        single.pause()
        try:
            with pytest.raises(Unavailable) as caught:
                await store_of(backend).calls.read(
                    partition, [("GET", partition.payload("x"))], timeout_s=0.2
                )
        finally:
            single.resume()
        assert type(caught.value) is Unavailable
