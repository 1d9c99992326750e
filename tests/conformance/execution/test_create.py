"""execution.create: what a new execution is, what counts as the same create, who may create."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import IdempotencyConflict, InvalidInput, LaneNotAccepting, RouteLimitExceeded
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreated, ExecutionDuplicate
from flowfabric.contract.ids import (
    key_partition,
    mint_execution_id,
    parse_execution_id,
    uuid_partition,
)
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import FixedBackoff, KindDefaults, RetryPolicy
from flowfabric.contract.states import PublicState
from tests.conformance.world import UNKNOWN, World, lost, payload, policy, requiring, retrying, timing, won


async def test_a_new_execution_waits_for_a_worker(world: World) -> None:
    """Create answers the minted id, the lane, the effective priority and the instant, and the execution waits."""
    reply = await world.execution.create(kind="k")
    assert type(reply) is ExecutionCreated
    assert (reply.lane, reply.priority, reply.public_state) == ("default", 0, PublicState.WAITING)
    assert reply.created_at_ms == world.now_ms
    seen = await world.describe(reply.execution_id)
    assert seen.state_vector.attempt_state == "pending_first_attempt"
    assert (seen.total_attempt_count, seen.retry_count, seen.reclaim_count, seen.replay_count) == (0, 0, 0, 0)
    assert seen.started_at_ms is None and seen.completed_at_ms is None and seen.current_attempt is None


async def test_everything_given_is_kept(world: World) -> None:
    """All fields of the command can be read back, the input byte for byte.

    Acceptance: create-keeps-everything-given
    """
    given: dict[str, Any] = {
        "namespace": "tenant/a",
        "lane": "bulk",
        "kind": "resize",
        "priority": 7,
        "creator": "somebody",
        "idempotency_key": "order 1",
        "tags": {"app.customer": "acme", "app.region": "südwest"},
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
        "deadline_at_ms": world.now_ms + 99_000,
    }
    data = Payload(bytes(range(256)), "application/octet-stream")
    execution_id = await world.create(input=data, **given)
    seen = await world.describe(execution_id)
    assert {name: getattr(seen, name) for name in given} == given
    context = await world.execution.read_context(execution_id)
    assert (context.input, context.kind, context.tags) == (data, "resize", given["tags"])


async def test_a_delay_in_the_future_holds_it_back(world: World) -> None:
    """With `delay_until_ms` ahead the execution is delayed, and claimable exactly from that instant.

    Acceptance: delayed-create-waits-until-due
    """
    execution_id = await world.create(delay_until_ms=world.now_ms + 1_000)
    assert await world.state(execution_id) is PublicState.DELAYED
    await world.advance(999)
    assert await world.claim() == ()
    await world.advance(1)
    assert (await world.claim_one()).execution_id == execution_id


@pytest.mark.parametrize("offset_ms", [0, -1, -1_000_000])
async def test_a_delay_that_is_over_means_now(world: World, offset_ms: int) -> None:
    """A `delay_until_ms` that is not in the future leaves the execution eligible at once.

    Acceptance: past-delay-means-now
    """
    execution_id = await world.create(delay_until_ms=world.now_ms + offset_ms)
    assert await world.state(execution_id) is PublicState.WAITING
    assert (await world.claim_one()).execution_id == execution_id


async def test_a_standalone_execution_is_placed_by_its_own_uuid(world: World) -> None:
    """Ids that the store mints are distinct, and their partition follows from the uuid, not from the lane."""
    minted = {await world.create() for _ in range(20)}
    assert len(minted) == 20
    partitions = await world.partitions()
    for execution_id in minted:
        partition, text = parse_execution_id(execution_id)
        assert partition == uuid_partition(uuid.UUID(text), partitions)


async def test_a_keyed_execution_is_placed_by_namespace_and_key(world: World) -> None:
    """The partition of an execution with an idempotency key follows from namespace and key."""
    execution_id = await world.create(namespace="n", idempotency_key="key")
    assert parse_execution_id(execution_id)[0] == key_partition("n", "key", await world.partitions())


@pytest.mark.parametrize("by", ["id", "key", "both"])
async def test_the_same_create_again_is_a_duplicate(world: World, by: str) -> None:
    """Creating again under the same id or key answers the existing execution and where it stands now.

    Acceptance: create-repeated-is-duplicate
    """
    fields: dict[str, Any] = {"input": payload("[1]"), "tags": {"a.b": "c"}, "policy": retrying()}
    if by != "id":
        fields["idempotency_key"] = "key"
    if by != "key":
        fields["execution_id"] = mint_execution_id(
            await world.partitions(), idempotency_key=fields.get("idempotency_key")
        )
    execution_id = await world.create(**fields)
    again = await world.unchanged(world.execution.create(kind="k", **fields))
    assert again == ExecutionDuplicate(execution_id=execution_id, public_state=PublicState.WAITING)
    lease = await world.claim_one()
    await world.execution.complete(lease)
    again = await world.unchanged(world.execution.create(kind="k", **fields))
    assert again == ExecutionDuplicate(execution_id=execution_id, public_state=PublicState.COMPLETED)
    assert await world.listed() == [execution_id]


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "k2"},
        {"lane": "other"},
        {"input": payload("2")},
        {"input": Payload(b"null", "text/plain")},
        {"priority": 1},
        {"creator": "x"},
        {"tags": {"a.b": "d"}},
        {"policy": policy(max_reclaim_count=1)},
    ],
    ids="-".join,
)
async def test_the_same_id_or_key_with_other_content_is_a_conflict(
    world: World, other: dict[str, Any]
) -> None:
    """Reusing an id or a key for a different create is refused and names the execution that has it.

    Acceptance: create-conflict-on-other-content
    """
    execution_id = await world.create(idempotency_key="key")
    changed = {"kind": "k", **other}
    keyed = world.execution.create(idempotency_key="key", **changed)
    await world.refused(IdempotencyConflict, keyed, execution_id=execution_id)
    by_id = await world.create()
    await world.refused(IdempotencyConflict, world.execution.create(execution_id=by_id, **changed))


async def test_instants_and_trace_do_not_make_another_create(world: World) -> None:
    """A repetition may carry another delay, deadline or trace: a caller that repeats computes them anew."""
    execution_id = await world.create(idempotency_key="key", delay_until_ms=world.now_ms + 1_000)
    again = await world.execution.create(
        kind="k",
        idempotency_key="key",
        delay_until_ms=world.now_ms + 2_000,
        deadline_at_ms=world.now_ms + 9_000,
        traceparent=f"00-{'1' * 32}-{'2' * 16}-00",
    )
    assert type(again) is ExecutionDuplicate and again.execution_id == execution_id


async def test_a_key_belongs_to_its_namespace(world: World) -> None:
    """The same key in another namespace names another execution.

    Acceptance: idempotency-scope-is-namespace
    """
    one = await world.create(namespace="one", idempotency_key="key")
    two = await world.create(namespace="two", idempotency_key="key", input=payload("2"))
    assert one != two


async def test_a_key_in_two_lanes_is_one_key(world: World) -> None:
    """The lane is content, not scope: the same key on another lane is a conflict, wherever the lane lives."""
    await world.create(idempotency_key="key", lane="a")
    await world.refused(
        IdempotencyConflict, world.execution.create(kind="k", idempotency_key="key", lane="b")
    )


@pytest.mark.parametrize("window_ms", [None, 5_000])
async def test_a_key_is_forgotten_after_its_window(world: World, window_ms: int | None) -> None:
    """A key deduplicates until its window after creation is over (a day unless the policy says); the id for ever.

    Acceptance: dedup-window-acts
    """
    fields: dict[str, Any] = {
        "idempotency_key": "key",
        "policy": policy(dedup_window_ms=window_ms) if window_ms is not None else None,
    }
    first = await world.create(**fields)
    await world.advance((window_ms or limits.DEDUP_WINDOW_DEFAULT_MS) - 1)
    assert await world.create(**fields) == first
    await world.advance(1)
    by_id = await world.execution.create(kind="k", execution_id=first, **fields)
    assert type(by_id) is ExecutionDuplicate
    second = await world.create(**fields)
    assert second != first
    assert await world.create(**fields) == second


async def test_a_key_outlives_the_record(world: World) -> None:
    """While its window runs, a key answers duplicate without a state even though retention removed the execution."""
    fields: dict[str, Any] = {"idempotency_key": "key", "policy": policy(retention_ms=1_000)}
    lease = await world.completed(**fields)
    await world.advance(1_000)
    assert await world.listed() == []
    reply = await world.execution.create(kind="k", **fields)
    assert reply == ExecutionDuplicate(execution_id=lease.execution_id, public_state=None)
    other = world.execution.create(kind="k", input=payload("2"), **fields)
    await world.refused(IdempotencyConflict, other)


async def test_an_id_must_fit_its_key(world: World) -> None:
    """An id created under a key must be in the key's partition.

    Acceptance: keyed-id-in-the-wrong-partition
    """
    partitions = await world.partitions()
    wanted = key_partition("default", "key", partitions)
    wrong = f"{{fp:{(wanted + 1) % partitions.flow}}}:{uuid.uuid4()}"
    call = world.execution.create(kind="k", execution_id=wrong, idempotency_key="key")
    await world.refused(InvalidInput, call, field="execution_id")


async def test_an_id_must_name_a_partition_that_exists(world: World) -> None:
    """The partition in the id is read from the id and must be below the store's count.

    Acceptance: partition-is-read-from-the-id
    """
    flow = (await world.partitions()).flow
    await world.create(execution_id=f"{{fp:{flow - 1}}}:{uuid.uuid4()}")
    wrong = world.execution.create(kind="k", execution_id=f"{{fp:{flow}}}:{uuid.uuid4()}")
    await world.refused(InvalidInput, wrong, field="execution_id")


@pytest.mark.parametrize(
    ("given", "effective"),
    [(-1, 0), (0, 0), (9_000, 9_000), (9_001, 9_000), (2**31 - 1, 9_000), (-(2**31), 0)],
)
async def test_priority_is_clamped(world: World, given: int, effective: int) -> None:
    """A priority outside 0..9000 is clamped and the effective one answered.

    Acceptance: priority-is-clamped
    """
    reply = await world.execution.create(kind="k", priority=given)
    assert reply.priority == effective
    assert (await world.describe(reply.execution_id)).priority == effective


async def test_priority_beyond_the_accepted_range_is_refused(world: World) -> None:
    """A priority that does not fit 32 bits is refused."""
    for priority in (2**31, -(2**31) - 1):
        await world.refused(InvalidInput, world.execution.create(kind="k", priority=priority))


async def test_a_lane_exists_from_first_use(world: World) -> None:
    """Creating on a lane registers it, active, with the route that was used.

    Acceptance: lane-exists-from-first-use
    """
    await world.create(lane="new-lane")
    info = await world.lane_info("new-lane")
    assert (info.state, info.created_at_ms, info.routes) == ("active", world.now_ms, 1)


@pytest.mark.parametrize(("state", "accepts"), [("paused", True), ("draining", False), ("disabled", False)])
async def test_the_lane_decides_about_creates(world: World, state: str, accepts: bool) -> None:
    """Paused lanes take creates, draining and disabled ones refuse them; a repeated create is answered all the same.

    Acceptance: lane-state-decides-about-creates
    """
    before = await world.create(idempotency_key="before")
    await world.lane.set_state(lane="default", state=state)
    again = await world.execution.create(kind="k", idempotency_key="before")
    assert again.execution_id == before
    if accepts:
        assert await world.state(await world.create()) is PublicState.WAITING
    else:
        await world.refused(LaneNotAccepting, world.execution.create(kind="k"), lane="default", state=state)


async def test_a_conflict_is_found_before_the_lane_is_asked(world: World) -> None:
    """Of a conflict and a lane that takes nothing, the conflict is the answer."""
    await world.create(idempotency_key="key")
    await world.lane.set_state(lane="default", state="disabled")
    call = world.execution.create(kind="k", idempotency_key="key", input=payload("2"))
    await world.refused(IdempotencyConflict, call)


async def test_a_lane_has_at_most_a_thousand_routes(world: World) -> None:
    """The 1,001st combination of kind and capabilities on a lane is refused; known ones and other lanes go on."""
    batch = tuple(ExecutionCreate(kind=f"k{index}") for index in range(limits.ROUTES_PER_LANE_MAX))  # type: ignore[arg-type]
    results = (await world.execution.create_many(executions=batch)).results
    assert {type(result) for result in results} == {ExecutionCreated}
    with pytest.raises(RouteLimitExceeded):
        await world.create(kind="one-more")
    with pytest.raises(RouteLimitExceeded):
        await world.create(kind="k0", policy=requiring("gpu"))
    await world.create(kind="k999")
    await world.create(kind="one-more", lane="other")
    assert (await world.lane_info("default")).routes == limits.ROUTES_PER_LANE_MAX
    await world.lane.set_state(lane="default", state="disabled")
    with pytest.raises(LaneNotAccepting):
        await world.create(kind="one-more")


async def test_an_absolute_and_a_relative_deadline_meet_at_the_earlier(world: World) -> None:
    """The deadline is the earlier of the absolute one and the policy's, which counts from creation.

    Acceptance: deadline-is-stored-and-indexed
    """
    relative = policy(timeout_policy=timing(execution_deadline_ms=5_000))
    first = await world.create(policy=relative, deadline_at_ms=world.now_ms + 4_000)
    second = await world.create(policy=relative, deadline_at_ms=world.now_ms + 6_000)
    third = await world.create(policy=relative)
    deadlines = [(await world.describe(item)).deadline_at_ms for item in (first, second, third)]
    assert deadlines == [world.now_ms + 4_000, world.now_ms + 5_000, world.now_ms + 5_000]
    await world.advance(4_000)
    assert await world.state(first) is PublicState.EXPIRED
    assert await world.state(second) is PublicState.WAITING
    await world.advance(1_000)
    assert await world.state(second) is PublicState.EXPIRED


async def test_omitted_fields_come_from_what_workers_published(world: World) -> None:
    """Lane, priority and policy fields that create omits are the published defaults of the kind.

    Acceptance: worker-defaults-fill-omitted-fields
    """
    published = KindDefaults(
        kind="k",  # type: ignore[arg-type]
        lane="gpu",  # type: ignore[arg-type]
        priority=5,
        policy=policy(retry_policy=RetryPolicy(max_retries=7), max_reclaim_count=2),
    )
    before = await world.create()
    await world.worker.register(worker_id="w", worker_instance="w-1", lanes=("gpu",), defaults=(published,))
    filled = await world.describe(await world.create())
    assert (filled.lane, filled.priority, filled.kind_known) == ("gpu", 5, True)
    assert filled.policy.retry_policy == RetryPolicy(max_retries=7)
    assert filled.policy.max_reclaim_count == 2
    own = RetryPolicy(max_retries=1, backoff=FixedBackoff(delay_ms=1))
    given = await world.describe(await world.create(lane="own", priority=1, policy=policy(retry_policy=own)))
    assert (given.lane, given.priority, given.policy.retry_policy) == ("own", 1, own)
    assert given.policy.max_reclaim_count == 2
    unknown = await world.describe(before)
    assert (unknown.lane, unknown.kind_known, unknown.policy.retry_policy) == ("default", False, None)


async def test_defaults_belong_to_their_namespace(world: World) -> None:
    """What workers of one namespace publish does not touch creates in another."""
    published = KindDefaults(kind="k", lane="gpu")  # type: ignore[arg-type]
    await world.worker.register(
        worker_id="w", worker_instance="w-1", namespace="a", lanes=("gpu",), defaults=(published,)
    )
    assert (await world.execution.create(kind="k", namespace="a")).lane == "gpu"
    assert (await world.execution.create(kind="k", namespace="b")).lane == "default"


async def test_requirements_are_sorted_and_distinct(world: World) -> None:
    """Required capabilities are kept sorted and without repetitions, so equal sets share a route."""
    execution_id = await world.create(policy=requiring("b", "a", "b"))
    await world.create(policy=requiring("a", "b"))
    assert (await world.describe(execution_id)).required_capabilities == ("a", "b")
    assert (await world.lane_info("default")).routes == 1


@pytest.mark.parametrize("by", ["id", "key"])
async def test_racing_creates_make_one_execution(world: World, by: str) -> None:
    """Of several equal creates at the same time one creates and the others are duplicates of it.

    Acceptance: racing-creates-make-one
    """
    same = {"execution_id": UNKNOWN} if by == "id" else {"idempotency_key": "key"}
    outcomes = await world.race(*(world.execution.create(kind="k", **same) for _ in range(8)))
    assert (
        sorted(type(outcome).__name__ for outcome in outcomes)
        == ["ExecutionCreated"] + ["ExecutionDuplicate"] * 7
    )
    assert len({outcome.execution_id for outcome in outcomes}) == 1


async def test_racing_creates_with_other_content_conflict(world: World) -> None:
    """Of two different creates under one key at the same time one wins and the other is refused."""
    outcomes = await world.race(
        *(world.execution.create(kind="k", idempotency_key="key", input=payload(text)) for text in ("1", "2"))
    )
    assert len(won(outcomes)) == 1
    assert lost(outcomes) == ["idempotency_conflict"]
