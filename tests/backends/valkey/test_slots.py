"""Slots move to other primaries while functions run in them: each call is executed whole, or refused and made again.

Moving a slot in one step needs Valkey 9.0: with an older server that test does not exist.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from flowfabric import backends
from flowfabric.backends.valkey.keys import GLOBAL_SLOT, Partition, Partitions
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionTrim
from flowfabric.contract.ids import Kind, Lane, PartitionCounts, WorkerId, WorkerInstance
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.lease import LeaseClaim, LeaseRelease
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy
from flowfabric.contract.states import LaneState
from flowfabric.contract.worker import WorkerMarkDead
from tests.faults.judging import judge
from tests.faults.load import PATIENCE_S, loading
from tests.faults.scenes import blocking
from tests.valkey import servers
from tests.valkey.servers import Cluster, Node, server_version

CROWDED = PartitionCounts(flow=4)
"""So few partitions that each is in use all the time."""
ONE = PartitionCounts(flow=1)


@pytest.fixture(scope="module")
def moving_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with servers.cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def cluster(moving_cluster: Cluster) -> Cluster:
    """Three primaries with one replica each, without data; who has which slot is the servers' to say."""
    moving_cluster.empty(functions=True)
    return moving_cluster


def another(cluster: Cluster, slot: int) -> Node:
    """Return a primary that does not have the slot."""
    owner = cluster.owner(slot)
    return next(node for node in cluster.primaries() if node is not owner and cluster.replicas_of(node))


def move_slowly(cluster: Cluster, slot: int) -> None:
    """Move a slot key by key, with time for calls between any two keys."""
    target = another(cluster, slot)
    source = cluster.begin_move(slot, target)
    while cluster.move_keys(slot, source, target, count=1):
        time.sleep(0.002)  # sleeps: calls meet every state in between
    cluster.end_move(slot, source, target)
    cluster.wait_whole()


def refused(cluster: Cluster, *codes: str) -> int:
    """Return how often commands were answered with one of these errors."""
    found = 0
    for node in cluster.nodes:
        stats = node.info("errorstats")
        found += sum(int(stats.get(f"errorstat_{code}", "count=0").removeprefix("count=")) for code in codes)
    return found


async def test_partitions_move_key_by_key_under_claims(cluster: Cluster) -> None:
    """While partitions move key by key no function is executed in half, and everything ends once."""
    before = refused(cluster, "ASK", "TRYAGAIN")
    async with loading(cluster.url, partitions=CROWDED) as load:
        for partition in Partitions(CROWDED.flow).all:
            await load.progress()
            await blocking(lambda slot=partition.slot: move_slowly(cluster, slot))
        await load.progress()
        assert refused(cluster, "ASK", "TRYAGAIN") > before, "no call met a move"
        assert not load.unavailable, "a move is waited out"
        await judge(load.backend, await load.finish())


async def test_the_global_keys_move_key_by_key_under_claims(cluster: Cluster) -> None:
    """While hints, bells and the catalog move key by key work goes on, and everything ends once."""
    before = refused(cluster, "ASK", "TRYAGAIN")
    async with loading(cluster.url, partitions=CROWDED) as load:
        for _ in range(3):
            await load.progress()
            await blocking(lambda: move_slowly(cluster, GLOBAL_SLOT))
        await load.progress()
        assert refused(cluster, "ASK", "TRYAGAIN") > before, "no call met a move"
        await judge(load.backend, await load.finish())


if server_version() >= (9, 0, 0):

    async def test_slots_move_in_one_step_under_claims(cluster: Cluster) -> None:
        """While partitions and the global keys move in one step everything ends once."""
        first, second, *_ = Partitions(CROWDED.flow).all
        async with loading(cluster.url, partitions=CROWDED) as load:
            for slot in (first.slot, GLOBAL_SLOT, second.slot):
                await load.progress()
                target = another(cluster, slot)
                await blocking(
                    lambda slot=slot, target=target: cluster.move_slots_atomically(slot, slot, target)
                )
            await load.progress()
            await judge(load.backend, await load.finish())


# One claim, step by step --------------------------------------------------------------------------------------------


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[Backend]:
    backend = await backends.connect(cluster.url, partitions=ONE)
    yield backend
    await backend.close()


