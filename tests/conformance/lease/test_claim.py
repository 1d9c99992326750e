"""lease.claim: what a lease holds, who gets what, and takeovers of lost work."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidCapabilities, InvalidInput
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import ExecutionId, mint_uuid
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import RetryPolicy
from flowfabric.contract.states import PublicState
from tests.conformance import situations
from tests.conformance.world import OTHER_UUID, TTL_MS, World, policy, requiring, timing


async def test_with_nothing_eligible_it_is_empty(world: World) -> None:
    """With nothing to do the answer is no lease, at once.

    Acceptance: claim-with-nothing-eligible-is-empty
    """
    assert await world.claim() == ()
    await situations.delayed(world)
    await situations.blocked(world)
    assert await world.claim() == ()


async def test_a_lease_holds_everything_a_worker_needs(world: World) -> None:
    """The lease carries ids, fence, input, tags, kind, policy, timers and instants.

    Acceptance: lease-carries-everything
    """
    given = policy(retry_policy=RetryPolicy(max_retries=4), timeout_policy=timing(attempt_timeout_ms=77_000))
    execution_id = await world.create(
        kind="resize",
        namespace="tenant",
        priority=3,
        input=Payload(b"\x00\xff", "application/octet-stream"),
        tags={"a.b": "c"},
        idempotency_key="key",
        policy=given,
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
        deadline_at_ms=world.now_ms + 99_000,
    )
    created_ms = world.now_ms
    world.clock.advance(10)
    lease = await world.claim_one("w", namespace="tenant")
    seen = await world.describe(execution_id)
    assert (lease.execution_id, lease.namespace, lease.lane, lease.kind) == (
        execution_id,
        "tenant",
        "default",
        "resize",
    )
    assert (lease.priority, lease.tags, lease.idempotency_key) == (3, {"a.b": "c"}, "key")
    assert lease.input == Payload(b"\x00\xff", "application/octet-stream")
    assert lease.policy == seen.policy and lease.policy.retry_policy == given.retry_policy
    assert lease.traceparent == seen.traceparent
    assert (lease.lease_epoch, lease.attempt_index, lease.attempt_type, lease.resumed) == (
        1,
        0,
        "initial",
        False,
    )
    assert (lease.retry_count, lease.max_retries, lease.frame_sequence) == (0, 4, 0)
    assert (lease.lease_ttl_ms, lease.lease_expires_at_ms) == (TTL_MS, world.now_ms + TTL_MS)
    assert world.now_ms < lease.renewal_deadline_ms <= world.now_ms + TTL_MS * 2 // 3 + 1
    assert lease.attempt_timeout_at_ms == world.now_ms + 77_000
    assert (lease.deadline_at_ms, lease.created_at_ms) == (created_ms + 99_000, created_ms)


async def test_it_is_recorded(world: World) -> None:
    """A claim starts the attempt, stamps the execution, and is the first entry of the history."""
    world.clock.advance(5)
    lease = await world.leased("w")
    attempt = await world.attempt.describe(lease)
    assert (attempt.attempt_id, attempt.state, attempt.attempt_type) == (
        lease.attempt_id,
        "started",
        "initial",
    )
    assert (attempt.worker_id, attempt.worker_instance, attempt.started_at_ms) == ("w", "w-1", world.now_ms)
    (event,) = await world.history(lease.execution_id)
    assert (event.name, event.lease_id, event.lease_epoch, event.attempt_id) == (
        "acquired",
        lease.lease_id,
        1,
        lease.attempt_id,
    )
    assert (event.worker_instance, event.at_ms) == ("w-1", world.now_ms)


async def test_priority_goes_before_age(world: World) -> None:
    """Higher priority first, then older; in one call and over several.

    Acceptance: claims-by-priority-then-age
    """
    low = await world.create(priority=1)
    world.clock.advance(1)
    older = await world.create(priority=5)
    world.clock.advance(1)
    younger = await world.create(priority=5)
    high = await world.create(priority=9_000)
    leases = await world.claim(max_tasks=3)
    assert [lease.execution_id for lease in leases] == [high, older, younger]
    assert (await world.claim_one()).execution_id == low


async def test_ties_go_by_id(world: World) -> None:
    """Of equal priority and age the smaller uuid goes first (in one partition: others may come in between)."""
    minted = sorted(mint_uuid() for _ in range(6))
    created = [ExecutionId(f"{{fp:3}}:{value}") for value in minted]
    for execution_id in reversed(created):
        await world.create(execution_id=execution_id)
    leases = [await world.claim_one() for _ in range(6)]
    assert [lease.execution_id for lease in leases] == created


async def test_order_holds_across_lanes_and_routes(world: World) -> None:
    """The best of all lanes, kinds and capability sets that the worker serves is first.

    Acceptance: order-holds-across-lanes-and-routes
    """
    first = await world.create(lane="b", kind="k2", priority=7, policy=requiring("gpu"))
    second = await world.create(lane="a", kind="k1", priority=6)
    third = await world.create(lane="b", kind="k1", priority=5)
    leases = await world.claim(lanes=("a", "b"), capabilities=("gpu",), max_tasks=10)
    assert [lease.execution_id for lease in leases] == [first, second, third]


async def test_only_the_lanes_and_kinds_asked_for(world: World) -> None:
    """A worker gets work of its lanes and kinds only; without kinds, of any."""
    wanted = await world.create(lane="a", kind="k1")
    await world.create(lane="b", kind="k1", priority=9)
    await world.create(lane="a", kind="k2", priority=9)
    leases = await world.claim(lanes=("a",), kinds=("k1", "k3"), max_tasks=10)
    assert [lease.execution_id for lease in leases] == [wanted]
    assert (await world.claim_one(lanes=("a",))).kind == "k2"


async def test_namespaces_do_not_mix(world: World) -> None:
    """A worker of one namespace never gets work of another.

    Acceptance: claims-stay-in-their-namespace
    """
    await world.create(namespace="a", priority=9)
    own = await world.create(namespace="b")
    assert await world.claim() == ()
    leases = await world.claim(namespace="b", max_tasks=10)
    assert [lease.execution_id for lease in leases] == [own]


@pytest.mark.parametrize(
    ("required", "offered", "matches"),
    [
        ((), (), True),
        ((), ("a",), True),
        (("a",), ("a",), True),
        (("a",), ("a", "b"), True),
        (("a", "b"), ("b", "a"), True),
        (("a", "b"), ("a",), False),
        (("a",), (), False),
        (("a",), ("b",), False),
        (("a",), ("A",), False),
        (("a",), ("aa",), False),
        (("é",), ("é",), True),
    ],
)
async def test_every_requirement_must_be_met(
    world: World, required: tuple[str, ...], offered: tuple[str, ...], matches: bool
) -> None:
    """A worker gets what requires a subset of its capabilities, case-sensitively.

    Acceptance: capabilities-must-be-a-superset
    Acceptance: claim-with-missing-capability-is-empty
    """
    await world.create(policy=requiring(*required) if required else None)
    assert len(await world.claim(capabilities=offered)) == matches


async def test_a_better_mismatch_hides_nothing(world: World) -> None:
    """Higher-priority work that a worker cannot run does not keep it from what it can, and stays in its place.

    Acceptance: mismatch-does-not-hide-matching-work
    Acceptance: mismatch-stays-claimable-for-the-capable
    """
    hard = [await world.create(priority=9, policy=requiring("rare")) for _ in range(3)]
    easy = await world.create()
    leases = await world.claim(max_tasks=10)
    assert [lease.execution_id for lease in leases] == [easy]
    assert {await world.state(item) for item in hard} == {PublicState.WAITING}
    capable = await world.claim("c", capabilities=("rare",), max_tasks=10)
    assert sorted(lease.execution_id for lease in capable) == sorted(hard)


async def test_at_most_as_many_as_asked_for(world: World) -> None:
    """A claim gives at most `max_tasks` leases, each of another execution.

    Acceptance: claim-in-batches
    """
    batch = tuple(ExecutionCreate(kind="k") for _ in range(limits.CLAIM_TASKS_MAX + 44))  # type: ignore[arg-type]
    await world.execution.create_many(executions=batch)
    first = await world.claim(max_tasks=limits.CLAIM_TASKS_MAX)
    rest = await world.claim(max_tasks=limits.CLAIM_TASKS_MAX)
    assert (len(first), len(rest)) == (limits.CLAIM_TASKS_MAX, 44)
    assert len({lease.execution_id for lease in first + rest}) == limits.CLAIM_TASKS_MAX + 44
    assert len({lease.lease_id for lease in first + rest}) == limits.CLAIM_TASKS_MAX + 44


@pytest.mark.parametrize(("state", "gives"), [("paused", False), ("draining", True), ("disabled", False)])
async def test_the_lane_decides_about_claims(world: World, state: str, gives: bool) -> None:
    """Paused and disabled lanes give nothing, draining ones what they have; other lanes go on, and resuming resumes.

    Acceptance: lane-state-decides-about-claims
    """
    await world.create()
    await world.create(lane="other")
    await world.lane.set_state(lane="default", state=state)
    leases = await world.claim(lanes=("default", "other"), max_tasks=10)
    assert len(leases) == 1 + gives
    await world.lane.set_state(lane="default", state="active")
    assert len(await world.claim(max_tasks=10)) == 1 - gives


# Racing -----------------------------------------------------------------------------------------------------------


async def test_racing_claimers_get_distinct_work(world: World) -> None:
    """Claims at the same time never give the same execution twice, and together give everything.

    Acceptance: racing-claimers-get-distinct-work
    """
    created = {await world.create() for _ in range(30)}
    outcomes = await world.race(*(world.claim(f"w{number}", max_tasks=4) for number in range(10)))
    given = [lease.execution_id for leases in outcomes for lease in leases]
    assert sorted(given) == sorted(created)


async def test_one_execution_goes_to_one_of_many(world: World) -> None:
    """A single execution is given to exactly one of several claimers at once."""
    execution_id = await world.create()
    outcomes = await world.race(*(world.claim(f"w{number}") for number in range(10)))
    assert [lease.execution_id for leases in outcomes for lease in leases] == [execution_id]


# Repeating --------------------------------------------------------------------------------------------------------


async def test_a_repeated_claim_gets_the_same_leases(world: World) -> None:
    """The same claim id again returns the leases it got, however many more could be had.

    Acceptance: claim-id-makes-claims-repeatable
    """
    for _ in range(5):
        await world.create()
    first = await world.claim(max_tasks=2, claim_id=OTHER_UUID)
    again = await world.unchanged(world.claim(max_tasks=2, claim_id=OTHER_UUID))
    assert sorted(again, key=str) == sorted(first, key=str)


async def test_a_repeated_claim_leaves_out_what_ended(world: World) -> None:
    """Leases of the claim that ended are not returned again; when all did, the id claims anew."""
    for _ in range(3):
        await world.create()
    one, two = await world.claim(max_tasks=2, claim_id=OTHER_UUID)
    await world.execution.complete(one)
    assert [lease.lease_id for lease in await world.claim(max_tasks=2, claim_id=OTHER_UUID)] == [two.lease_id]
    await world.execution.complete(two)
    (fresh,) = await world.claim(max_tasks=2, claim_id=OTHER_UUID)
    assert fresh.execution_id not in (one.execution_id, two.execution_id)


async def test_a_repeated_claim_does_not_return_expired_leases(world: World) -> None:
    """A lease whose time is over is not live: the repetition takes the work over under a new lease."""
    await world.create()
    (lease,) = await world.claim(claim_id=OTHER_UUID)
    await world.advance(TTL_MS)
    (again,) = await world.claim(claim_id=OTHER_UUID)
    assert (again.execution_id, again.attempt_index) == (lease.execution_id, 1)
    assert again.lease_id != lease.lease_id


async def test_a_repeat_keeps_the_order(world: World) -> None:
    """A repeated claim returns its leases best first, as the claim did."""
    await world.create()
    await world.create(priority=7)
    await world.create(priority=3)
    first = await world.claim(max_tasks=3, claim_id=OTHER_UUID)
    again = await world.claim(max_tasks=3, claim_id=OTHER_UUID)
    assert [lease.priority for lease in first] == [7, 3, 0]
    assert again == first


async def test_a_claim_id_is_the_workers_own(world: World) -> None:
    """Another worker that uses the same claim id gets work of its own, never somebody else's leases."""
    for _ in range(2):
        await world.create()
    (mine,) = await world.claim("a", claim_id=OTHER_UUID)
    (other,) = await world.claim("b", claim_id=OTHER_UUID)
    assert other.execution_id != mine.execution_id


