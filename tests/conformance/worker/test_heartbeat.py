"""worker.heartbeat: an instance says that it is alive."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract.errors import InvalidInput, WorkerNotRegistered
from flowfabric.contract.worker import WorkerRefreshed
from tests.conformance.world import World


async def test_it_keeps_the_registration_alive(world: World) -> None:
    """The registration lives its TTL from the heartbeat, however often.

    Acceptance: heartbeat-refreshes-liveness
    """
    await world.worker.register(
        worker_id="w", worker_instance="w-1", lanes=("default",), liveness_ttl_ms=1_000
    )
    for _ in range(5):
        await world.advance(999)
        reply = await world.worker.heartbeat(worker_instance="w-1")
        assert reply == WorkerRefreshed(next_expiry_at_ms=world.now_ms + 1_000)
    (info,) = (await world.worker.list()).workers
    assert info.alive and info.last_heartbeat_at_ms == world.now_ms


@pytest.mark.parametrize("recorded", [False, True])
async def test_a_lapsed_registration_must_be_made_again(world: World, recorded: bool) -> None:
    """From the instant it lapses a heartbeat is refused, whether or not a timer noticed.

    Acceptance: heartbeat-of-absent-or-lapsed-is-refused
    """
    await world.worker.register(
        worker_id="w", worker_instance="w-1", lanes=("default",), liveness_ttl_ms=1_000
    )
    world.clock.advance(1_000)
    if recorded:
        await world.advance(0)
    await world.refused(WorkerNotRegistered, world.worker.heartbeat(worker_instance="w-1"))


async def test_an_unknown_instance_is_not_registered(world: World) -> None:
    """An instance never registered, marked dead, or registered in another namespace is not registered here."""
    await world.refused(WorkerNotRegistered, world.worker.heartbeat(worker_instance="w-1"))
    await world.worker.register(worker_id="w", worker_instance="w-1", lanes=("default",))
    other = world.worker.heartbeat(worker_instance="w-1", namespace="other")
    await world.refused(WorkerNotRegistered, other)
    await world.worker.mark_dead(worker_instance="w-1")
    await world.refused(WorkerNotRegistered, world.worker.heartbeat(worker_instance="w-1"))


@pytest.mark.parametrize(
    "fields", [{"worker_instance": ""}, {"worker_instance": "i" * 129}, {"namespace": "{n}"}], ids=str
)
async def test_malformed_names_are_refused(world: World, fields: dict[str, Any]) -> None:
    """Malformed names are refused before anything is looked for."""
    await world.refused(InvalidInput, world.worker.heartbeat(**{"worker_instance": "w-1", **fields}))


async def test_racing_heartbeats_all_answer(world: World) -> None:
    """Heartbeats at the same time all succeed."""
    await world.worker.register(worker_id="w", worker_instance="w-1", lanes=("default",))
    replies = await world.race(*(world.worker.heartbeat(worker_instance="w-1") for _ in range(5)))
    assert {type(reply) for reply in replies} == {WorkerRefreshed}
