"""Slots move to other primaries while functions run in them: each call is executed whole, or refused and made again.

Moving a slot in one step needs Valkey 9.0: with an older server that test does not exist.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TypeVar

import pytest

from flowfabric import backends
from flowfabric.backends.valkey.keys import GLOBAL_SLOT, Partition, Partitions
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionTrim
from flowfabric.contract.ids import ExecutionId, Kind, Lane, PartitionCounts, WorkerId, WorkerInstance
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.lease import Lease, LeaseClaim, LeaseRelease
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
T = TypeVar("T")


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


# One call, step by step ---------------------------------------------------------------------------------------------


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[Backend]:
    """A store of one partition, which must be sound at the end."""
    backend = await backends.connect(cluster.url, partitions=ONE)
    yield backend
    report = await backend.maintenance.fsck()
    await backend.close()
    assert not report.findings, report.findings


class HalfMoved:
    """A partition on the move: what has been brought is where it moves to, the rest is where it was."""

    def __init__(self, cluster: Cluster, partition: Partition) -> None:
        self._cluster = cluster
        self._slot = partition.slot
        self.target = another(cluster, self._slot)
        self.source = cluster.begin_move(self._slot, self.target)

    def bring(self, *names: str | bytes) -> None:
        """Move these keys."""
        self.source.call("MIGRATE", servers.HOST, self.target.port, "", 0, 5_000, "KEYS", *names)

    async def meet(self, node: Node, call: Awaitable[T]) -> asyncio.Future[T]:
        """Make a call, and return it when a node has refused it and was asked again; it wrote nothing there."""
        before, calls = self._contents(node), calls_of(node)
        made = asyncio.ensure_future(call)
        async with asyncio.timeout(PATIENCE_S):
            while calls_of(node) < calls + 3:
                assert not made.done()
                await asyncio.sleep(0.01)  # sleeps: until the call has been refused and made again
        assert self._contents(node) == before
        return made

    async def finish(self, made: asyncio.Future[T]) -> T:
        """Move the rest, and return what the call answers then."""
        while self._cluster.move_keys(self._slot, self.source, self.target, count=100):
            pass
        await blocking(lambda: self._cluster.end_move(self._slot, self.source, self.target))
        async with asyncio.timeout(PATIENCE_S):
            return await made

    def _contents(self, node: Node) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for name in node.call("CLUSTER", "GETKEYSINSLOT", self._slot, 1_000):
            node.call("ASKING")
            found[name] = node.call("DUMP", name)
        return found


def calls_of(node: Node) -> int:
    """Return how many functions a node has run."""
    stats = node.info("commandstats").get("cmdstat_fcall", "calls=0,")
    return int(stats.split(",")[0].removeprefix("calls="))


async def claim(store: Backend) -> tuple[Lease, ...]:
    """Claim one."""
    command = LeaseClaim(worker_id=WorkerId("w"), worker_instance=WorkerInstance("w"), lanes=(Lane("l"),))
    return (await store.lease.claim(command)).leases


async def complete(store: Backend, *leases: Lease) -> None:
    """Complete what is held."""
    for each in leases:
        await store.execution.complete(ExecutionComplete(execution_id=each.execution_id, fence=each.fence))


async def lost_and_held(store: Backend, *, waiting: int) -> tuple[Lease, Lease]:
    """Create executions of which one was leased and given back, one is leased, and the others wait.

    A lane is stopped too: every key that a claim names exists then.
    """
    await store.lane.set_state(LaneSetState(lane=Lane("other"), state=LaneState.PAUSED))
    for _ in range(waiting + 2):
        await store.execution.create(ExecutionCreate(kind=Kind("k"), lane=Lane("l")))
    (lost,) = await claim(store)
    (held,) = await claim(store)
    await store.lease.release(LeaseRelease(execution_id=lost.execution_id, fence=lost.fence))
    return lost, held


async def test_a_claim_that_meets_a_key_on_the_move_writes_nothing(cluster: Cluster, store: Backend) -> None:
    """A claim runs when the keys it names are all there; an execution that has moved already makes it refuse whole.

    It is made again until the slot has moved, and then leases what it would have leased.
    """
    partition = Partition(0)
    _, held = await lost_and_held(store, waiting=1)
    move = HalfMoved(cluster, partition)
    executions = move.source.call("KEYS", f"{partition.tag}x:*")
    move.bring(*(name for name in executions if name[-36:].decode() != held.execution_id[-36:]))
    (lease,) = await move.finish(await move.meet(move.source, claim(store)))
    assert lease.execution_id != held.execution_id
    await complete(store, lease, held)


async def test_a_claim_that_comes_before_its_work_overlooks_nothing(cluster: Cluster, store: Backend) -> None:
    """A claim may run where a slot moves to once the keys it names are there; what comes later is waited for."""
    partition = Partition(0)
    _, held = await lost_and_held(store, waiting=1)
    move = HalfMoved(cluster, partition)
    indexes = move.source.call("KEYS", f"{partition.tag}q:*")
    move.bring(partition.due, partition.own, partition.lost, partition.lanes, *indexes)
    (lease,) = await move.finish(await move.meet(move.target, claim(store)))
    await complete(store, lease, held)
    assert len(await claim(store)) == 1


async def test_a_worker_marked_dead_on_the_move(cluster: Cluster, store: Backend) -> None:
    """Leases of a dead worker whose executions have not come yet where their slot moves to are expired afterwards."""
    partition = Partition(0)
    lost, held = await lost_and_held(store, waiting=0)
    move = HalfMoved(cluster, partition)
    move.bring(partition.due, partition.own, partition.lost)
    dead = WorkerMarkDead(worker_instance=WorkerInstance("w"), reason="gone")
    marked = await move.finish(await move.meet(move.target, store.worker.mark_dead(dead)))
    assert marked.leases_expired == 1
    again = await claim(store) + await claim(store)
    assert {lease.execution_id for lease in again} == {lost.execution_id, held.execution_id}


async def test_retention_leaves_nothing_behind_on_the_move(cluster: Cluster, store: Backend) -> None:
    """What is over is deleted with its input, also when that has not come yet where their slot moves to."""
    partition = Partition(0)
    large = Payload(b"x" * 100_000, "text/plain")
    created: list[ExecutionId] = []
    for retention_ms in (1, 60_000):
        policy = ExecutionPolicy(retention_ms=retention_ms)
        command = ExecutionCreate(kind=Kind("k"), lane=Lane("l"), input=large, policy=policy)
        created.append((await store.execution.create(command)).execution_id)
        await complete(store, *await claim(store))
    over = created[0]
    move = HalfMoved(cluster, partition)
    move.bring(partition.execution(over[-36:]), partition.due, partition.all)
    trim = store.execution.trim(ExecutionTrim(execution_id=over))
    trimmed = await move.finish(await move.meet(move.target, trim))
    assert trimmed.status == "deleted"
    assert len(move.target.call("KEYS", f"{partition.tag}p:*")) == 1
