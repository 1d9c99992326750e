"""The registry is global and leases are in partitions here, and renewals of many leases are merged into one call."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.store import Store
from flowfabric.backends.valkey.worker import ValkeyWorkers
from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput, WorkerNotRegistered
from flowfabric.contract.ids import Lane, Namespace, WorkerId, WorkerInstance
from flowfabric.contract.lease import LeaseRenew
from flowfabric.contract.worker import (
    WorkerExpire,
    WorkerHeartbeat,
    WorkerList,
    WorkerMarkDead,
    WorkerRegister,
)
from tests.backends.valkey.conftest import Opens
from tests.backends.valkey.wire.servers import Cluster, Server
from tests.backends.valkey.work import in_partition, opened, store_of
from tests.backends.working import claim, create

INSTANCE = WorkerInstance("i")


def workers_of(store: Store) -> ValkeyWorkers:
    return ValkeyWorkers(store.calls, store.partitions, store.catalog)


async def register(
    workers: ValkeyWorkers, *instances: str, namespace: str = "default", ttl_ms: int = 1_000
) -> None:
    """Register instances."""
    for instance in instances:
        await workers.register(
            WorkerRegister(
                worker_id=WorkerId("w"),
                worker_instance=WorkerInstance(instance),
                namespace=Namespace(namespace),
                lanes=(Lane("a"),),
                liveness_ttl_ms=ttl_ms,
            )
        )


async def due(store: Store) -> dict[str, int]:
    """Read when the registry has something to do."""
    (found,) = await store.calls.read(None, [("ZRANGE", keys.WORKER_DUE, 0, -1, "WITHSCORES")])
    return {name.decode(): int(score) for name, score in found}


async def test_a_renewal_does_not_depend_on_the_registry(cluster: Cluster) -> None:
    """A lease is renewed in time while the server that has the registry, and not the lease, does not answer."""
    async with opened(cluster.url) as (backend,):
        registry = cluster.owner(keys.GLOBAL_SLOT)
        partition = next(
            each for each in store_of(backend).partitions.all if cluster.owner(each.slot) is not registry
        )
        await create(backend, execution_id=in_partition(partition.number))
        (lease,) = await claim(backend)
        renew = LeaseRenew(execution_id=lease.execution_id, fence=lease.fence)
        await backend.lease.renew(renew)
        registry.pause()
        try:
            async with asyncio.timeout(0.6):
                await backend.lease.renew(renew)
        finally:
            registry.resume()


async def test_renewals_of_one_turn_are_one_call(single: Server, opens: Opens, clock: ManualClock) -> None:
    """A process that renews a hundred leases at once counts the heartbeats in one call per namespace."""
    store = await opens(single.url, clock=clock)
    workers = workers_of(store)
    await register(workers, "i", "j")
    await register(workers, "i", namespace="other")
    clock.advance(10)
    single.call("CONFIG", "RESETSTAT")
    await asyncio.gather(
        *(
            workers.renewed(namespace, instance)
            for namespace in ("default", "other")
            for instance in "ijk" * 30
        )
    )
    stats = single.call("INFO", "commandstats").decode()
    assert "cmdstat_fcall:calls=2," in stats
    until_ms = clock.now_ms() + 1_000
    assert await due(store) == {"default i": until_ms, "default j": until_ms, "other i": until_ms}


async def test_a_renewal_never_refuses(opens: Opens, clock: ManualClock) -> None:
    """An instance that is not registered, or lapsed, stays so; a store that is gone is nobody's heartbeat."""
    with Server() as server:
        store = await opens(server.url, clock=clock)
        workers = workers_of(store)
        await workers.renewed("default", "nobody")
        await register(workers, "i")
        clock.advance(1_000)
        await workers.renewed("default", "i")
        with pytest.raises(WorkerNotRegistered):
            await workers.heartbeat(WorkerHeartbeat(worker_instance=INSTANCE))
        server.call("ACL", "SETUSER", "default", "-fcall")
        await workers.renewed("default", "i")


