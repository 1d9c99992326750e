"""execution.fail: retries, backoff, and the end as failed. Fences and repetitions are in `test_fences`."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.execution import ExecutionFailed, RetryScheduled
from flowfabric.contract.policies import ExponentialBackoff, FixedBackoff, RetryPolicy
from flowfabric.contract.states import FailureClass, PublicState
from tests.conformance.world import World, frame, policy, retrying, timing

RETRIED = (FailureClass.TRANSIENT, FailureClass.INFRA_CRASH, FailureClass.TIMEOUT)
FINAL = (FailureClass.PERMANENT, FailureClass.CANCELLED)


async def test_a_retry_follows_after_the_backoff(world: World) -> None:
    """A failure with retries left delays the execution by the backoff; the next claim is attempt 1 of type retry.

    Acceptance: fail-with-retries-is-retried-after-backoff
    """
    lease = await world.leased(policy=retrying(delay_ms=1_000))
    reply = await world.execution.fail(lease, category="handler_error", message="boom")
    assert reply == RetryScheduled(
        execution_id=lease.execution_id, delay_until_ms=world.now_ms + 1_000, retry_count=1
    )
    seen = await world.describe(lease.execution_id)
    assert (seen.public_state, seen.state_vector.blocking_reason) == ("delayed", "waiting_for_retry_backoff")
    assert seen.not_before_ms == world.now_ms + 1_000
    assert seen.failure is not None and seen.failure.message == "boom"
    await world.advance(1_000)
    assert await world.state(lease.execution_id) is PublicState.WAITING
    retry = await world.claim_one()
    assert (retry.attempt_index, retry.attempt_type, retry.retry_count) == (1, "retry", 1)
    attempt = await world.attempt.describe(retry)
    assert attempt.previous_attempt_index == 0


async def test_it_is_not_claimable_before_the_backoff_is_over(world: World) -> None:
    """One millisecond before the backoff is over nobody can claim the execution.

    Acceptance: retry-waits-for-its-backoff
    """
    lease = await world.leased(policy=retrying(delay_ms=1_000))
    await world.execution.fail(lease)
    await world.advance(999)
    assert await world.claim() == ()
    await world.advance(1)
    await world.claim_one()


async def test_each_attempt_keeps_its_own_record_and_stream(world: World) -> None:
    """The failed attempt keeps its failure and frames, the retry has a stream of its own.

    Acceptance: attempts-keep-their-own-streams
    """
    lease = await world.leased(policy=retrying(delay_ms=0))
    await world.stream.append(lease, frames=(frame(1, b'"first"'),))
    await world.execution.fail(lease, message="boom")
    retry = await world.claim_one()
    await world.stream.append(retry, frames=(frame(1, b'"second"'),))
    streams = [await world.frames(lease.execution_id, index) for index in (0, 1)]
    assert [[item.payload.data for item in stream] for stream in streams] == [[b'"first"'], [b'"second"']]
    failed = await world.attempt.describe(lease)
    assert (failed.state, failed.stream_closed_reason) == ("ended_failure", "attempt_failure")
    assert failed.failure is not None and failed.failure.message == "boom"


@pytest.mark.parametrize("retry", [None, RetryPolicy(max_retries=0)], ids=["no policy", "no retries"])
async def test_without_retries_it_is_final(world: World, retry: RetryPolicy | None) -> None:
    """Without a retry policy, or with zero retries, the first failure ends the execution.

    Acceptance: fail-without-retries-is-final
    """
    lease = await world.leased(policy=policy(retry_policy=retry) if retry is not None else None)
    reply = await world.execution.fail(lease)
    assert reply == ExecutionFailed(execution_id=lease.execution_id, public_state=PublicState.FAILED)
    seen = await world.describe(lease.execution_id)
    assert (seen.public_state, seen.state_vector.terminal_outcome) == ("failed", "failed")
    assert (await world.history(lease.execution_id))[-1].outcome == "failed"


async def test_retries_run_out(world: World) -> None:
    """With n retries there are n + 1 attempts, numbered without gaps, and the last failure is final.

    Acceptance: retries-are-bounded-by-the-policy
    """
    lease = await world.leased(policy=retrying(max_retries=2, delay_ms=10))
    replies: list[Any] = []
    for _ in range(3):
        replies.append(await world.execution.fail(lease))
        await world.advance(10)
        for following in await world.claim():
            lease = following
    assert [type(reply) for reply in replies] == [RetryScheduled, RetryScheduled, ExecutionFailed]
    attempts = (await world.attempt.list(lease.execution_id)).attempts
    assert [attempt.attempt_index for attempt in attempts] == [0, 1, 2]
    assert (await world.describe(lease.execution_id)).retry_count == 2


@pytest.mark.parametrize("failure_class", FailureClass)
async def test_the_class_decides(world: World, failure_class: FailureClass) -> None:
    """Transient failures, crashes and timeouts are retried; permanent failures and cancellations are final.

    Acceptance: failure-class-decides-about-the-retry
    """
    lease = await world.leased(policy=retrying())
    reply = await world.execution.fail(lease, failure_class=failure_class)
    assert isinstance(reply, RetryScheduled) == (failure_class in RETRIED)


@pytest.mark.parametrize("failure_class", FINAL)
async def test_a_listed_category_is_retried_whatever_its_class(
    world: World, failure_class: FailureClass
) -> None:
    """A category listed in the retry policy is retried even when its class is final; others are not.

    Acceptance: retryable-categories-act
    """
    listed = policy(
        retry_policy=RetryPolicy(retryable_categories=("flaky",), backoff=FixedBackoff(delay_ms=0))
    )
    lease = await world.leased(policy=listed)
    assert isinstance(
        await world.execution.fail(lease, failure_class=failure_class, category="flaky"), RetryScheduled
    )
    reply = await world.execution.fail(await world.claim_one(), failure_class=failure_class, category="other")
    assert isinstance(reply, ExecutionFailed)


async def test_the_listed_category_does_not_add_retries(world: World) -> None:
    """A listed category is retried only while retries are left."""
    listed = policy(retry_policy=RetryPolicy(max_retries=0, retryable_categories=("flaky",)))
    lease = await world.leased(policy=listed)
    assert isinstance(await world.execution.fail(lease, category="flaky"), ExecutionFailed)


async def delays(
    world: World, backoff: FixedBackoff | ExponentialBackoff, count: int
) -> tuple[str, list[int]]:
    """Fail again and again and return the backoffs."""
    retry = RetryPolicy(max_retries=count, backoff=backoff)
    lease = await world.leased(policy=policy(retry_policy=retry))
    found: list[int] = []
    for _ in range(count):
        reply = await world.execution.fail(lease)
        found.append(reply.delay_until_ms - world.now_ms)
        await world.advance(found[-1])
        lease = await world.claim_one(lease_ttl_ms=limits.LEASE_TTL_MAX_MS)
    return lease.execution_id, found


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (FixedBackoff(delay_ms=250), [250] * 5),
        (FixedBackoff(), [1_000] * 5),
        (ExponentialBackoff(), [1_000, 2_000, 4_000, 8_000, 16_000]),
        (
            ExponentialBackoff(initial_delay_ms=100, multiplier=3.0, max_delay_ms=1_000),
            [100, 300, 900, 1_000, 1_000],
        ),
        (ExponentialBackoff(initial_delay_ms=7, multiplier=1.0), [7] * 5),
        (ExponentialBackoff(initial_delay_ms=5_000, max_delay_ms=10), [10] * 5),
        (ExponentialBackoff(initial_delay_ms=0), [0] * 5),
    ],
    ids=str,
)
async def test_backoff_grows_as_the_policy_says(
    world: World, backoff: FixedBackoff | ExponentialBackoff, expected: list[int]
) -> None:
    """The backoff before retry n is min(initial x multiplier^n, max), or the fixed delay.

    Acceptance: backoff-follows-the-policy
    """
    assert (await delays(world, backoff, len(expected)))[1] == expected


@pytest.mark.parametrize(
    "backoff",
    [FixedBackoff(delay_ms=100_000, jitter=True), ExponentialBackoff(initial_delay_ms=50_000, jitter=True)],
    ids=["fixed", "exponential"],
)
async def test_jitter_takes_half_to_all(world: World, backoff: FixedBackoff | ExponentialBackoff) -> None:
    """With jitter each backoff is within half to all of it, and follows from execution id and retry count.

    Acceptance: jitter-is-bounded-and-deterministic
    """
    whole = [100_000] * 4 if isinstance(backoff, FixedBackoff) else [50_000, 60_000, 60_000, 60_000]
    execution_id, found = await delays(world, backoff, 4)
    for count, (delay_ms, full_ms) in enumerate(zip(found, whole, strict=True)):
        assert full_ms // 2 <= delay_ms <= full_ms
        digest = hashlib.sha256(f"{execution_id}:{count}".encode()).digest()
        assert delay_ms == int(full_ms * (0.5 + int.from_bytes(digest[:8], "big") / 2**65))
    assert len(set(found)) > 1


async def test_a_backoff_of_zero_is_eligible_at_once(world: World) -> None:
    """Without a delay the retry can be claimed right away, and keeps its place by age."""
    lease = await world.leased(policy=retrying(delay_ms=0))
    world.clock.advance(1)
    await world.create()
    await world.execution.fail(lease)
    assert await world.state(lease.execution_id) is PublicState.WAITING
    assert (await world.claim_one()).execution_id == lease.execution_id


async def test_a_retry_keeps_its_place(world: World) -> None:
    """A retry is as old as its execution: it goes before younger work of the same priority.

    Acceptance: retry-keeps-its-age
    """
    lease = await world.leased(policy=retrying(delay_ms=100))
    world.clock.advance(1)
    younger = await world.create()
    await world.execution.fail(lease)
    await world.advance(100)
    order = [leased.execution_id for leased in await world.claim(max_tasks=2)]
    assert order == [lease.execution_id, younger]


async def test_the_attempt_timeout_ends_with_the_attempt(world: World) -> None:
    """After a failure the attempt's timeout fires no more; the retry has one of its own."""
    retry = retrying(delay_ms=5_000, timeout_policy=timing(attempt_timeout_ms=1_000))
    lease = await world.leased(policy=retry)
    await world.execution.fail(lease)
    await world.advance(2_000)
    assert (await world.describe(lease.execution_id)).retry_count == 1
    await world.advance(3_000)
    following = await world.claim_one()
    assert following.attempt_timeout_at_ms == world.now_ms + 1_000


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("category", limits.FAILURE_CATEGORY_LENGTH_MAX),
        ("message", limits.FAILURE_MESSAGE_BYTES_MAX),
        ("actor", limits.NAME_LENGTH_MAX),
    ],
)
async def test_texts_are_bounded(world: World, field: str, most: int) -> None:
    """Category, message and actor are accepted up to their bound; past it, with NUL or unpaired surrogates refused."""
    lease = await world.leased(policy=retrying())
    for bad in ("x" * (most + 1), "é" * (most // 2 + 1), "\x00", "\ud800"):
        await world.refused(InvalidInput, world.execution.fail(lease, **{field: bad}), field=field)
    await world.execution.fail(lease, **{field: "x" * most})
