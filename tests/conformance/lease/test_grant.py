"""lease.grant: permission for one worker to take one execution."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    CapabilityMismatch,
    ExecutionNotEligible,
    ExecutionNotFound,
    ExecutionNotReclaimable,
    GrantAlreadyExists,
    InvalidCapabilities,
    InvalidInput,
    LaneNotAccepting,
    NotAResumedExecution,
    Refused,
    UseClaimResumed,
)
from flowfabric.contract.ids import DEFAULT_LANE
from flowfabric.contract.lease import LeaseGranted, NothingToGrant, ReclaimCapExceeded
from flowfabric.contract.states import GrantPurpose, PublicState
from tests.conformance import situations
from tests.conformance.world import TTL_MS, UNKNOWN, World, lost, policy, requiring, won

CLAIM, RESUME, RECLAIM = GrantPurpose.CLAIM, GrantPurpose.RESUME, GrantPurpose.RECLAIM
PURPOSES = {
    "waiting": (situations.waiting, CLAIM),
    "interrupted": (situations.interrupted, RESUME),
    "expired_lease": (situations.expired_lease, RECLAIM),
    "revoked_lease": (situations.revoked_lease, RECLAIM),
    "released_lease": (situations.released_lease, RECLAIM),
    "reclaim_grace": (situations.reclaim_grace, RECLAIM),
}


async def best(world: World, worker: str = "w", **fields: Any) -> Any:
    """Grant the best eligible execution of lane `default`."""
    return await world.lease.grant(
        **{"worker_id": worker, "worker_instance": f"{worker}-1", "lanes": ("default",), **fields}
    )


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize(("situation", "purpose"), PURPOSES.values(), ids=PURPOSES)
async def test_a_grant_says_what_it_is_for(
    world: World, situation: situations.Situation, purpose: GrantPurpose, explicit: bool
) -> None:
    """Fresh, interrupted and lost work is granted for claim, resume and reclaim, whether or not asked for by name.

    Acceptance: revoked-lease-may-be-reclaimed-by-grant
    """
    execution_id = await situation(world)
    reply = await world.grant(execution_id, "b", purpose=purpose if explicit else None, grant_ttl_ms=700)
    assert reply == LeaseGranted(
        execution_id=execution_id, lane=DEFAULT_LANE, purpose=purpose, expires_at_ms=world.now_ms + 700
    )


@pytest.mark.parametrize(("situation", "purpose"), PURPOSES.values(), ids=PURPOSES)
async def test_granted_work_is_given_to_nobody_else(
    world: World, situation: situations.Situation, purpose: GrantPurpose
) -> None:
    """A granted execution leaves the eligible work until the grant runs out, and then is back by itself.

    Acceptance: granted-work-leaves-the-queue-until-expiry
    """
    if situation is situations.reclaim_grace:
        return
    execution_id = await situation(world)
    before = await world.state(execution_id)
    await world.grant(execution_id, "b", grant_ttl_ms=1_000)
    assert await world.claim("c") == ()
    assert await best(world, "c") == NothingToGrant()
    await world.advance(999)
    assert await world.claim("c") == ()
    await world.advance(1)
    assert await world.state(execution_id) is before
    assert (await world.claim_one("c")).execution_id == execution_id


async def test_the_best_of_the_lanes_is_chosen(world: World) -> None:
    """Without an execution the best eligible one of the lanes that the worker may run is granted.

    Acceptance: grant-chooses-the-best
    """
    await world.create(priority=1)
    await world.create(priority=9, policy=requiring("gpu"))
    wanted = await world.create(lane="b", priority=5)
    await world.create(lane="c", priority=8)
    await world.create(priority=8, namespace="other")
    reply = await best(world, lanes=("default", "b"))
    assert (reply.execution_id, reply.lane, reply.purpose) == (wanted, "b", CLAIM)
    assert (await best(world, lanes=("default", "b"))).execution_id != wanted


async def test_a_resumable_one_can_be_the_best(world: World) -> None:
    """Chosen work that continues an attempt is granted for resume."""
    execution_id = await situations.interrupted(world)
    reply = await best(world)
    assert (reply.execution_id, reply.purpose) == (execution_id, RESUME)


@pytest.mark.parametrize("situation", [None, situations.delayed, situations.blocked, situations.leased])
async def test_with_nothing_eligible_there_is_nothing_to_grant(
    world: World, situation: situations.Situation | None
) -> None:
    """Without eligible work in the lanes the answer is none.

    Acceptance: grant-with-nothing-eligible-is-none
    """
    if situation is not None:
        await situation(world)
    assert await world.unchanged(best(world)) == NothingToGrant()


async def test_a_stopped_lane_has_nothing_to_grant(world: World) -> None:
    """Of a paused lane nothing is chosen; naming the execution is refused with the lane's state."""
    execution_id = await world.create()
    for state in ("paused", "disabled"):
        await world.lane.set_state(lane="default", state=state)
        assert await best(world) == NothingToGrant()
        await world.refused(LaneNotAccepting, world.grant(execution_id), lane="default", state=state)
    await world.lane.set_state(lane="default", state="draining")
    assert type(await world.grant(execution_id)) is LeaseGranted