async def test_an_empty_answer_is_not_remembered(world: World) -> None:
    """A claim id that found nothing may find something the next time."""
    assert await world.claim(claim_id=OTHER_UUID) == ()
    await world.create()
    assert len(await world.claim(claim_id=OTHER_UUID)) == 1


async def test_racing_repetitions_get_the_same_leases(world: World) -> None:
    """The same claim several times at once is one claim."""
    for _ in range(6):
        await world.create()
    outcomes = await world.race(*(world.claim(max_tasks=2, claim_id=OTHER_UUID) for _ in range(4)))
    assert len({tuple(sorted(lease.lease_id for lease in leases)) for leases in outcomes}) == 1
    assert len(await world.claim(max_tasks=10)) == 4


# Taking over ------------------------------------------------------------------------------------------------------


async def test_lost_work_is_taken_over_as_a_new_attempt(world: World) -> None:
    """After expiry the next claim starts a new attempt of type reclaim with a higher epoch; the old one is closed.

    Acceptance: expired-lease-is-reclaimed-as-a-new-attempt
    Acceptance: epoch-strictly-increases
    """
    lease = await world.leased("a")
    await world.advance(TTL_MS)
    taken = await world.claim_one("b")
    assert (taken.execution_id, taken.attempt_type, taken.attempt_index) == (lease.execution_id, "reclaim", 1)
    assert (taken.lease_epoch, taken.resumed) == (2, False)
    assert taken.attempt_id != lease.attempt_id and taken.lease_id != lease.lease_id
    old = await world.attempt.describe(lease)
    assert (old.state, old.ended_at_ms) == ("interrupted_reclaimed", world.now_ms)
    assert old.stream_closed_reason == "lease_expired"
    new = await world.attempt.describe(taken)
    assert (new.previous_attempt_index, new.worker_instance) == (0, "b-1")
    assert await world.events(lease.execution_id) == ["acquired", "expired", "reclaimed"]
    seen = await world.describe(lease.execution_id)
    assert (seen.reclaim_count, seen.retry_count) == (1, 0)


