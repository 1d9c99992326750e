"""execution.replay: run a finished execution again."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    ExecutionNotEligible,
    ExecutionNotTerminal,
    InvalidInput,
    MaxReplaysExhausted,
)
from flowfabric.contract.execution import ExecutionReplayed
from flowfabric.contract.states import FailureClass, PublicState
from tests.conformance import situations
from tests.conformance.world import (
    TTL_MS,
    UNKNOWN,
    World,
    frame,
    lost,
    payload,
    policy,
    retrying,
    timing,
    won,
)


@pytest.mark.parametrize("situation", situations.ENDED.values(), ids=situations.ENDED)
async def test_every_finished_execution_can_run_again(world: World, situation: situations.Situation) -> None:
    """However it ended, a replay makes it waiting again, and its next attempt is of type replay.

    Acceptance: replay-of-finished-is-waiting
    """
    execution_id = await situation(world)
    reply = await world.execution.replay(execution_id, actor="ops")
    assert reply == ExecutionReplayed(
        execution_id=execution_id, public_state=PublicState.WAITING, replay_count=1
    )
    before = await world.describe(execution_id)
    lease = await world.claim_one()
    assert (lease.execution_id, lease.attempt_type) == (execution_id, "replay")
    assert lease.attempt_index == before.total_attempt_count
    await world.execution.complete(lease)
    assert await world.state(execution_id) is PublicState.COMPLETED


@pytest.mark.parametrize("situation", situations.LIVE.values(), ids=situations.LIVE)
async def test_what_has_not_ended_is_refused(world: World, situation: situations.Situation) -> None:
    """An execution that has not ended cannot be replayed.

    Acceptance: replay-of-unfinished-is-refused
    """
    execution_id = await situation(world)
    await world.refused(ExecutionNotTerminal, world.execution.replay(execution_id))


async def test_everything_starts_over(world: World) -> None:
    """Retries and takeovers count from zero, result, failure and progress are gone, the input stays.

    Acceptance: replay-starts-over
    """
    lease = await world.leased(policy=retrying(max_retries=1, delay_ms=0), input=payload("7"))
    await world.execution.progress(lease, percent=50.0)
    await world.execution.fail(lease)
    retry = await world.claim_one()
    await world.execution.fail(retry)
    assert await world.state(lease.execution_id) is PublicState.FAILED
    await world.execution.replay(lease.execution_id)
    seen = await world.describe(lease.execution_id)
    assert (seen.retry_count, seen.reclaim_count, seen.failure, seen.progress) == (0, 0, None, None)
    assert (seen.completed_at_ms, seen.retention_due_at_ms) == (None, None)
    again = await world.claim_one()
    assert (again.input, again.retry_count, again.attempt_index) == (payload("7"), 0, 2)
    await world.execution.fail(again)
    assert (await world.claim_one()).attempt_type == "retry"


async def test_takeovers_start_over(world: World) -> None:
    """A replay of an execution that ended at its reclaim cap may be taken over again."""
    lease = await world.leased(policy=policy(max_reclaim_count=0))
    await world.advance(TTL_MS)
    assert await world.state(lease.execution_id) is PublicState.FAILED
    await world.execution.replay(lease.execution_id)
    again = await world.claim_one()
    assert (again.attempt_type, again.attempt_index) == ("replay", 1)


async def test_the_result_is_cleared_and_set_anew(world: World) -> None:
    """After a replay that completes without a result there is none."""
    lease = await world.completed(payload("1"))
    await world.execution.replay(lease.execution_id)
    await world.execution.complete(await world.claim_one())
    assert (await world.execution.read_result(lease.execution_id)).result is None


async def test_the_finished_run_stays_in_the_lineage(world: World) -> None:
    """Outcome, instants, last attempt and who asked are kept for every run that was replayed.

    Acceptance: replay-records-lineage
    """
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1),))
    await world.execution.fail(lease, failure_class=FailureClass.PERMANENT)
    failed_ms = world.now_ms
    world.clock.advance(10)
    await world.execution.replay(lease.execution_id, actor="ops")
    (run,) = (await world.describe(lease.execution_id)).replays
    assert (run.outcome, run.completed_at_ms, run.replayed_at_ms) == ("failed", failed_ms, world.now_ms)
    assert (run.last_attempt_index, run.actor) == (0, "ops")
    event = (await world.history(lease.execution_id))[-1]
    assert (event.name, event.actor) == ("replay_initiated", "ops")
    await world.execution.complete(await world.claim_one())
    first, second = (await world.attempt.list(lease.execution_id)).attempts
    assert (first.state, second.state, second.previous_attempt_index) == ("ended_failure", "ended_success", 0)
    assert len(await world.frames(lease.execution_id, 0)) == 1


async def test_a_relative_deadline_is_armed_again(world: World) -> None:
    """A deadline of the policy counts from the replay; an absolute one that has passed does not end the new run.

    Acceptance: replay-rearms-the-deadline
    """
    execution_id = await world.create(
        policy=policy(timeout_policy=timing(execution_deadline_ms=5_000)),
        deadline_at_ms=world.now_ms + 3_000,
    )
    await world.advance(3_000)
    assert await world.state(execution_id) is PublicState.EXPIRED
    await world.execution.replay(execution_id)
    assert (await world.describe(execution_id)).deadline_at_ms == world.now_ms + 5_000
    await world.advance(4_999)
    assert await world.state(execution_id) is PublicState.WAITING
    await world.advance(1)
    assert await world.state(execution_id) is PublicState.EXPIRED


async def test_started_at_is_stamped_once(world: World) -> None:
    """The first claim stamps when it started; retries, takeovers and replays do not overwrite it.

    Acceptance: started-at-is-stamped-once
    """
    lease = await world.leased(policy=retrying(delay_ms=0))
    started_ms = world.now_ms
    world.clock.advance(5)
    await world.execution.fail(lease)
    await world.claim_one()
    await world.advance(TTL_MS)
    await world.execution.complete(await world.claim_one())
    await world.execution.replay(lease.execution_id)
    await world.claim_one()
    assert (await world.describe(lease.execution_id)).started_at_ms == started_ms


@pytest.mark.parametrize("most", [None, 0, 2])
async def test_replays_are_bounded(world: World, most: int | None) -> None:
    """As many replays as the policy allows (10 unless it says), then max_replays_exhausted.

    Acceptance: replays-are-bounded-by-the-policy
    """
    execution_id = await situations.cancelled(
        world, policy=policy(max_replay_count=most) if most is not None else None
    )
    count = most if most is not None else limits.REPLAY_COUNT_DEFAULT
    for number in range(count):
        assert (await world.execution.replay(execution_id)).replay_count == number + 1
        await world.execution.cancel(execution_id)
    await world.refused(MaxReplaysExhausted, world.execution.replay(execution_id), replay_count=count)
    assert len((await world.describe(execution_id)).replays) == count


async def test_an_expected_count_makes_repeating_safe(world: World) -> None:
    """With the count of replays so far, a repetition is answered and not carried out again.

    Acceptance: replay-with-expected-count-is-repeatable
    """
    execution_id = await situations.completed(world)
    first = await world.execution.replay(execution_id, expected_replay_count=0)
    again = await world.unchanged(world.execution.replay(execution_id, expected_replay_count=0))
    assert (first.replay_count, again.replay_count) == (1, 1)
    lease = await world.claim_one()
    again = await world.unchanged(world.execution.replay(execution_id, expected_replay_count=0))
    assert again.public_state is PublicState.ACTIVE
    await world.execution.complete(lease)
    await world.execution.replay(execution_id, expected_replay_count=1)
    wrong = world.execution.replay(execution_id, expected_replay_count=0)
    await world.refused(ExecutionNotEligible, wrong, replay_count=2)
    ahead = world.execution.replay(execution_id, expected_replay_count=9)
    await world.refused(ExecutionNotEligible, ahead)


async def test_an_exhausted_unfinished_one_is_unfinished_first(world: World) -> None:
    """Of an execution that has not ended and a used-up replay count, not ended is the answer."""
    execution_id = await world.create(policy=policy(max_replay_count=0))
    await world.refused(ExecutionNotTerminal, world.execution.replay(execution_id))


async def test_twice_without_a_count_is_refused(world: World) -> None:
    """A second replay of the same end finds the execution waiting."""
    execution_id = await situations.completed(world)
    await world.execution.replay(execution_id)
    await world.refused(ExecutionNotTerminal, world.execution.replay(execution_id))


async def test_racing_replays_are_one(world: World) -> None:
    """Of replays at the same time one takes place; with an expected count all answer the same."""
    execution_id = await situations.completed(world)
    outcomes = await world.race(*(world.execution.replay(execution_id) for _ in range(4)))
    assert len(won(outcomes)) == 1 and set(lost(outcomes)) == {"execution_not_terminal"}
    await world.execution.cancel(execution_id)
    outcomes = await world.race(
        *(world.execution.replay(execution_id, expected_replay_count=1) for _ in range(4))
    )
    assert {outcome.replay_count for outcome in outcomes} == {2}


async def test_arguments_are_checked_first(world: World) -> None:
    """A long actor and a negative count are refused before the execution is looked for."""
    await world.refused(InvalidInput, world.execution.replay(UNKNOWN, actor="a" * 129))
    await world.refused(InvalidInput, world.execution.replay(UNKNOWN, expected_replay_count=-1))
    count = limits.COUNT_MAX + 1
    await world.refused(InvalidInput, world.execution.replay(UNKNOWN, expected_replay_count=count))


async def test_retention_starts_over(world: World) -> None:
    """A replayed execution is not removed when its first run's retention would have been over."""
    lease = await world.completed(policy=policy(retention_ms=1_000))
    await world.execution.replay(lease.execution_id)
    await world.advance(1_000)
    assert await world.state(lease.execution_id) is PublicState.WAITING
    await world.execution.complete(await world.claim_one())
    await world.advance(1_000)
    assert await world.listed() == []