NOT_ELIGIBLE = {
    name: situation for name, situation in situations.ALL.items() if name not in (*PURPOSES, "granted")
}


@pytest.mark.parametrize("situation", NOT_ELIGIBLE.values(), ids=NOT_ELIGIBLE)
async def test_what_is_not_eligible_is_not_granted(world: World, situation: situations.Situation) -> None:
    """Delayed, blocked, held and finished executions are not granted."""
    execution_id = await situation(world)
    await world.refused(ExecutionNotEligible, world.grant(execution_id))


NOT_LOST = {name: situation for name, situation in situations.ALL.items() if name not in situations.LOST}


@pytest.mark.parametrize("situation", NOT_LOST.values(), ids=NOT_LOST)
async def test_what_is_not_lost_is_not_reclaimed(world: World, situation: situations.Situation) -> None:
    """A reclaim grant needs an active execution whose lease was lost.

    Acceptance: reclaim-grant-of-live-lease-is-refused
    """
    execution_id = await situation(world)
    await world.refused(ExecutionNotReclaimable, world.grant(execution_id, purpose=RECLAIM))


async def test_an_expiry_nobody_recorded_is_recorded(world: World) -> None:
    """A reclaim grant after the lease's time needs no timer to have run.

    Acceptance: reclaim-grant-needs-no-timer
    """
    lease = await world.leased()
    world.clock.advance(TTL_MS)
    reply = await world.grant(lease.execution_id, "b", purpose=RECLAIM)
    assert reply.purpose is RECLAIM
    assert await world.events(lease.execution_id) == ["acquired", "expired"]


@pytest.mark.parametrize(
    ("situation", "purpose", "refusal"),
    [
        (situations.waiting, RESUME, NotAResumedExecution),
        (situations.interrupted, CLAIM, UseClaimResumed),
        (situations.expired_lease, CLAIM, ExecutionNotEligible),
    ],
)
async def test_the_purpose_must_fit(
    world: World, situation: situations.Situation, purpose: GrantPurpose, refusal: type[Refused]
) -> None:
    """Asking for a purpose that the execution's state does not call for is refused, naming the right one.

    Acceptance: grant-purpose-must-fit
    """
    execution_id = await situation(world)
    await world.refused(refusal, world.grant(execution_id, purpose=purpose))


async def test_the_worker_must_have_what_is_required(world: World) -> None:
    """Missing capabilities are named, sorted; for reclaim too.

    Acceptance: grant-checks-capabilities
    Acceptance: reclaim-grant-checks-capabilities
    """
    execution_id = await world.create(policy=requiring("c", "a", "b"))
    call = world.grant(execution_id, capabilities=("b", "x"))
    await world.refused(CapabilityMismatch, call, missing=["a", "c"])
    await world.claim_one(capabilities=("a", "b", "c"))
    await world.advance(TTL_MS)
    await world.refused(CapabilityMismatch, world.grant(execution_id, "b", purpose=RECLAIM))
    assert (await world.grant(execution_id, "b", capabilities=("a", "b", "c"))).purpose is RECLAIM


async def test_one_grant_at_a_time(world: World) -> None:
    """While a grant lives another is refused, for the same worker too; after it ran out a new one is given.

    Acceptance: one-live-grant-per-execution
    """
    execution_id = await world.create()
    first = await world.grant(execution_id, "a", grant_ttl_ms=1_000)
    for worker in ("a", "b"):
        call = world.grant(execution_id, worker)
        await world.refused(GrantAlreadyExists, call, expires_at_ms=first.expires_at_ms)
    world.clock.advance(1_000)
    assert (await world.grant(execution_id, "b")).execution_id == execution_id