async def test_the_index_says_when_something_is_to_be_done(
    place: str, opens: Opens, clock: ManualClock
) -> None:
    """Every instance is indexed by when its heartbeat lapses, then by when it is forgotten, then not at all."""
    store = await opens(place, clock=clock)
    workers = workers_of(store)
    await register(workers, "i")
    lapses_ms = clock.now_ms() + 1_000
    assert await due(store) == {"default i": lapses_ms}
    clock.set(lapses_ms)
    command = WorkerExpire(worker_instance=INSTANCE)
    assert (await workers.expire(command)).status == "lapsed"
    forgotten_ms = lapses_ms + limits.WORKER_KEPT_AFTER_LAPSE_MS
    assert await due(store) == {"default i": forgotten_ms}
    clock.set(forgotten_ms)
    assert (await workers.expire(command)).status == "removed"
    assert await due(store) == {}


async def test_an_index_entry_that_is_wrong_is_put_right(
    place: str, opens: Opens, clock: ManualClock
) -> None:
    """An entry that is too early, or stands for nobody, is corrected when it comes due, so that it never loops."""
    store = await opens(place, clock=clock)
    workers = workers_of(store)
    await register(workers, "i")
    await store.calls.read(None, [("ZADD", keys.WORKER_DUE, 1, "default i", 1, "default nobody")])
    for instance in ("i", "nobody"):
        expire = WorkerExpire(worker_instance=WorkerInstance(instance))
        assert (await workers.expire(expire)).status == "not_due"
    assert await due(store) == {"default i": clock.now_ms() + 1_000}


async def test_whoever_sleeps_past_a_new_instance_is_told(
    place: str, opens: Opens, clock: ManualClock
) -> None:
    """The earliest instant of the registry is announced when it becomes earlier, and only then."""
    store = await opens(place, clock=clock)
    workers = workers_of(store)
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    await store.client.subscriber().add(keys.DUE_CHANNEL.encode(), keys.GLOBAL_SLOT, heard.put_nowait)
    for instance, ttl_ms in (("i", 5_000), ("j", 6_000), ("k", 4_000)):
        await register(workers, instance, ttl_ms=ttl_ms)
    now_ms = clock.now_ms()
    async with asyncio.timeout(5):
        assert [int(await heard.get()) for _ in range(2)] == [now_ms + 5_000, now_ms + 4_000]
    assert heard.empty()


async def test_a_dead_worker_leaves_no_entry(place: str, opens: Opens) -> None:
    """What the index of holders still names of a dead instance goes, and other instances keep theirs."""
    store = await opens(place)
    workers = workers_of(store)
    await register(workers, "i")
    uuid = "00000000-0000-4000-8000-000000000000"
    for partition in store.partitions.all:
        for member in (f"default i {uuid}", f"default i2 {uuid}", f"default2 i {uuid}"):
            await store.calls.read(partition, [("ZADD", partition.own, 0, member)])
    (listed,) = (await workers.list(WorkerList())).workers
    assert listed.leases == len(store.partitions.all)
    reply = await workers.mark_dead(WorkerMarkDead(worker_instance=INSTANCE))
    assert (reply.status, reply.leases_expired) == ("marked", 0)
    for partition in store.partitions.all:
        (left,) = await store.calls.read(partition, [("ZRANGE", partition.own, 0, -1)])
        assert left == [f"default i2 {uuid}".encode(), f"default2 i {uuid}".encode()]
    assert (await workers.list(WorkerList())).workers == ()
    assert await due(store) == {}


async def test_defaults_come_in_pairs(place: str, opens: Opens) -> None:
    """A malformed list of defaults is refused before anything is written."""
    store = await opens(place)
    with pytest.raises(InvalidInput):
        await store.calls.call(
            None,
            "worker_register",
            (keys.META, keys.workers("n"), keys.WORKER_DUE, keys.DEFAULTS),
            namespace="n",
            worker_instance="i",
            worker_id="w",
            liveness_ttl_ms=1_000,
            details="[]",
            published=["k"],
        )
    assert (await store.calls.read(None, [("EXISTS", keys.workers("n"), keys.WORKER_DUE)])) == [0]
