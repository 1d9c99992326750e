"""The registry is rows here, renewals of many leases are merged into one call, and rivals come in turn."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.contract import limits
from flowfabric.contract.errors import InstanceReassigned, WorkerNotRegistered
from flowfabric.contract.execution import ExecutionCreate, ExecutionDescribe
from flowfabric.contract.ids import Kind, Lane, Namespace, WorkerId, WorkerInstance
from flowfabric.contract.lease import LeaseRenew
from flowfabric.contract.policies import KindDefaults
from flowfabric.contract.worker import (
    WorkerExpire,
    WorkerHeartbeat,
    WorkerList,
    WorkerMarkDead,
    WorkerRegister,
    WorkerRegistered,
)
from tests.backends.postgres.work import opened
from tests.backends.working import claim, create_many
from tests.postgres.servers import Node

INSTANCE = WorkerInstance("i")


async def register(
    backend: PostgresBackend,
    *instances: str,
    namespace: str = "default",
    ttl_ms: int = 1_000,
    worker: str = "w",
    kinds: tuple[str, ...] = (),
) -> list[WorkerRegistered]:
    """Register instances."""
    return [
        await backend.worker.register(
            WorkerRegister(
                worker_id=WorkerId(worker),
                worker_instance=WorkerInstance(instance),
                namespace=Namespace(namespace),
                lanes=(Lane("a"),),
                liveness_ttl_ms=ttl_ms,
                defaults=tuple(KindDefaults(kind=Kind(kind), priority=1) for kind in kinds),
            )
        )
        for instance in instances
    ]


async def due(url: str) -> dict[str, int]:
    """Read when the registry has something to do."""
    connection = await asyncpg.connect(url)
    found = await connection.fetch("SELECT namespace, instance, due_at_ms FROM ff.worker")
    await connection.close()
    return {f"{row['namespace']} {row['instance']}": row["due_at_ms"] for row in found}


async def test_renewals_are_heartbeats(still_node: Node, clock: ManualClock) -> None:
    """Renewing many leases at once counts as one heartbeat of each worker; who is not registered stays so."""
    async with opened(still_node.url, clock=clock) as (backend,):
        await register(backend, "i", "j")
        await register(backend, "i", namespace="other")
        await create_many(backend, [ExecutionCreate(kind=Kind("k"))] * 30)
        leases = [lease for worker in "ijk" for lease in await claim(backend, worker, max_tasks=10)]
        assert len(leases) == 30
        before_ms = clock.now_ms() + 1_000
        clock.advance(10)
        renewals = [LeaseRenew(execution_id=lease.execution_id, fence=lease.fence) for lease in leases]
        await asyncio.gather(*map(backend.lease.renew, renewals))
        until_ms = clock.now_ms() + 1_000
        assert await due(still_node.url) == {
            "default i": until_ms,
            "default j": until_ms,
            "other i": before_ms,
        }


async def test_a_renewal_does_not_bring_a_worker_back(still_node: Node, clock: ManualClock) -> None:
    """An instance whose heartbeats lapsed stays so, however often it renews its leases."""
    async with opened(still_node.url, clock=clock) as (backend,):
        await register(backend, "i")
        await create_many(backend, [ExecutionCreate(kind=Kind("k"))])
        (lease,) = await claim(backend, "i")
        clock.advance(1_000)
        await backend.lease.renew(LeaseRenew(execution_id=lease.execution_id, fence=lease.fence))
        with pytest.raises(WorkerNotRegistered):
            await backend.worker.heartbeat(WorkerHeartbeat(worker_instance=INSTANCE))
        assert (await backend.worker.list(WorkerList())).workers[0].last_heartbeat_at_ms == (
            clock.now_ms() - 1_000
        )


async def test_the_row_says_when_something_is_to_be_done(still_node: Node, clock: ManualClock) -> None:
    """Every instance is due when its heartbeat lapses, then when it is forgotten, then not at all."""
    async with opened(still_node.url, clock=clock) as (backend,):
        await register(backend, "i")
        lapses_ms = clock.now_ms() + 1_000
        assert await due(still_node.url) == {"default i": lapses_ms}
        clock.set(lapses_ms)
        command = WorkerExpire(worker_instance=INSTANCE)
        assert (await backend.worker.expire(command)).status == "lapsed"
        forgotten_ms = lapses_ms + limits.WORKER_KEPT_AFTER_LAPSE_MS
        assert await due(still_node.url) == {"default i": forgotten_ms}
        assert (await backend.worker.expire(command)).status == "not_due"
        clock.set(forgotten_ms)
        assert (await backend.worker.expire(command)).status == "removed"
        assert await due(still_node.url) == {}


async def test_rivals_for_an_instance_come_in_turn(place: str) -> None:
    """Of processes that register one instance at once under different workers one wins, the others are told by whom."""
    async with opened(place, 3) as backends:
        for turn in range(10):
            found = await asyncio.gather(
                *(
                    register(backend, f"i{turn}", worker=f"w{number}", ttl_ms=60_000)
                    for number, backend in enumerate(backends)
                ),
                return_exceptions=True,
            )
            refused = [error for error in found if isinstance(error, BaseException)]
            assert len(refused) == 2 and all(isinstance(error, InstanceReassigned) for error in refused)
            (winner,) = {
                worker.worker_id
                for worker in (await backends[0].worker.list(WorkerList())).workers
                if worker.worker_instance == f"i{turn}"
            }
            assert all(f"registered by worker {winner}" in str(error) for error in refused)


async def test_registering_and_leaving_do_not_get_in_each_others_way(place: str) -> None:
    """Instances that register, beat and are marked dead at once always get one of the answers of the contract."""
    async with opened(place, 2) as backends:

        async def go(backend: PostgresBackend, number: int) -> None:
            for _ in range(20):
                kinds = ("a", "b", "c") if number % 2 else ("c", "b", "a")
                await register(backend, "i", ttl_ms=60_000, kinds=kinds)
                try:
                    await backend.worker.heartbeat(WorkerHeartbeat(worker_instance=INSTANCE))
                except WorkerNotRegistered:
                    continue
                await backend.worker.mark_dead(WorkerMarkDead(worker_instance=INSTANCE))

        await asyncio.gather(*(go(backend, number) for backend in backends for number in range(4)))
        assert await due(place) == {}


async def test_a_dead_worker_loses_many_leases_in_steps(place: str) -> None:
    """All leases of an instance expire when it is marked dead, more than one statement takes; others keep theirs."""
    async with opened(place) as (backend,):
        await create_many(backend, [ExecutionCreate(kind=Kind("k")) for _ in range(700)])
        held = 0
        while held < 600:
            held += len(await claim(backend, "dead", max_tasks=min(256, 600 - held)))
        (kept, *_) = await claim(backend, "dead2", max_tasks=100)
        await register(backend, "dead", "dead2", ttl_ms=60_000)
        page = await backend.worker.list(WorkerList())
        assert [(worker.worker_instance, worker.leases) for worker in page.workers] == [
            ("dead", 600),
            ("dead2", 100),
        ]
        marked = await backend.worker.mark_dead(WorkerMarkDead(worker_instance=WorkerInstance("dead")))
        assert (marked.status, marked.leases_expired) == ("marked", 600)
        again = await backend.worker.mark_dead(WorkerMarkDead(worker_instance=WorkerInstance("dead")))
        assert (again.status, again.leases_expired) == ("not_registered", 0)
        (left,) = (await backend.worker.list(WorkerList())).workers
        assert (left.worker_instance, left.leases) == ("dead2", 100)
        snapshot = await backend.execution.describe(ExecutionDescribe(execution_id=kept.execution_id))
        assert snapshot.public_state == "active"
        assert len(await claim(backend, "heir", max_tasks=256)) == 256


async def test_pages_are_by_name(place: str) -> None:
    """Instances come by name, byte by byte, and a page ends where it was asked to."""
    names = ["B", "a", "a-1", "a.1", "a/1", "a:1", "a@1", "b"]
    async with opened(place) as (backend,):
        await register(backend, *names)
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = await backend.worker.list(WorkerList(cursor=cursor, limit=3))
            found += [worker.worker_instance for worker in page.workers]
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
        assert found == sorted(names)