async def test_racing_grants_give_one(world: World) -> None:
    """Of grants of one execution at once one succeeds; chosen ones are distinct.

    Acceptance: racing-grants-are-distinct
    """
    execution_id = await world.create(priority=9)
    outcomes = await world.race(*(world.grant(execution_id, f"w{number}") for number in range(5)))
    assert len(won(outcomes)) == 1 and lost(outcomes) == ["grant_already_exists"] * 4
    for _ in range(3):
        await world.create()
    chosen = await world.race(*(best(world, f"w{number}") for number in range(5)))
    granted = [reply.execution_id for reply in chosen if isinstance(reply, LeaseGranted)]
    assert len(granted) == len(set(granted)) == 3
    assert execution_id not in granted


async def test_at_the_reclaim_cap_it_ends(world: World) -> None:
    """Lost work that may not be taken over once more ends as failed when a grant is asked for.

    Acceptance: reclaim-cap-on-grant-ends-as-failed
    """
    lease = await world.leased(policy=policy(max_reclaim_count=0, reclaim_grace_ms=60_000))
    await world.advance(TTL_MS)
    assert await world.state(lease.execution_id) is PublicState.ACTIVE
    reply = await world.grant(lease.execution_id, "b", purpose=RECLAIM)
    assert reply == ReclaimCapExceeded(execution_id=lease.execution_id, reclaim_count=0)
    result = await world.execution.read_result(lease.execution_id)
    assert (result.failure_class, result.category) == ("infra_crash", "max_reclaims_exceeded")
    assert (await world.history(lease.execution_id))[-1].outcome == "failed"


@pytest.mark.parametrize(
    ("first", "second", "refusal"),
    [
        ({"grant_ttl_ms": 0}, {"capabilities": ("",)}, InvalidInput),
        ({"capabilities": ("",)}, {"execution_id": UNKNOWN}, InvalidCapabilities),
        ({"execution_id": UNKNOWN}, {"purpose": RECLAIM}, ExecutionNotFound),
        ({"purpose": RECLAIM}, {"lane": "paused"}, ExecutionNotReclaimable),
        ({"lane": "paused"}, {"capabilities": ()}, LaneNotAccepting),
        ({"lane": "paused"}, {"purpose": RESUME}, LaneNotAccepting),
        ({"purpose": RESUME}, {"capabilities": ()}, NotAResumedExecution),
    ],
    ids=str,
)
async def test_guards_answer_in_their_order(
    world: World, first: dict[str, Any], second: dict[str, Any], refusal: type[Refused]
) -> None:
    """When two guards fail, the earlier one in the declared order is the answer."""
    execution_id = await world.create(policy=requiring("gpu"))
    fields: dict[str, Any] = {"execution_id": execution_id, "capabilities": ("gpu",), **second, **first}
    if "lane" in fields:
        await world.lane.set_state(lane="default", state=fields.pop("lane"))
    await world.refused(refusal, world.lease.grant(worker_id="w", worker_instance="w-1", **fields))


async def test_a_granted_one_on_a_stopped_lane_is_granted_first(world: World) -> None:
    """Of a live grant and a stopped lane, the grant is the answer; of not eligible and a live grant, not eligible."""
    execution_id = await situations.granted(world)
    await world.lane.set_state(lane="default", state="paused")
    await world.refused(GrantAlreadyExists, world.grant(execution_id))


@pytest.mark.parametrize(
    "fields",
    [
        {"grant_ttl_ms": 0},
        {"grant_ttl_ms": limits.GRANT_TTL_MAX_MS + 1},
        {"worker_id": ""},
        {"worker_instance": "a b"},
        {"namespace": "{n}"},
        {"lanes": ("default",)},
        {"execution_id": None},
        {"execution_id": None, "lanes": tuple(f"lane-{number}" for number in range(65))},
        {"execution_id": None, "lanes": ("a b",)},
        {"execution_id": None, "lanes": ("default",), "purpose": RECLAIM},
    ],
    ids=str,
)
async def test_malformed_grants_are_refused(world: World, fields: dict[str, Any]) -> None:
    """Numbers out of range, malformed names, both or neither of execution and lanes are refused."""
    execution_id = await world.create()
    known = {"worker_id": "w", "worker_instance": "w-1", "execution_id": execution_id}
    await world.refused(InvalidInput, world.lease.grant(**{**known, **fields}))


@pytest.mark.parametrize("grant_ttl_ms", [1, limits.GRANT_TTL_MAX_MS])
async def test_the_ttl_is_accepted_at_its_bounds(world: World, grant_ttl_ms: int) -> None:
    """A grant lives 1 ms to 60 s."""
    reply = await world.grant(await world.create(), grant_ttl_ms=grant_ttl_ms)
    assert reply.expires_at_ms == world.now_ms + grant_ttl_ms
