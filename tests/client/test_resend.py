"""What the HTTP client does when requests and replies are lost between it and a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from flowfabric.client.facade import Client
from flowfabric.client.http import HttpStores
from flowfabric.contract.errors import (
    LaneNotAccepting,
    OutcomeUnknown,
    StaleLease,
    Unavailable,
)
from flowfabric.contract.execution import (
    ExecutionComplete,
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ExecutionDescribe,
    ExecutionDuplicate,
    ExecutionReplay,
)
from flowfabric.contract.ids import Kind, Lane, LeaseId, WorkerId, WorkerInstance, mint_uuid
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.lease import LeaseClaim, LeaseClaimGranted, LeaseGrant, LeaseGranted, LeaseTaken
from flowfabric.contract.payloads import Fence
from flowfabric.contract.states import LaneState
from tests.client.conftest import Served
from tests.client.cutting import Cut, CuttingProxy, cutting
from tests.client.working import claim_one, complete, write

Connect = Callable[..., HttpStores]
CREATE = ExecutionCreate(kind=Kind("count"))


@pytest.fixture
async def proxy(served: Served) -> AsyncGenerator[CuttingProxy]:
    """A proxy in front of the server."""
    async with cutting(served.port) as running:
        yield running


@pytest.fixture
async def connect(proxy: CuttingProxy) -> AsyncGenerator[Connect]:
    """Make clients through the proxy."""
    made: list[HttpStores] = []

    def make(**options: float) -> HttpStores:
        stores = HttpStores(proxy.url, **options)  # pyright: ignore[reportArgumentType]
        made.append(stores)
        return stores

    yield make
    for stores in made:
        await stores.close()


async def count(stores: HttpStores) -> int:
    """Count the executions there are."""
    return len([info async for info in Client(stores).list()])


@pytest.mark.parametrize("cut", [Cut.REQUEST, Cut.REPLY, Cut.MIDDLE])
async def test_a_create_whose_reply_is_lost_creates_once(
    proxy: CuttingProxy, connect: Connect, cut: Cut
) -> None:
    """The client mints the id, so a create without one is sent again and there is one execution."""
    stores = connect()
    proxy.cut("POST /v1/executions", cut)
    reply = await stores.execution.create(CREATE)
    assert isinstance(reply, ExecutionCreated if cut is Cut.REQUEST else ExecutionDuplicate)
    assert proxy.count("POST /v1/executions") == 2
    assert await count(stores) == 1


async def test_a_submit_sent_twice_is_no_duplicate_to_its_caller(
    proxy: CuttingProxy, connect: Connect
) -> None:
    """A run whose submit was re-sent by the client itself is not marked as a duplicate."""
    proxy.cut("POST /v1/executions", Cut.REPLY)
    assert not (await Client(connect()).submit("count")).duplicate


async def test_a_batch_whose_reply_is_lost_is_created_once(proxy: CuttingProxy, connect: Connect) -> None:
    """Every item of a re-sent batch exists once."""
    stores = connect()
    proxy.cut("POST /v1/executions/batch", Cut.REPLY, times=2)
    reply = await stores.execution.create_many(ExecutionCreateMany(executions=(CREATE, CREATE, CREATE)))
    assert all(isinstance(result, ExecutionDuplicate) for result in reply.results)
    assert await count(stores) == 3


async def test_a_claim_whose_reply_is_lost_gets_the_same_leases(
    proxy: CuttingProxy, connect: Connect
) -> None:
    """A re-sent claim carries the same claim id, so nothing stays leased to nobody."""
    stores = connect()
    for _ in range(3):
        await stores.execution.create(CREATE)
    proxy.cut("/claim", Cut.REPLY)
    claimed = await stores.lease.claim(
        LeaseClaim(
            worker_id=WorkerId("w"),
            worker_instance=WorkerInstance("w-1"),
            lanes=(Lane("default"),),
            max_tasks=2,
        )
    )
    assert len(claimed.leases) == 2
    active = [info async for info in Client(stores).list(state="active")]
    assert {info.execution_id for info in active} == {lease.execution_id for lease in claimed.leases}


async def test_a_used_grant_whose_reply_is_lost_is_the_same_lease(
    proxy: CuttingProxy, connect: Connect
) -> None:
    """A re-sent claim of a grant carries the same lease and attempt ids."""
    stores = connect()
    created = await stores.execution.create(CREATE)
    granted = await stores.lease.grant(
        LeaseGrant(
            worker_id=WorkerId("w"), worker_instance=WorkerInstance("w-1"), execution_id=created.execution_id
        )
    )
    assert isinstance(granted, LeaseGranted)
    proxy.cut("/claim-granted", Cut.REPLY)
    taken = await stores.lease.claim_granted(
        LeaseClaimGranted(
            execution_id=created.execution_id, worker_id=WorkerId("w"), worker_instance=WorkerInstance("w-1")
        )
    )
    assert isinstance(taken, LeaseTaken)
    assert proxy.count("/claim-granted") == 2


async def test_work_under_a_fence_is_re_sent(proxy: CuttingProxy, connect: Connect) -> None:
    """Frames and completions whose replies are lost are written once."""
    stores = connect()
    await stores.execution.create(CREATE)
    lease = await claim_one(stores)
    proxy.cut("/stream", Cut.REPLY)
    proxy.cut("/complete", Cut.REPLY, times=2)
    await write(stores, lease, 1, 2)
    await complete(stores, lease, "done")
    run = Client(stores).run(lease.execution_id)
    assert [frame.value async for frame in run.stream(follow=False)] == [1, 2]
    assert await run.result() == "done"
    assert proxy.count("/complete") == 3


async def test_what_is_not_repeatable_is_sent_once(proxy: CuttingProxy, connect: Connect) -> None:
    """A replay whose reply is lost has an unknown outcome, which is said and not made worse.

    Acceptance: client-never-resends-what-is-not-repeatable
    """
    stores = connect()
    await stores.execution.create(CREATE)
    lease = await claim_one(stores)
    await complete(stores, lease)
    proxy.cut("/replay", Cut.REPLY)
    with pytest.raises(OutcomeUnknown, match="may or may not have happened"):
        await stores.execution.replay(ExecutionReplay(execution_id=lease.execution_id))
    assert proxy.count("/replay") == 1
    snapshot = await stores.execution.describe(ExecutionDescribe(execution_id=lease.execution_id))
    assert snapshot.replay_count == 1


async def test_a_silent_server_is_asked_again(proxy: CuttingProxy, connect: Connect) -> None:
    """A reply that does not come within the attempt's timeout is asked for again on another connection."""
    stores = connect(attempt_timeout_s=0.3)
    await stores.capabilities()
    proxy.cut("POST /v1/executions", Cut.SILENCE)
    assert isinstance(await stores.execution.create(CREATE), ExecutionDuplicate)