async def test_a_live_lease_is_not_taken_over(world: World) -> None:
    """Up to the last millisecond nobody else gets the execution.

    Acceptance: live-lease-is-not-reclaimed
    """
    await world.leased()
    await world.advance(TTL_MS - 1)
    assert await world.claim("b") == ()


@pytest.mark.parametrize("how", ["revoke", "release"])
async def test_what_was_taken_away_is_claimable_at_once(world: World, how: str) -> None:
    """Revoked and handed-back work is claimable at once, as an attempt of type reclaim."""
    lease = await world.leased("a")
    await world.call(f"lease.{how}", lease)
    taken = await world.claim_one("b")
    assert (taken.execution_id, taken.attempt_type, taken.attempt_index) == (lease.execution_id, "reclaim", 1)
    assert (await world.attempt.describe(lease)).stream_closed_reason == "reclaimed"
    seen = await world.describe(lease.execution_id)
    assert seen.reclaim_count == (1 if how == "revoke" else 0)


async def test_the_grace_holds_back(world: World) -> None:
    """With `reclaim_grace_ms` lost work is claimable only when the grace after the expiry is over.

    Acceptance: reclaim-grace-holds-back
    """
    lease = await world.leased(policy=policy(reclaim_grace_ms=5_000))
    await world.advance(TTL_MS + 4_999)
    assert await world.claim("b") == ()
    await world.advance(1)
    assert (await world.claim_one("b")).execution_id == lease.execution_id


