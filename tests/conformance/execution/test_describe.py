"""execution.describe: everything about an execution, and why it is not running."""

from __future__ import annotations

import pytest

from flowfabric.contract.execution import Waiting
from flowfabric.contract.states import PublicState
from tests.conformance import situations
from tests.conformance.world import TTL_MS, World, payload, policy, requiring, retrying


async def waiting(world: World, execution_id: str) -> Waiting:
    """Read why an execution waits; it must say so in a sentence."""
    why = (await world.describe(execution_id)).waiting
    assert why is not None and why.message
    return why


async def register(world: World, worker: str = "w", **fields: object) -> None:
    """Register a worker on lane `default`."""
    await world.worker.register(
        **{"worker_id": worker, "worker_instance": f"{worker}-1", "lanes": ("default",), **fields}
    )


async def test_it_shows_the_live_lease(world: World) -> None:
    """While somebody holds it, the lease and attempt are shown, and nothing is waited for."""
    lease = await world.leased("w")
    seen = await world.describe(lease.execution_id)
    assert seen.public_state is PublicState.ACTIVE and seen.waiting is None
    assert seen.started_at_ms == world.now_ms
    current = seen.current_lease
    assert current is not None
    assert (current.lease_id, current.lease_epoch, current.worker_instance, current.attempt_index) == (
        lease.lease_id,
        lease.lease_epoch,
        "w-1",
        0,
    )
    assert (current.acquired_at_ms, current.expires_at_ms) == (world.now_ms, world.now_ms + TTL_MS)
    assert current.last_renewed_at_ms is None
    world.clock.advance(1_000)
    await world.lease.renew(lease)
    renewed = (await world.describe(lease.execution_id)).current_lease
    assert renewed is not None and renewed.last_renewed_at_ms == world.now_ms


async def test_the_end_takes_the_lease_away(world: World) -> None:
    """After the end no lease is shown, and when it completed and will be removed is.

    Acceptance: full-life-ends-terminal
    """
    lease = await world.leased(policy=policy(retention_ms=5_000))
    world.clock.advance(10)
    await world.lease.renew(lease)
    await world.execution.complete(lease)
    seen = await world.describe(lease.execution_id)
    assert (seen.current_lease, seen.waiting, seen.public_state) == (None, None, PublicState.COMPLETED)
    assert seen.state_vector.terminal_outcome == "success"
    assert seen.completed_at_ms == world.now_ms
    assert seen.retention_due_at_ms == world.now_ms + 5_000
    assert await world.claim() == ()


async def test_without_a_worker_it_says_so(world: World) -> None:
    """With no live worker of its namespace for its kind and lane, that is the reason.

    Acceptance: capable-workers-are-per-namespace
    """
    execution_id = await world.create()
    await register(world, "other-kind", kinds=("x",))
    await register(world, "other-lane", lanes=("x",))
    await register(world, "other-namespace", namespace="x")
    why = await waiting(world, execution_id)
    assert (why.reason, why.missing_capabilities) == ("no_capable_worker", ())


async def test_it_names_the_missing_capabilities(world: World) -> None:
    """With workers that all lack something, the nearest one's missing capabilities are named."""
    execution_id = await world.create(policy=requiring("cuda", "eu", "x"))
    await register(world, "far", capabilities=("x",))
    await register(world, "near", capabilities=("x", "eu"))
    why = await waiting(world, execution_id)
    assert (why.reason, why.missing_capabilities) == ("no_capable_worker", ("cuda",))


async def test_it_says_when_workers_are_busy(world: World) -> None:
    """With a live capable worker it waits for that worker to be free; a lapsed one does not count."""
    execution_id = await world.create(policy=requiring("cuda"))
    await register(world, capabilities=("cuda", "eu"), liveness_ttl_ms=1_000)
    assert (await waiting(world, execution_id)).reason == "workers_busy"
    await world.advance(1_000)
    assert (await waiting(world, execution_id)).reason == "no_capable_worker"


@pytest.mark.parametrize(("state", "reason"), [("paused", "lane_paused"), ("disabled", "lane_disabled")])
async def test_it_says_when_the_lane_is_stopped(world: World, state: str, reason: str) -> None:
    """On a lane that gives no work out, the lane is the reason."""
    execution_id = await world.create()
    await register(world)
    await world.lane.set_state(lane="default", state=state)
    assert (await waiting(world, execution_id)).reason == reason


async def test_it_says_until_when(world: World) -> None:
    """Grants, delays, backoffs and graces say until when they hold it back."""
    granted = await situations.granted(world, lane="a")
    delayed = await situations.delayed(world, lane="b")
    backoff = await world.leased(lane="c", policy=retrying(delay_ms=500))
    await world.execution.fail(backoff)
    now_ms = world.now_ms
    found = [await waiting(world, item) for item in (granted, delayed, backoff.execution_id)]
    assert [(why.reason, why.until_ms) for why in found] == [
        ("granted", now_ms + 60_000),
        ("delayed", now_ms + 60_000),
        ("retry_backoff", now_ms + 500),
    ]
    lease = await world.leased(lane="d", policy=policy(reclaim_grace_ms=7_000))
    await world.advance(TTL_MS)
    why = await waiting(world, lease.execution_id)
    assert (why.reason, why.until_ms) == ("reclaim_grace", lease.lease_expires_at_ms + 7_000)


async def test_it_says_when_somebody_holds_it_back(world: World) -> None:
    """A blocked execution says why it was blocked."""
    execution_id = await world.create()
    await world.execution.block(execution_id, detail="under investigation")
    seen = await world.describe(execution_id)
    assert seen.blocking_detail == "under investigation"
    assert seen.waiting is not None and seen.waiting.reason == "blocked"
    assert "under investigation" in seen.waiting.message


async def test_payloads_are_not_in_it(world: World) -> None:
    """Neither input nor result appears in the description."""
    lease = await world.completed(payload('"secret result"'), input=payload('"secret input"'))
    assert "secret" not in repr(await world.describe(lease.execution_id))