async def test_the_deadline_ends_trying(proxy: CuttingProxy, connect: Connect) -> None:
    """When every reply is lost until the deadline, the outcome is unknown; of a read it is merely unavailable."""
    stores = connect(timeout_s=0.6)
    created = await stores.execution.create(CREATE)
    proxy.cut("POST /v1/executions", Cut.REPLY, times=1_000)
    proxy.cut("/describe", Cut.REPLY, times=1_000)
    with pytest.raises(OutcomeUnknown):
        await stores.execution.create(CREATE)
    assert proxy.count("POST /v1/executions") > 2
    with pytest.raises(Unavailable) as caught:
        await stores.execution.describe(ExecutionDescribe(execution_id=created.execution_id))
    assert not isinstance(caught.value, OutcomeUnknown)


async def test_an_unknown_outcome_is_not_forgotten(proxy: CuttingProxy, connect: Connect) -> None:
    """After one sending that may have been carried out, a later "nothing was changed" does not hide it."""
    stores = connect(timeout_s=0.6)
    await stores.capabilities()
    proxy.cut("POST /v1/executions", Cut.REPLY)
    proxy.cut("POST /v1/executions", Cut.BUSY, times=1_000)
    with pytest.raises(OutcomeUnknown):
        await stores.execution.create(CREATE)


