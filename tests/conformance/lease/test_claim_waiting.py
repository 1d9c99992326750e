"""lease.claim with `wait_ms`: whatever makes work claimable wakes whoever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.lease import Lease
from tests.conformance import situations
from tests.conformance.world import PATIENCE_S, TTL_MS, World, requiring, retrying


async def waiter(world: World, worker: str = "waiter", **fields: Any) -> asyncio.Task[tuple[Lease, ...]]:
    """Start a claim that waits, and see to it that it really does."""
    task = asyncio.create_task(world.claim(worker, wait_ms=limits.WAIT_MAX_MS, **fields))
    await asyncio.sleep(0.02)  # sleeps: so that the claim is really waiting when the work comes
    assert not task.done()
    return task


async def served(task: asyncio.Task[tuple[Lease, ...]]) -> Lease:
    """Wait until the claim has its lease."""
    (lease,) = await asyncio.wait_for(task, PATIENCE_S)
    return lease


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Give up claims that still wait."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _replay(world: World) -> None:
    await world.execution.replay(await situations.cancelled(world))


async def _unblock(world: World) -> None:
    await world.execution.unblock((await world.listed())[0])


async def _create_on_paused_lane(world: World) -> None:
    await world.create()
    await world.lane.set_state(lane="default", state="paused")


async def _resume_lane(world: World) -> None:
    await world.lane.set_state(lane="default", state="active")


async def _finish(world: World, name: str, **fields: Any) -> None:
    (info,) = (await world.execution.list()).executions
    source = {"source": "operator_override"} if name.startswith("execution") else {}
    await world.call(name, info.execution_id, **source, **fields)


async def _advance(world: World) -> None:
    await world.advance(60_000)


async def _mark_dead(world: World) -> None:
    await world.worker.mark_dead(worker_instance="w-1")


Step = Callable[[World], Awaitable[Any]]
WAKING: dict[str, tuple[Step | None, Step]] = {
    "create": (None, lambda world: world.create()),
    "replay": (None, _replay),
    "unblock": (situations.blocked, _unblock),
    "delay over": (situations.delayed, _advance),
    "backoff over": (situations.retry_backoff, _advance),
    "grant expired": (situations.granted, _advance),
    "lease expired": (lambda world: world.leased(), _advance),
    "revoke": (situations.leased, lambda world: _finish(world, "lease.revoke")),
    "worker dead": (situations.leased, _mark_dead),
    "retry at once": (
        lambda world: situations.leased(world, policy=retrying(delay_ms=0)),
        lambda world: _finish(world, "execution.fail"),
    ),
    "delay now": (situations.leased, lambda world: _finish(world, "execution.delay", delay_until_ms=0)),
    "wait_children": (situations.leased, lambda world: _finish(world, "execution.wait_children")),
    "lane resumed": (_create_on_paused_lane, _resume_lane),
}


@pytest.mark.parametrize(("before", "step"), WAKING.values(), ids=WAKING)
async def test_whatever_makes_work_claimable_wakes(world: World, before: Step | None, step: Step) -> None:
    """Every operation and timer that makes an execution claimable wakes a waiting claim, which gets it.

    Acceptance: waiting-claim-is-woken-by-push
    """
    if before is not None:
        await before(world)
    task = await waiter(world)
    await step(world)
    lease = await served(task)
    assert lease.execution_id in await world.listed()


async def test_handing_back_wakes(world: World) -> None:
    """A released execution goes to a waiting claim at once."""
    lease = await world.leased()
    task = await waiter(world)
    await world.lease.release(lease)
    assert (await served(task)).execution_id == lease.execution_id


async def test_with_work_there_it_does_not_wait(world: World) -> None:
    """A claim that waits answers at once with what there is, even when that is less than asked for."""
    execution_id = await world.create()
    leases = await asyncio.wait_for(world.claim(wait_ms=limits.WAIT_MAX_MS, max_tasks=10), PATIENCE_S)
    assert [lease.execution_id for lease in leases] == [execution_id]


async def test_waiting_in_vain_is_empty(world: World) -> None:
    """When the wait is over without work the answer is empty, and nothing has changed.

    Acceptance: claim-wait-ends-empty
    """
    assert await world.unchanged(world.claim(wait_ms=30)) == ()


async def test_work_for_others_wakes_nobody_in_vain(world: World) -> None:
    """Work of other lanes, kinds, namespaces or requirements leaves the waiting claim waiting.

    Acceptance: waiting-claims-get-only-what-they-serve
    """
    task = await waiter(world, kinds=("k",), capabilities=("cpu",))
    await world.create(lane="other")
    await world.create(kind="other")
    await world.create(namespace="other")
    await world.create(policy=requiring("gpu"))
    await asyncio.sleep(0.05)  # sleeps: so that a wrong wake-up would show
    assert not task.done()
    execution_id = await world.create(policy=requiring("cpu"))
    assert (await served(task)).execution_id == execution_id


async def test_a_route_seen_for_the_first_time_wakes(world: World) -> None:
    """A kind and capability set never used before wakes a claim that serves any kind."""
    task = await waiter(world, capabilities=("a", "b", "c"))
    execution_id = await world.create(kind="never-seen", policy=requiring("b", "c"))
    assert (await served(task)).execution_id == execution_id


async def test_one_execution_wakes_one_and_the_others_go_on_waiting(world: World) -> None:
    """Of several waiting claims one gets a single new execution; each further one goes to another waiter.

    Acceptance: every-new-execution-finds-a-waiter
    """
    tasks = [await waiter(world, f"w{number}") for number in range(4)]
    created: list[str] = []
    for expected in range(1, 5):
        waiting = [task for task in tasks if not task.done()]
        created.append(await world.create())
        await asyncio.wait(waiting, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        assert sum(task.done() for task in tasks) == expected
    assert sorted([(await served(task)).execution_id for task in tasks]) == sorted(created)


async def test_a_burst_is_drained_by_whoever_waits(world: World) -> None:
    """Many executions at once all find their way to the waiting claims.

    Acceptance: one-wake-drains-a-burst
    """
    tasks = [await waiter(world, f"w{number}", max_tasks=5) for number in range(4)]
    for _ in range(4):
        await world.create()
    got: list[Lease] = []
    while len(got) < 4:
        done, _ = await asyncio.wait(tasks, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        assert done, "nobody was woken"
        for task in done:
            got += task.result()
            tasks.remove(task)
    assert len({lease.execution_id for lease in got}) == 4
    await stop(*tasks)


async def test_who_gave_up_is_given_nothing(world: World) -> None:
    """A claim whose caller went away takes no work with it.

    Acceptance: gone-claimers-get-no-lease
    """
    task = await waiter(world, "gone")
    await stop(task)
    execution_id = await world.create()
    assert (await world.claim_one("here")).execution_id == execution_id


async def test_a_waiting_claim_holds_up_nobody(world: World) -> None:
    """While claims wait, everything else goes on.

    Acceptance: waiting-calls-hold-up-nobody
    """
    tasks = [await waiter(world, f"w{number}", lanes=("never",)) for number in range(50)]
    lease = await asyncio.wait_for(world.leased(), PATIENCE_S)
    await asyncio.wait_for(world.execution.complete(lease), PATIENCE_S)
    await stop(*tasks)


async def test_closing_the_store_ends_the_wait(closing: World) -> None:
    """A claim that waits when the store is closed is told that the store is unavailable."""
    task = await waiter(closing)
    await closing.backend.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(task, PATIENCE_S)


async def test_the_ttl_counts_from_the_lease(world: World) -> None:
    """A lease got after waiting lives its whole time from when it was given."""
    task = await waiter(world)
    world.clock.advance(5_000)
    await world.create()
    assert (await served(task)).lease_expires_at_ms == world.now_ms + TTL_MS
