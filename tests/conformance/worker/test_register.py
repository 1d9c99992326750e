"""worker.register: an instance announces itself, its lanes, kinds, capabilities and defaults."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    InstanceReassigned,
    InvalidCapabilities,
    InvalidInput,
    InvalidPolicy,
    Refused,
)
from flowfabric.contract.policies import KindDefaults
from flowfabric.contract.worker import WorkerRegistered
from tests.conformance.world import World, lost, policy, requiring, won

KNOWN: dict[str, Any] = {"worker_id": "w", "worker_instance": "w-1", "lanes": ("default",)}


async def register(world: World, **fields: Any) -> WorkerRegistered:
    """Register instance `w-1` of worker `w`."""
    return await world.worker.register(**{**KNOWN, **fields})


async def test_a_new_instance_is_registered_then_refreshed(world: World) -> None:
    """The first registration is new; the next one refreshes lanes, kinds, capabilities and TTL.

    Acceptance: register-then-refresh
    """
    first = await register(world, liveness_ttl_ms=5_000)
    assert first == WorkerRegistered(status="registered", next_expiry_at_ms=world.now_ms + 5_000)
    registered_ms = world.now_ms
    world.clock.advance(1_000)
    fields = {"lanes": ("a", "b"), "kinds": ("k",), "capabilities": ("y", "x"), "liveness_ttl_ms": 7_000}
    again = await register(world, **fields)
    assert again == WorkerRegistered(status="refreshed", next_expiry_at_ms=world.now_ms + 7_000)
    (info,) = (await world.worker.list()).workers
    assert (info.worker_id, info.worker_instance, info.namespace) == ("w", "w-1", "default")
    assert (info.lanes, info.kinds, info.capabilities) == (("a", "b"), ("k",), ("x", "y"))
    assert (info.registered_at_ms, info.last_heartbeat_at_ms) == (registered_ms, world.now_ms)
    assert (info.liveness_ttl_ms, info.alive, info.leases) == (7_000, True, 0)


async def test_an_instance_belongs_to_one_worker(world: World) -> None:
    """While it is alive an instance cannot be registered by another worker id; in another namespace it can.

    Acceptance: instance-reassigned-is-refused
    """
    await register(world, liveness_ttl_ms=5_000)
    await world.refused(InstanceReassigned, register(world, worker_id="other"))
    await register(world, worker_id="other", namespace="elsewhere")
    await world.advance(5_000)
    assert (await register(world, worker_id="other")).status == "registered"


async def test_after_its_heartbeat_lapsed_it_is_new(world: World) -> None:
    """A registration whose heartbeat lapsed is made anew, whether or not a timer noticed."""
    await register(world, liveness_ttl_ms=1_000)
    world.clock.advance(1_000)
    assert (await register(world)).status == "registered"
    (info,) = (await world.worker.list()).workers
    assert info.registered_at_ms == world.now_ms


async def test_registering_makes_no_one_wait(world: World) -> None:
    """Work that waited for a capable worker is given to one as soon as it claims.

    Acceptance: a-capable-worker-appearing-unblocks
    """
    execution_id = await world.create(policy=requiring("rare"))
    assert await world.claim() == ()
    await register(world, capabilities=("rare",))
    why = (await world.describe(execution_id)).waiting
    assert why is not None and why.reason == "workers_busy"
    assert (await world.claim_one("w", capabilities=("rare",))).execution_id == execution_id


async def test_published_defaults_outlive_the_worker(world: World) -> None:
    """Defaults stay after the worker is gone; the latest published ones count, and refreshing without keeps them.

    Acceptance: published-defaults-outlive-the-worker
    """
    await register(world, defaults=(KindDefaults(kind="k", lane="gpu", priority=1),))  # type: ignore[arg-type]
    await world.worker.mark_dead(worker_instance="w-1")
    assert (await world.execution.create(kind="k")).lane == "gpu"
    await register(world)
    assert (await world.execution.create(kind="k")).lane == "gpu"
    await register(world, defaults=(KindDefaults(kind="k", lane="cpu"),))  # type: ignore[arg-type]
    reply = await world.execution.create(kind="k")
    assert (reply.lane, reply.priority) == ("cpu", 0)


async def test_racing_workers_get_an_instance_once(world: World) -> None:
    """Of two workers that register one instance at once one gets it."""
    outcomes = await world.race(*(register(world, worker_id=f"w{number}") for number in range(4)))
    assert len(won(outcomes)) == 1 and lost(outcomes) == ["instance_reassigned"] * 3


MANY = tuple(KindDefaults(kind=f"k{number}") for number in range(limits.WORKER_KINDS_MAX))  # type: ignore[arg-type]
AT_LIMIT: dict[str, dict[str, Any]] = {
    "names": {"worker_id": "w" * 128, "worker_instance": "i" * 128, "namespace": "n" * 128},
    "lanes": {"lanes": tuple(f"lane-{number}" for number in range(64))},
    "kinds": {"kinds": tuple(f"k{number}" for number in range(limits.WORKER_KINDS_MAX))},
    "capabilities": {"capabilities": tuple(f"t{number}" for number in range(256))},
    "short ttl": {"liveness_ttl_ms": limits.LIVENESS_TTL_MIN_MS},
    "long ttl": {"liveness_ttl_ms": limits.LIVENESS_TTL_MAX_MS},
    "defaults": {"defaults": MANY},
}


@pytest.mark.parametrize("fields", AT_LIMIT.values(), ids=AT_LIMIT)
async def test_a_field_at_its_bound_is_accepted(world: World, fields: dict[str, Any]) -> None:
    """Every field is accepted up to and including its bound."""
    assert (await register(world, **fields)).status == "registered"


BAD_DEFAULTS = (KindDefaults(kind="k", policy=policy(retention_ms=-1)),)  # type: ignore[arg-type]
PAST_LIMIT: dict[str, tuple[dict[str, Any], type[Refused]]] = {
    "worker": ({"worker_id": "w" * 129}, InvalidInput),
    "worker braces": ({"worker_id": "{w}"}, InvalidInput),
    "instance": ({"worker_instance": ""}, InvalidInput),
    "namespace": ({"namespace": "a b"}, InvalidInput),
    "no lanes": ({"lanes": ()}, InvalidInput),
    "lanes": ({"lanes": tuple(f"lane-{number}" for number in range(65))}, InvalidInput),
    "lane": ({"lanes": ("a b",)}, InvalidInput),
    "kinds": ({"kinds": tuple(f"k{number}" for number in range(limits.WORKER_KINDS_MAX + 1))}, InvalidInput),
    "kind": ({"kinds": ("{k}",)}, InvalidInput),
    "short ttl": ({"liveness_ttl_ms": limits.LIVENESS_TTL_MIN_MS - 1}, InvalidInput),
    "long ttl": ({"liveness_ttl_ms": limits.LIVENESS_TTL_MAX_MS + 1}, InvalidInput),
    "capability": ({"capabilities": ("a b",)}, InvalidCapabilities),
    "capabilities": ({"capabilities": tuple(f"t{number}" for number in range(257))}, InvalidCapabilities),
    "defaults": ({"defaults": (*MANY, KindDefaults(kind="more"))}, InvalidInput),  # type: ignore[arg-type]
    "default kind": ({"defaults": (KindDefaults(kind=""),)}, InvalidInput),  # type: ignore[arg-type]
    "default lane": ({"defaults": (KindDefaults(kind="k", lane="a b"),)}, InvalidInput),  # type: ignore[arg-type]
    "default policy": ({"defaults": BAD_DEFAULTS}, InvalidPolicy),
    "default capability": (
        {"defaults": (KindDefaults(kind="k", policy=requiring("")),)},  # type: ignore[arg-type]
        InvalidCapabilities,
    ),
}


@pytest.mark.parametrize(("fields", "refusal"), PAST_LIMIT.values(), ids=PAST_LIMIT)
async def test_a_field_past_its_bound_is_refused(
    world: World, fields: dict[str, Any], refusal: type[Refused]
) -> None:
    """Every field past its bound is refused with its code, and nothing is registered."""
    await world.refused(refusal, register(world, **fields))


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"lanes": (), "capabilities": ("",)}, InvalidInput),
        ({"liveness_ttl_ms": 0, "capabilities": ("",)}, InvalidInput),
        ({"capabilities": ("",), "defaults": BAD_DEFAULTS}, InvalidCapabilities),
        ({"defaults": BAD_DEFAULTS, "worker_id": "other"}, InvalidPolicy),
    ],
    ids=str,
)
async def test_guards_answer_in_their_order(
    world: World, fields: dict[str, Any], refusal: type[Refused]
) -> None:
    """When two guards fail, the earlier one in the declared order is the answer."""
    await register(world)
    await world.refused(refusal, register(world, **fields))