async def test_a_busy_server_is_given_the_time_it_asks_for(proxy: CuttingProxy, connect: Connect) -> None:
    """`Retry-After` is waited for; when it reaches past the deadline, the call ends at once.

    Acceptance: client-honours-retry-after
    """
    loop = asyncio.get_running_loop()
    stores = connect()
    await stores.capabilities()
    proxy.cut("POST /v1/executions", Cut.BUSY)
    begun = loop.time()
    assert isinstance(await stores.execution.create(CREATE), ExecutionCreated)
    assert loop.time() - begun >= 1.0
    hurried = connect(timeout_s=0.9)
    await hurried.capabilities()
    proxy.cut("POST /v1/executions", Cut.BUSY)
    begun = loop.time()
    with pytest.raises(Unavailable, match="busy"):
        await hurried.execution.create(CREATE)
    assert loop.time() - begun < 0.8


async def test_refusals_of_the_domain_are_raised_at_once(proxy: CuttingProxy, connect: Connect) -> None:
    """A stale lease, or a lane that takes no work now, is an answer: it is not asked for again.

    Acceptance: client-never-resends-refusals
    """
    stores = connect()
    await stores.execution.create(CREATE)
    lease = await claim_one(stores)
    stale = Fence(lease_id=LeaseId(mint_uuid()), lease_epoch=lease.lease_epoch, attempt_id=lease.attempt_id)
    with pytest.raises(StaleLease):
        await stores.execution.complete(ExecutionComplete(execution_id=lease.execution_id, fence=stale))
    assert proxy.count("/complete") == 1
    await stores.lane.set_state(LaneSetState(lane=Lane("shut"), state=LaneState.DRAINING))
    before = proxy.count("POST /v1/executions")
    with pytest.raises(LaneNotAccepting):
        await stores.execution.create(ExecutionCreate(kind=Kind("count"), lane=Lane("shut")))
    assert proxy.count("POST /v1/executions") == before + 1


async def test_nobody_there_is_said_at_once() -> None:
    """A server that never answered is not waited for; the error says what to start.

    Acceptance: closed-port-is-unavailable
    """
    loop = asyncio.get_running_loop()
    async with cutting(1) as proxy:
        url = proxy.url
    stores = HttpStores(url)
    begun = loop.time()
    with pytest.raises(Unavailable, match="flowfabric serve"):
        await stores.execution.create(CREATE)
    with pytest.raises(Unavailable):
        await stores.ping()
    assert loop.time() - begun < 5
    await stores.close()


async def test_a_server_that_went_away_is_waited_for(served: Served) -> None:
    """A server that answered before is tried until the deadline, as when it is being restarted."""
    async with cutting(served.port) as proxy:
        stores = HttpStores(proxy.url)
        await stores.ping()
        port = proxy.port
    call = asyncio.create_task(stores.execution.create(CREATE))
    done, _ = await asyncio.wait({call}, timeout=0.3)
    assert not done
    async with cutting(served.port, port):
        assert isinstance(await call, ExecutionCreated)
    await stores.close()


async def test_closing_ends_waiting_calls(proxy: CuttingProxy, connect: Connect) -> None:
    """A claim that waits for work ends when the client is closed, and later calls are unavailable."""
    stores = connect()
    waiting = asyncio.create_task(
        stores.lease.claim(
            LeaseClaim(
                worker_id=WorkerId("w"),
                worker_instance=WorkerInstance("w-1"),
                lanes=(Lane("default"),),
                wait_ms=30_000,
            )
        )
    )
    await proxy.arrival("/claim")
    await stores.close()
    with pytest.raises(Unavailable, match="closed"):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(Unavailable, match="closed"):
        await stores.execution.create(CREATE)


async def test_a_dropped_stream_is_resumed_where_it_was(proxy: CuttingProxy, connect: Connect) -> None:
    """Frames arrive once each and in order, however often the connection drops on the way."""
    stores = connect()
    await stores.execution.create(CREATE)
    lease = await claim_one(stores)
    await write(stores, lease, *range(40))
    proxy.cut("/stream/tail", Cut.EVENTS, times=3, events=4)
    seen: list[int] = []
    run = Client(stores, follow=stores.follow).run(lease.execution_id)
    async for frame in run.stream():
        seen.append(frame.value)
        if len(seen) == 40:
            await write(stores, lease, 40, first=41)
            await complete(stores, lease)
    assert seen == list(range(41))
    assert proxy.count("/stream/tail") >= 4
