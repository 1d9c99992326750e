"""worker.expire: overdue registrations lapse, and are forgotten long after."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.worker import WorkerExpired
from tests.conformance.world import World


async def status(world: World) -> str:
    """Apply the timer of instance `w-1` by hand."""
    return (await world.worker.expire(worker_instance="w-1")).status


async def register(world: World) -> None:
    """Register instance `w-1` for a second."""
    await world.worker.register(
        worker_id="w", worker_instance="w-1", lanes=("default",), liveness_ttl_ms=1_000
    )


async def test_it_lapses_and_is_removed_when_due(world: World) -> None:
    """Not before its heartbeat is overdue; then it is shown as not alive; an hour later it is gone.

    Acceptance: lapsed-workers-are-swept
    """
    await register(world)
    world.clock.advance(999)
    assert await world.unchanged(world.worker.expire(worker_instance="w-1")) == WorkerExpired(
        status="not_due"
    )
    world.clock.advance(1)
    assert await status(world) == "lapsed"
    (info,) = (await world.worker.list()).workers
    assert not info.alive
    assert await status(world) == "not_due"
    world.clock.advance(limits.WORKER_KEPT_AFTER_LAPSE_MS - 1)
    assert await status(world) == "not_due"
    world.clock.advance(1)
    assert await status(world) == "removed"
    assert (await world.worker.list()).workers == ()
    assert await status(world) == "not_due"


async def test_the_timers_do_it_by_themselves(world: World) -> None:
    """The engine's timers let registrations lapse and forget them."""
    await register(world)
    assert await world.advance(1_000) == 1
    assert await world.advance(limits.WORKER_KEPT_AFTER_LAPSE_MS) == 1
    assert (await world.worker.list()).workers == ()


async def test_leases_are_not_touched(world: World) -> None:
    """A lapsed heartbeat marks the registry only: the worker's lease lives on.

    Acceptance: lapsed-heartbeat-keeps-leases
    """
    await register(world)
    lease = await world.leased("w")
    await world.advance(1_000)
    (info,) = (await world.worker.list()).workers
    assert (info.alive, info.leases) == (False, 1)
    await world.execution.complete(lease)


async def test_an_unknown_instance_is_not_due(world: World) -> None:
    """An instance that is not registered has nothing to expire."""
    assert (await world.unchanged(world.worker.expire(worker_instance="never"))).status == "not_due"


@pytest.mark.parametrize("fields", [{"worker_instance": "a b"}, {"namespace": ""}], ids=str)
async def test_malformed_names_are_refused(world: World, fields: dict[str, Any]) -> None:
    """Malformed names are refused."""
    await world.refused(InvalidInput, world.worker.expire(**{"worker_instance": "w-1", **fields}))


async def test_racing_timers_act_once(world: World) -> None:
    """The same timer applied several times at once acts once."""
    await register(world)
    world.clock.advance(1_000)
    replies = await world.race(*(world.worker.expire(worker_instance="w-1") for _ in range(4)))
    assert sorted(reply.status for reply in replies) == ["lapsed", "not_due", "not_due", "not_due"]
