"""lease.claim_granted: a grant becomes a lease, once."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    ClaimGrantExpired,
    ExecutionNotLeaseable,
    ExecutionNotReclaimable,
    InvalidClaimGrant,
    InvalidInput,
    LeaseConflict,
    NotAResumedExecution,
    Refused,
    UseClaimResumed,
)
from flowfabric.contract.lease import LeaseTaken, ReclaimCapExceeded
from flowfabric.contract.states import GrantPurpose, PublicState
from tests.conformance import situations
from tests.conformance.lease.test_grant import CLAIM, PURPOSES, RECLAIM, RESUME
from tests.conformance.world import OTHER_UUID, TTL_MS, World, frame, lost, policy, requiring, won

LEASE_ID = "22222222-2222-4222-8222-222222222222"
ATTEMPT_ID = "33333333-3333-4333-8333-333333333333"


async def test_a_grant_becomes_a_lease(world: World) -> None:
    """The worker with the grant gets a lease like that of a claim, under the ids it chose.

    Acceptance: grant-then-claim-gives-a-live-lease
    """
    execution_id = await world.create(priority=3, tags={"a.b": "c"})
    await world.grant(execution_id)
    reply = await world.claim_granted(execution_id, lease_id=LEASE_ID, attempt_id=ATTEMPT_ID)
    assert type(reply) is LeaseTaken
    lease = reply.lease
    assert (lease.lease_id, lease.attempt_id, lease.lease_epoch) == (LEASE_ID, ATTEMPT_ID, 1)
    assert (lease.attempt_type, lease.attempt_index, lease.priority) == ("initial", 0, 3)
    assert lease.lease_expires_at_ms == world.now_ms + TTL_MS
    await world.lease.renew(lease)
    await world.execution.complete(lease)
    assert await world.state(execution_id) is PublicState.COMPLETED


async def test_without_ids_they_are_minted(world: World) -> None:
    """Ids that the caller does not choose are minted, distinct every time."""
    leases = []
    for _ in range(2):
        execution_id = await world.create()
        await world.grant(execution_id)
        leases.append((await world.claim_granted(execution_id)).lease)
    assert leases[0].lease_id != leases[1].lease_id and leases[0].attempt_id != leases[1].attempt_id


async def test_a_resume_grant_continues_the_attempt(world: World) -> None:
    """With a resume grant the interrupted attempt goes on under a new lease.

    Acceptance: resume-grant-rebinds-the-same-attempt
    """
    lease = await world.leased("a")
    await world.stream.append(lease, frames=(frame(1),))
    await world.execution.wait_children(lease)
    await world.grant(lease.execution_id, "b", purpose=RESUME)
    resumed = (await world.claim_granted(lease.execution_id, "b", purpose=RESUME)).lease
    assert (resumed.attempt_id, resumed.attempt_index, resumed.resumed) == (lease.attempt_id, 0, True)
    assert (resumed.lease_epoch, resumed.frame_sequence) == (2, 1)


async def test_a_reclaim_grant_takes_over(world: World) -> None:
    """With a reclaim grant lost work is taken over as a new attempt under the caller's ids, epoch increased.

    Acceptance: reclaim-grant-mints-a-new-attempt
    """
    lease = await world.leased("a")
    await world.advance(TTL_MS)
    await world.grant(lease.execution_id, "b", purpose=RECLAIM)
    reply = await world.claim_granted(
        lease.execution_id, "b", purpose=RECLAIM, lease_id=LEASE_ID, attempt_id=ATTEMPT_ID
    )
    taken = reply.lease
    assert (taken.lease_id, taken.attempt_id) == (LEASE_ID, ATTEMPT_ID)
    assert (taken.attempt_type, taken.attempt_index, taken.lease_epoch) == ("reclaim", 1, 2)
    assert (await world.attempt.describe(lease)).state == "interrupted_reclaimed"
    assert (await world.describe(lease.execution_id)).reclaim_count == 1


async def test_a_grant_may_take_over_within_the_grace(world: World) -> None:
    """While the grace keeps claims away, a reclaim grant takes the work over.

    Acceptance: reclaim-grant-acts-within-the-grace
    """
    execution_id = await situations.reclaim_grace(world)
    assert await world.claim("b") == ()
    await world.grant(execution_id, "b", purpose=RECLAIM)
    assert (await world.claim_granted(execution_id, "b")).lease.attempt_type == "reclaim"


@pytest.mark.parametrize(("situation", "purpose"), PURPOSES.values(), ids=PURPOSES)
async def test_the_same_ids_again_get_the_same_lease(
    world: World, situation: situations.Situation, purpose: GrantPurpose
) -> None:
    """A repetition with the same lease and attempt ids returns the same lease while it lives; others conflict.

    Acceptance: claim-granted-is-repeatable-by-ids
    """
    execution_id = await situation(world)
    await world.grant(execution_id, "b")
    ids = {"lease_id": LEASE_ID, "attempt_id": ATTEMPT_ID}
    first = await world.claim_granted(execution_id, "b", **ids)
    assert (first.lease.attempt_id == ATTEMPT_ID) == (purpose is not RESUME)
    again = await world.unchanged(world.claim_granted(execution_id, "b", **ids))
    assert again == first
    await world.refused(LeaseConflict, world.claim_granted(execution_id, "b", lease_id=OTHER_UUID))
    await world.refused(LeaseConflict, world.claim_granted(execution_id, "b"))
    await world.refused(LeaseConflict, world.claim_granted(execution_id, "c", lease_id=LEASE_ID))


async def test_a_grant_is_used_once(world: World) -> None:
    """After the lease that a grant became has ended, the grant is gone.

    Acceptance: grant-is-consumed
    """
    execution_id = await world.create()
    await world.grant(execution_id, grant_ttl_ms=60_000)
    lease = (await world.claim_granted(execution_id)).lease
    await world.execution.wait_children(lease)
    await world.refused(InvalidClaimGrant, world.claim_granted(execution_id))


@pytest.mark.parametrize(("situation", "purpose"), PURPOSES.values(), ids=PURPOSES)
async def test_without_a_grant_it_is_refused(
    world: World, situation: situations.Situation, purpose: GrantPurpose
) -> None:
    """Without a grant, or with another worker's, nothing is taken; the instance may differ.

    Acceptance: claim-without-grant-is-refused
    Acceptance: grant-of-another-worker-is-refused
    """
    execution_id = await situation(world)
    await world.refused(InvalidClaimGrant, world.claim_granted(execution_id, "b"))
    await world.grant(execution_id, "b")
    await world.refused(InvalidClaimGrant, world.claim_granted(execution_id, "c"))
    lease = (await world.claim_granted(execution_id, "b", worker_instance="b-2")).lease
    assert (await world.attempt.describe(lease)).worker_instance == "b-2"


@pytest.mark.parametrize(("situation", "purpose"), PURPOSES.values(), ids=PURPOSES)
async def test_a_late_grant_is_refused(
    world: World, situation: situations.Situation, purpose: GrantPurpose
) -> None:
    """From the instant it runs out a grant gives nothing; once that is recorded it is as if there were none.

    Acceptance: expired-grant-is-refused
    """
    execution_id = await situation(world)
    granted = await world.grant(execution_id, "b", grant_ttl_ms=1_000)
    world.clock.advance(999)
    await world.unchanged(world.lease.expire(execution_id))
    world.clock.advance(1)
    call = world.claim_granted(execution_id, "b")
    await world.refused(ClaimGrantExpired, call, expired_at_ms=granted.expires_at_ms)
    await world.advance(0)
    await world.refused(InvalidClaimGrant, world.claim_granted(execution_id, "b"))


async def test_at_the_last_millisecond_it_is_taken(world: World) -> None:
    """Up to its last millisecond a grant can be used."""
    execution_id = await world.create()
    await world.grant(execution_id, grant_ttl_ms=1_000)
    await world.advance(999)
    assert type(await world.claim_granted(execution_id)) is LeaseTaken


@pytest.mark.parametrize("situation", situations.ENDED.values(), ids=situations.ENDED)
async def test_what_has_ended_cannot_be_taken(world: World, situation: situations.Situation) -> None:
    """A finished execution is not leaseable.

    Acceptance: claim-of-finished-is-refused
    """
    execution_id = await situation(world)
    await world.refused(ExecutionNotLeaseable, world.claim_granted(execution_id))


async def test_what_ended_after_the_grant_cannot_be_taken(world: World) -> None:
    """An execution that ended between grant and claim is not leaseable, for reclaim too.

    Acceptance: reclaim-after-the-end-is-refused
    """
    for situation in (situations.waiting, situations.expired_lease):
        execution_id = await situation(world)
        await world.grant(execution_id, "b")
        await world.execution.cancel(execution_id, source="operator_override")
        await world.refused(ExecutionNotLeaseable, world.claim_granted(execution_id, "b"))


async def test_a_held_one_conflicts(world: World) -> None:
    """An execution that somebody holds cannot be taken.

    Acceptance: claim-of-held-is-a-conflict
    """
    lease = await world.leased("a")
    refusal = await world.refused(LeaseConflict, world.claim_granted(lease.execution_id, "b"))
    assert refusal.retryable


@pytest.mark.parametrize(
    ("situation", "purpose", "refusal"),
    [
        (situations.waiting, RESUME, NotAResumedExecution),
        (situations.waiting, RECLAIM, ExecutionNotReclaimable),
        (situations.interrupted, CLAIM, UseClaimResumed),
        (situations.interrupted, RECLAIM, ExecutionNotReclaimable),
    ],
)
async def test_the_purpose_must_be_the_grants(
    world: World, situation: situations.Situation, purpose: GrantPurpose, refusal: type[Refused]
) -> None:
    """Using a grant for another purpose is refused and does not consume it.

    Acceptance: fresh-claim-of-resumed-is-refused
    Acceptance: resume-of-fresh-is-refused
    """
    execution_id = await situation(world)
    await world.grant(execution_id, "b")
    await world.refused(refusal, world.claim_granted(execution_id, "b", purpose=purpose))
    assert type(await world.claim_granted(execution_id, "b")) is LeaseTaken


async def test_a_reclaim_grant_is_not_for_claiming(world: World) -> None:
    """Lost work is not taken with purpose claim; the grant stays."""
    execution_id = await situations.expired_lease(world)
    await world.grant(execution_id, "b")
    await world.refused(ExecutionNotLeaseable, world.claim_granted(execution_id, "b", purpose=CLAIM))


async def test_at_the_reclaim_cap_it_ends(world: World) -> None:
    """Work granted for reclaim that reached its cap meanwhile ends as failed instead."""
    lease = await world.leased("a", policy=policy(max_reclaim_count=1, reclaim_grace_ms=60_000))
    await world.advance(TTL_MS)
    await world.grant(lease.execution_id, "b", purpose=RECLAIM)
    second = (await world.claim_granted(lease.execution_id, "b")).lease
    await world.advance(TTL_MS)
    reply = await world.grant(lease.execution_id, "c", purpose=RECLAIM)
    assert reply == ReclaimCapExceeded(execution_id=second.execution_id, reclaim_count=1)
    assert await world.state(lease.execution_id) is PublicState.FAILED


@pytest.mark.parametrize("situation", [situations.waiting, situations.interrupted, situations.expired_lease])
async def test_a_passed_deadline_is_not_taken(world: World, situation: situations.Situation) -> None:
    """A grant whose execution's deadline passed gives nothing: the execution expires instead."""
    deadline_ms = world.now_ms + 50_000
    execution_id = await situation(world, deadline_at_ms=deadline_ms)
    await world.grant(execution_id, "b", grant_ttl_ms=60_000)
    world.clock.set(deadline_ms)
    outcomes = await world.race(world.claim_granted(execution_id, "b"))
    assert lost(outcomes) == ["execution_not_leaseable"]
    assert await world.state(execution_id) is PublicState.EXPIRED