def claim(wait_ms: int = 0) -> LeaseClaim:
    return LeaseClaim(
        worker_id=WorkerId("w"), worker_instance=WorkerInstance("w"), lanes=(Lane("l"),), wait_ms=wait_ms
    )


def contents(node: Node, slot: int) -> dict[bytes, bytes]:
    """Return what a node has in a slot."""
    found: dict[bytes, bytes] = {}
    for name in node.call("CLUSTER", "GETKEYSINSLOT", slot, 1_000):
        node.call("ASKING")
        found[name] = node.call("DUMP", name)
    return found


async def test_a_claim_that_meets_a_key_on_the_move_writes_nothing(cluster: Cluster, store: Backend) -> None:
    """A claim runs when the keys it names are all there; an execution that has moved already makes it refuse whole.

    It is made again until the slot has moved, and then leases what it would have leased.
    """
    partition = Partition(0)
    create = ExecutionCreate(kind=Kind("k"), lane=Lane("l"))
    # Every key that the claim names exists: a lane is stopped, something is leased, something was lost.
    await store.lane.set_state(LaneSetState(lane=Lane("other"), state=LaneState.PAUSED))
    created = [await store.execution.create(create) for _ in range(3)]
    (lost,) = (await store.lease.claim(claim())).leases
    (held,) = (await store.lease.claim(claim())).leases
    await store.lease.release(LeaseRelease(execution_id=lost.execution_id, fence=lost.fence))
    target = another(cluster, partition.slot)
    source = cluster.begin_move(partition.slot, target)
    waiting = [each.execution_id[-36:] for each in created if each.execution_id != held.execution_id]
    for uuid in waiting:
        name = partition.execution(uuid)
        source.call("MIGRATE", servers.HOST, target.port, "", 0, 5_000, "KEYS", name)
    before = contents(source, partition.slot)
    calls = calls_of(source)
    claiming = asyncio.create_task(store.lease.claim(claim()))
    async with asyncio.timeout(PATIENCE_S):
        while calls_of(source) < calls + 3:
            assert not claiming.done()
            await asyncio.sleep(0.01)  # sleeps: until the claim has been refused and made again
    assert contents(source, partition.slot) == before
    while cluster.move_keys(partition.slot, source, target, count=100):
        pass
    await blocking(lambda: cluster.end_move(partition.slot, source, target))
    async with asyncio.timeout(PATIENCE_S):
        (lease,) = (await claiming).leases
    assert lease.execution_id != held.execution_id
    for each in (lease, held):
        await store.execution.complete(ExecutionComplete(execution_id=each.execution_id, fence=each.fence))
    report = await store.maintenance.fsck()
    assert not report.findings, report.findings


async def test_a_claim_that_comes_before_its_work_overlooks_nothing(cluster: Cluster, store: Backend) -> None:
    """A claim may run where a slot moves to once the keys it names are there; what comes later is waited for."""
    partition = Partition(0)
    create = ExecutionCreate(kind=Kind("k"), lane=Lane("l"))
    await store.lane.set_state(LaneSetState(lane=Lane("other"), state=LaneState.PAUSED))
    for _ in range(3):
        await store.execution.create(create)
    (lost,) = (await store.lease.claim(claim())).leases
    (held,) = (await store.lease.claim(claim())).leases
    await store.lease.release(LeaseRelease(execution_id=lost.execution_id, fence=lost.fence))
    target = another(cluster, partition.slot)
    source = cluster.begin_move(partition.slot, target)
    indexes = [partition.due, partition.own, partition.lost, partition.lanes]
    indexes += list(source.call("KEYS", f"{partition.tag}q:*"))
    source.call("MIGRATE", servers.HOST, target.port, "", 0, 5_000, "KEYS", *indexes)
    before, calls = contents(target, partition.slot), calls_of(target)
    claiming = asyncio.create_task(store.lease.claim(claim()))
    async with asyncio.timeout(PATIENCE_S):
        while calls_of(target) < calls + 3:
            assert not claiming.done()
            await asyncio.sleep(0.01)  # sleeps: until the claim has been refused and made again
    assert contents(target, partition.slot) == before
    while cluster.move_keys(partition.slot, source, target, count=100):
        pass
    await blocking(lambda: cluster.end_move(partition.slot, source, target))
    async with asyncio.timeout(PATIENCE_S):
        (lease,) = (await claiming).leases
    for each in (lease, held):
        await store.execution.complete(ExecutionComplete(execution_id=each.execution_id, fence=each.fence))
    assert len((await store.lease.claim(claim())).leases) == 1
    report = await store.maintenance.fsck()
    assert not report.findings, report.findings