@pytest.mark.parametrize("cap", [0, 1, 3])
async def test_takeovers_are_capped(world: World, cap: int) -> None:
    """After as many takeovers as the policy allows, losing the lease once more ends the execution as failed.

    Acceptance: reclaim-cap-ends-as-failed
    Acceptance: reclaim-cap-is-per-execution
    """
    lease = await world.leased(policy=policy(max_reclaim_count=cap))
    for number in range(cap):
        await world.advance(TTL_MS)
        lease = await world.claim_one()
        assert lease.attempt_index == number + 1
    await world.advance(TTL_MS)
    assert await world.claim() == ()
    reply = await world.execution.read_result(lease.execution_id)
    assert (reply.failure_class, reply.category) == ("infra_crash", "max_reclaims_exceeded")
    attempt = await world.attempt.describe(lease)
    assert attempt.state == "ended_failure" and attempt.stream_closed_reason is not None
    assert (await world.history(lease.execution_id))[-1].outcome == "failed"
    assert (await world.describe(lease.execution_id)).reclaim_count == cap


async def test_the_former_workers_leases_no_longer_list_it(world: World) -> None:
    """After a takeover the registry counts the lease for the new holder only.

    Acceptance: takeover-moves-the-lease-between-workers
    """
    for worker in ("a", "b"):
        await world.worker.register(worker_id=worker, worker_instance=f"{worker}-1", lanes=("default",))

    async def held() -> dict[str, int]:
        return {info.worker_id: info.leases for info in (await world.worker.list()).workers}

    await world.leased("a")
    assert await held() == {"a": 1, "b": 0}
    await world.advance(TTL_MS)
    assert await held() == {"a": 0, "b": 0}
    await world.claim_one("b")
    assert await held() == {"a": 0, "b": 1}


