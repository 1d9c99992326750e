"""With `durability=replicated` an acknowledgement means that a replica has it too: other stores have no such level."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from flowfabric.backends import connect
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.store import Store
from flowfabric.contract.errors import OutcomeUnknown, Unavailable, WorkerNotRegistered
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import Kind
from flowfabric.contract.states import Durability
from tests.backends.valkey.conftest import FEW, Opens
from tests.backends.valkey.wire.servers import Cluster, Server, eventually
from tests.backends.valkey.work import in_partition, opened
from tests.backends.working import create, until

REPLICATED = "?durability=replicated"


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    quick = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
    with Server(*quick) as primary, Server(*quick, "--replicaof", "127.0.0.1", str(primary.port)) as replica:
        eventually(lambda: b"master_link_status:up" in replica.call("INFO", "replication"), "it follows")
        yield primary, replica


async def set_state(store: Store, state: str) -> None:
    """Change something global."""
    await store.calls.call(
        None, "lane_set_state", (keys.META, keys.LANES), lane="lane", state=state, version=None
    )


async def test_an_acknowledged_change_is_on_the_replica(pair: tuple[Server, Server], opens: Opens) -> None:
    """When a call has answered the replica has what it wrote."""
    primary, replica = pair
    store = await opens(primary.url + REPLICATED)
    assert store.found.promise.level is Durability.REPLICATED
    for state in ("paused", "active"):
        await set_state(store, state)
        assert replica.call("HGET", keys.LANES, "lane") == primary.call("HGET", keys.LANES, "lane")


async def test_a_missing_acknowledgement_is_an_unknown_outcome(
    pair: tuple[Server, Server], opens: Opens
) -> None:
    """A change that no replica confirms is reported as such, also when a repeat finds it done; refusals stay so."""
    primary, replica = pair
    store, other = await opens(primary.url + REPLICATED), await opens(primary.url + REPLICATED)
    replica.send_signal(signal.SIGSTOP)
    try:
        # The second one finds it done on a connection that wrote nothing, and is not told that all is well.
        for each in (store, other):
            with pytest.raises(OutcomeUnknown, match="no replica"):
                await set_state(each, "paused")
        with pytest.raises(WorkerNotRegistered):
            await store.calls.call(
                None,
                "worker_heartbeat",
                (keys.workers("n"), keys.WORKER_DUE),
                namespace="n",
                worker_instance="i",
            )
    finally:
        replica.send_signal(signal.SIGCONT)
    await set_state(store, "paused")
    assert replica.call("HGET", keys.LANES, "lane") == primary.call("HGET", keys.LANES, "lane")


async def test_a_batch_without_acknowledgement_is_found(pair: tuple[Server, Server]) -> None:
    """What a batch created without a replica's word can be found: the hints of its work and timers are written."""
    primary, replica = pair
    async with opened(primary.url + REPLICATED) as (backend,):
        await create(backend)
        later = await backend.now_ms() + 60_000
        items = [
            ExecutionCreate(kind=Kind("k"), execution_id=in_partition(3)),
            ExecutionCreate(kind=Kind("k"), execution_id=in_partition(4), delay_until_ms=later),
        ]
        replica.pause()
        try:
            with pytest.raises(OutcomeUnknown, match="no replica"):
                await backend.execution.create_many(ExecutionCreateMany(executions=tuple(items)))
        finally:
            replica.resume()
        hints = keys.hints(keys.route_id("default", "default", "k|"))
        await until(lambda: primary.call("ZSCORE", hints, 3) is not None)
        await until(lambda: primary.call("ZSCORE", keys.DUE_HINTS, 4) is not None)


async def test_what_is_written_to_be_waited_for_is_known(pair: tuple[Server, Server]) -> None:
    """The level is reported, and a check of the store finds nothing wrong with it."""
    primary, _ = pair
    backend = await connect(primary.url + REPLICATED, partitions=FEW)
    try:
        await backend.execution.create(ExecutionCreate(kind=Kind("k")))
        assert (await backend.capabilities()).durability is Durability.REPLICATED
        assert (await backend.maintenance.fsck()).findings == ()
    finally:
        await backend.close()


async def test_without_a_replica_it_is_not_opened(single: Server, opens: Opens) -> None:
    """A primary that nobody follows cannot confirm anything: the store is unavailable at this level."""
    with pytest.raises(Unavailable, match="no connected replica"):
        await opens(single.url + REPLICATED)


async def test_confirmed_calls_follow_a_moved_slot(cluster: Cluster, opens: Opens) -> None:
    """On a cluster calls wait for replicas too, and find their slot when it has moved."""
    store = await opens(cluster.url + REPLICATED)
    partition = store.partitions.all[0]
    source = cluster.owner(partition.slot)
    target = next(node for node in cluster.nodes[:3] if node is not source)
    identity = target.call("CLUSTER", "MYID")
    for node in (target, source, *cluster.nodes[:3]):
        node.call("CLUSTER", "SETSLOT", partition.slot, "NODE", identity)
    try:
        async with asyncio.timeout(10):
            await asyncio.gather(
                *(
                    store.calls.call(
                        each, "lane_copy_state", (each.lanes,), lane="lane", state="paused", version=1
                    )
                    for each in store.partitions.all
                )
            )
        assert target.call("HGET", partition.lanes, "lane") == b"paused"
    finally:
        target.call("FLUSHALL")
        for node in (source, target, *cluster.nodes[:3]):
            node.call("CLUSTER", "SETSLOT", partition.slot, "NODE", source.call("CLUSTER", "MYID"))
        eventually(cluster.is_whole, "the cluster is whole again")