async def test_a_worker_marked_dead_on_the_move(cluster: Cluster, store: Backend) -> None:
    """Leases of a dead worker whose executions have not come yet where their slot moves to are expired afterwards."""
    partition = Partition(0)
    await store.execution.create(ExecutionCreate(kind=Kind("k"), lane=Lane("l")))
    await store.execution.create(ExecutionCreate(kind=Kind("k"), lane=Lane("l")))
    (lost,) = (await store.lease.claim(claim())).leases
    (held,) = (await store.lease.claim(claim())).leases
    await store.lease.release(LeaseRelease(execution_id=lost.execution_id, fence=lost.fence))
    target = another(cluster, partition.slot)
    source = cluster.begin_move(partition.slot, target)
    indexes = (partition.due, partition.own, partition.lost)
    source.call("MIGRATE", servers.HOST, target.port, "", 0, 5_000, "KEYS", *indexes)
    before, calls = contents(target, partition.slot), calls_of(target)
    marking = asyncio.create_task(
        store.worker.mark_dead(WorkerMarkDead(worker_instance=WorkerInstance("w"), reason="gone"))
    )
    async with asyncio.timeout(PATIENCE_S):
        while calls_of(target) < calls + 3:
            assert not marking.done()
            await asyncio.sleep(0.01)  # sleeps: until the call has been refused and made again
    assert contents(target, partition.slot) == before
    while cluster.move_keys(partition.slot, source, target, count=100):
        pass
    await blocking(lambda: cluster.end_move(partition.slot, source, target))
    async with asyncio.timeout(PATIENCE_S):
        assert (await marking).leases_expired == 1
    again = (await store.lease.claim(claim())).leases + (await store.lease.claim(claim())).leases
    assert {lease.execution_id for lease in again} == {lost.execution_id, held.execution_id}
    report = await store.maintenance.fsck()
    assert not report.findings, report.findings


async def test_retention_leaves_nothing_behind_on_the_move(cluster: Cluster, store: Backend) -> None:
    """What is over is deleted with its input, also when that has not come yet where their slot moves to."""
    partition = Partition(0)
    large = Payload(b"x" * 100_000, "text/plain")
    for retention_ms in (1, 60_000):
        policy = ExecutionPolicy(retention_ms=retention_ms)
        await store.execution.create(
            ExecutionCreate(kind=Kind("k"), lane=Lane("l"), input=large, policy=policy)
        )
    for _ in range(2):
        (lease,) = (await store.lease.claim(claim())).leases
        await store.execution.complete(ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence))
        if lease.policy.retention_ms == 1:
            over = lease.execution_id
    target = another(cluster, partition.slot)
    source = cluster.begin_move(partition.slot, target)
    names = (partition.execution(over[-36:]), partition.due, partition.all)
    source.call("MIGRATE", servers.HOST, target.port, "", 0, 5_000, "KEYS", *names)
    calls = calls_of(target)
    trimming = asyncio.create_task(store.execution.trim(ExecutionTrim(execution_id=over)))
    async with asyncio.timeout(PATIENCE_S):
        while calls_of(target) < calls + 3:
            assert not trimming.done()
            await asyncio.sleep(0.01)  # sleeps: until the call has been refused and made again
    while cluster.move_keys(partition.slot, source, target, count=100):
        pass
    await blocking(lambda: cluster.end_move(partition.slot, source, target))
    async with asyncio.timeout(PATIENCE_S):
        assert (await trimming).status == "deleted"
    assert len(target.call("KEYS", f"{partition.tag}p:*")) == 1


def calls_of(node: Node) -> int:
    """Return how many functions a node has run."""
    stats = node.info("commandstats").get("cmdstat_fcall", "calls=0,")
    return int(stats.split(",")[0].removeprefix("calls="))
