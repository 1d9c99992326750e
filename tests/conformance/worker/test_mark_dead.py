"""worker.mark_dead: a dead worker's leases expire at once."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput, LeaseExpired, StaleLease
from flowfabric.contract.states import PublicState
from flowfabric.contract.worker import WorkerMarkedDead
from tests.conformance.world import World, policy


async def register(world: World, worker: str = "w") -> None:
    """Register an instance."""
    await world.worker.register(worker_id=worker, worker_instance=f"{worker}-1", lanes=("default",))


async def test_its_leases_expire_and_its_work_is_claimable(world: World) -> None:
    """All leases of the instance expire at once and others can take the work; other workers keep theirs.

    Acceptance: mark-dead-expires-leases-at-once
    """
    await register(world, "a")
    await register(world, "b")
    for _ in range(3):
        await world.create()
    held = await world.claim("a", max_tasks=2)
    kept = await world.claim_one("b")
    reply = await world.worker.mark_dead(worker_instance="a-1", reason="node lost")
    assert reply == WorkerMarkedDead(status="marked", leases_expired=2)
    assert [info.worker_instance for info in (await world.worker.list()).workers] == ["b-1"]
    taken = await world.claim("b", max_tasks=5)
    assert {lease.execution_id for lease in taken} == {lease.execution_id for lease in held}
    assert {lease.attempt_type.value for lease in taken} == {"reclaim"}
    await world.lease.renew(kept)
    await world.refused(StaleLease, world.lease.renew(held[0]))


async def test_the_dead_worker_can_do_nothing_more(world: World) -> None:
    """Before anybody took over, the dead worker's calls are refused as late."""
    await register(world)
    lease = await world.leased("w")
    await world.worker.mark_dead(worker_instance="w-1", reason="node lost")
    await world.refused(LeaseExpired, world.execution.complete(lease))
    event = (await world.history(lease.execution_id))[-1]
    assert (event.name, event.reason) == ("expired", "node lost")


async def test_twice_is_once(world: World) -> None:
    """The second call finds nothing; an instance never registered is answered the same.

    Acceptance: mark-dead-is-idempotent
    """
    await register(world)
    await world.worker.mark_dead(worker_instance="w-1")
    for instance in ("w-1", "never"):
        reply = await world.unchanged(world.worker.mark_dead(worker_instance=instance))
        assert reply == WorkerMarkedDead(status="not_registered", leases_expired=0)


async def test_leases_of_an_unregistered_instance_expire_too(world: World) -> None:
    """Claiming needs no registration, and dying does not either."""
    lease = await world.leased("w")
    reply = await world.worker.mark_dead(worker_instance="w-1")
    assert reply == WorkerMarkedDead(status="not_registered", leases_expired=1)
    assert (await world.claim_one("b")).execution_id == lease.execution_id


async def test_another_namespace_is_another_worker(world: World) -> None:
    """An instance of the same name in another namespace keeps its leases and registration."""
    await register(world)
    lease = await world.leased("w")
    reply = await world.worker.mark_dead(worker_instance="w-1", namespace="other")
    assert reply == WorkerMarkedDead(status="not_registered", leases_expired=0)
    await world.lease.renew(lease)
    await world.worker.heartbeat(worker_instance="w-1")


async def test_grace_and_cap_hold(world: World) -> None:
    """Work of a dead worker waits out its grace, and ends at its cap."""
    held = await world.leased("w", policy=policy(reclaim_grace_ms=5_000))
    capped = await world.leased("w", policy=policy(max_reclaim_count=0))
    reply = await world.worker.mark_dead(worker_instance="w-1")
    assert reply.leases_expired == 2
    assert await world.state(capped.execution_id) is PublicState.FAILED
    assert await world.claim("b") == ()
    await world.advance(5_000)
    assert (await world.claim_one("b")).execution_id == held.execution_id


async def test_many_leases_expire_at_once(world: World) -> None:
    """However many leases the instance holds, all expire."""
    for _ in range(600):
        await world.create()
    held = 0
    while leases := await world.claim("w", max_tasks=limits.CLAIM_TASKS_MAX):
        held += len(leases)
    assert held == 600
    assert (await world.worker.mark_dead(worker_instance="w-1")).leases_expired == 600
    assert len(await world.claim("b", max_tasks=limits.CLAIM_TASKS_MAX)) == limits.CLAIM_TASKS_MAX


@pytest.mark.parametrize(
    "fields",
    [
        {"worker_instance": ""},
        {"namespace": "a b"},
        {"reason": "r" * 257},
        {"reason": "é" * 129},
        {"reason": "two\nlines"},
        {"reason": "\x7f"},
        {"reason": "\x00"},
    ],
    ids=str,
)
async def test_malformed_fields_are_refused(world: World, fields: dict[str, Any]) -> None:
    """Malformed names and reasons over 256 bytes or with control characters are refused, and nobody dies.

    Acceptance: mark-dead-reason-is-bounded
    """
    await register(world)
    await world.refused(InvalidInput, world.worker.mark_dead(**{"worker_instance": "w-1", **fields}))
    reply = await world.worker.mark_dead(worker_instance="w-1", reason="r" * 256)
    assert reply.status == "marked"


async def test_racing_calls_expire_each_lease_once(world: World) -> None:
    """Several calls at once expire every lease once between them."""
    for _ in range(4):
        await world.create()
    await world.claim("w", max_tasks=4)
    replies = await world.race(*(world.worker.mark_dead(worker_instance="w-1") for _ in range(4)))
    assert sum(reply.leases_expired for reply in replies) == 4