async def test_lost_work_keeps_its_place(world: World) -> None:
    """Work whose lease was lost is as old as it was: it goes before younger work of its priority."""
    lease = await world.leased()
    world.clock.advance(1)
    await world.create()
    await world.advance(TTL_MS)
    assert (await world.claim_one("b")).execution_id == lease.execution_id


async def test_a_passed_deadline_is_not_given_out(world: World) -> None:
    """Work whose deadline passed is not leased, even before a timer expired it; the next in line is."""
    late = await world.create(priority=9, deadline_at_ms=world.now_ms + 1_000)
    other = await world.create()
    world.clock.advance(1_000)
    assert [lease.execution_id for lease in await world.claim(max_tasks=5)] == [other]
    assert await world.state(late) is PublicState.EXPIRED


# Bounds -----------------------------------------------------------------------------------------------------------

AT_LIMIT: dict[str, dict[str, Any]] = {
    "tasks": {"max_tasks": limits.CLAIM_TASKS_MAX},
    "short ttl": {"lease_ttl_ms": limits.LEASE_TTL_MIN_MS},
    "long ttl": {"lease_ttl_ms": limits.LEASE_TTL_MAX_MS},
    "lanes": {"lanes": ("default", *(f"lane-{number}" for number in range(63)))},
    "kinds": {"kinds": ("k", *(f"kind-{number}" for number in range(limits.CLAIM_KINDS_MAX - 1)))},
    "capabilities": {"capabilities": tuple(f"t{number}" for number in range(256))},
    "names": {"worker_id": "w" * 128, "worker_instance": "i" * 128},
}
PAST_LIMIT: dict[str, dict[str, Any]] = {
    "no tasks": {"max_tasks": 0},
    "tasks": {"max_tasks": limits.CLAIM_TASKS_MAX + 1},
    "short ttl": {"lease_ttl_ms": limits.LEASE_TTL_MIN_MS - 1},
    "long ttl": {"lease_ttl_ms": limits.LEASE_TTL_MAX_MS + 1},
    "no lanes": {"lanes": ()},
    "lanes": {"lanes": tuple(f"lane-{number}" for number in range(65))},
    "lane": {"lanes": ("a b",)},
    "kinds": {"kinds": tuple(f"kind-{number}" for number in range(limits.CLAIM_KINDS_MAX + 1))},
    "kind": {"kinds": ("",)},
    "wait": {"wait_ms": limits.WAIT_MAX_MS + 1},
    "negative wait": {"wait_ms": -1},
    "claim id": {"claim_id": "x"},
    "worker": {"worker_id": "w" * 129},
    "worker braces": {"worker_id": "{w}"},
    "instance": {"worker_instance": ""},
    "namespace": {"namespace": "a b"},
}


@pytest.mark.parametrize("fields", AT_LIMIT.values(), ids=AT_LIMIT)
async def test_a_field_at_its_bound_is_accepted(world: World, fields: dict[str, Any]) -> None:
    """Every field is accepted up to and including its bound."""
    await world.create()
    assert len(await world.claim(**fields)) == 1


@pytest.mark.parametrize("fields", PAST_LIMIT.values(), ids=PAST_LIMIT)
async def test_a_field_past_its_bound_is_refused(world: World, fields: dict[str, Any]) -> None:
    """Every field past its bound is refused and nothing is leased."""
    await world.create()
    await world.refused(InvalidInput, world.claim(**fields))


@pytest.mark.parametrize("token", ["", "a,b", "a b", "a\n", "\x7f"])
async def test_malformed_capabilities_are_refused(world: World, token: str) -> None:
    """A worker's malformed capability is refused with its own code; of other malformed fields those come first.

    Acceptance: worker-capabilities-are-validated
    """
    await world.create()
    await world.refused(InvalidCapabilities, world.claim(capabilities=("fine", token)))
    await world.refused(InvalidInput, world.claim(capabilities=(token,), lanes=()))


async def test_too_many_capabilities_are_refused(world: World) -> None:
    """The 257th token and the 4,097th byte are refused."""
    many = tuple(f"t{number}" for number in range(257))
    await world.refused(InvalidCapabilities, world.claim(capabilities=many))
    await world.refused(InvalidCapabilities, world.claim(capabilities=("t" * 4_097,)))