async def test_a_lane_stopped_after_the_grant_does_not_take_it_back(world: World) -> None:
    """A grant given while the lane was active is good for its time."""
    execution_id = await situations.granted(world)
    await world.lane.set_state(lane="default", state="paused")
    assert type(await world.claim_granted(execution_id)) is LeaseTaken


async def test_racing_uses_of_a_grant_give_one_lease(world: World) -> None:
    """A grant used several times at once becomes one lease.

    Acceptance: one-consumer-per-grant
    """
    execution_id = await situations.granted(world)
    outcomes = await world.race(*(world.claim_granted(execution_id) for _ in range(5)))
    assert len(won(outcomes)) == 1 and lost(outcomes) == ["lease_conflict"] * 4


async def test_capabilities_are_checked_at_the_grant(world: World) -> None:
    """The claim under a grant takes what was granted; requirements were checked then."""
    execution_id = await world.create(policy=requiring("gpu"))
    await world.grant(execution_id, capabilities=("gpu",))
    assert type(await world.claim_granted(execution_id)) is LeaseTaken


@pytest.mark.parametrize(
    "fields",
    [
        {"worker_id": ""},
        {"worker_instance": "a b"},
        {"lease_ttl_ms": limits.LEASE_TTL_MIN_MS - 1},
        {"lease_ttl_ms": limits.LEASE_TTL_MAX_MS + 1},
        {"lease_id": "x"},
        {"attempt_id": OTHER_UUID + "0"},
    ],
    ids=str,
)
async def test_malformed_fields_are_refused(world: World, fields: dict[str, Any]) -> None:
    """Numbers out of range and malformed names and ids are refused, and the grant stays."""
    execution_id = await situations.granted(world)
    await world.refused(InvalidInput, world.claim_granted(execution_id, **fields))


async def test_guards_answer_in_their_order(world: World) -> None:
    """Held comes before the grant, the grant's worker before its time, its time before the purpose."""
    lease = await world.leased("a")
    await world.refused(LeaseConflict, world.claim_granted(lease.execution_id, "nobody", purpose=RESUME))
    execution_id = await world.create()
    await world.grant(execution_id, "b", grant_ttl_ms=1_000)
    world.clock.advance(1_000)
    await world.refused(InvalidClaimGrant, world.claim_granted(execution_id, "c", purpose=RESUME))
    await world.refused(ClaimGrantExpired, world.claim_granted(execution_id, "b", purpose=RESUME))
