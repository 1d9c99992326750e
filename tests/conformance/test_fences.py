"""The fence, for every operation that takes one: all three parts, of the live lease, or refused.

What each operation does when it is allowed to is in its own file.
"""

from __future__ import annotations

from typing import Any, Final

import pytest
from msgspec.structs import replace

from flowfabric.contract.errors import (
    ExecutionNotActive,
    ExecutionNotFound,
    FenceRequired,
    InvalidInput,
    LeaseExpired,
    LeaseRevoked,
    PartialFence,
    Refused,
    StaleLease,
    StaleOwnerCannotAppend,
    StreamClosed,
)
from flowfabric.contract.lease import Lease
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import Fence, Payload
from flowfabric.contract.states import CancelSource
from tests.conformance import situations
from tests.conformance.world import OTHER_UUID, TTL_MS, UNKNOWN, World, frame, retrying, won

FIELDS: Final[dict[str, dict[str, Any]]] = {
    "execution.complete": {"result": Payload(b"1")},
    "execution.fail": {"message": "no"},
    "execution.delay": {"delay_until_ms": 1},
    "execution.wait_children": {},
    "execution.progress": {"percent": 1.0},
    "execution.cancel": {},
    "lease.renew": {},
    "lease.release": {},
    "stream.append": {"frames": (frame(1),)},
}
"""Every operation that takes a fence, with what it needs beside it."""

LEASE_CALLS: Final = [name for name in FIELDS if name != "stream.append"]
"""Those that answer as the lease's own operations; append has its own codes for the same situations."""

ENDING_OR_PAUSING: Final = [
    "execution.complete",
    "execution.fail",
    "execution.delay",
    "execution.wait_children",
    "lease.release",
]
"""Those that give the lease back, and answer repetitions with their first answer."""

OVERRIDABLE: Final = [
    name
    for name in FIELDS
    if "source" in OPERATIONS[name].command.__struct_fields__ and name != "execution.cancel"
]


def test_the_list_is_complete() -> None:
    """Every operation whose command has a fence is tested here."""
    assert set(FIELDS) == {
        name for name, operation in OPERATIONS.items() if "fence" in operation.command.__struct_fields__
    }


def other(lease: Lease, **parts: Any) -> Fence:
    """Change parts of a lease's fence."""
    return replace(lease.fence, **parts)


def stale_of(name: str) -> type[Refused]:
    """Return what an operation answers to a fence that is not the live lease's."""
    return StaleOwnerCannotAppend if name == "stream.append" else StaleLease


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "execution.cancel"])
async def test_without_a_fence_it_is_refused(world: World, name: str) -> None:
    """Without a fence the holder's operations are refused, whether or not the execution exists.

    Acceptance: fence-is-required
    """
    lease = await world.leased()
    await world.refused(FenceRequired, world.call(name, lease, fence=None, **FIELDS[name]))
    missing = world.call(name, UNKNOWN, fence=None, **_with_index(name))
    await world.refused(FenceRequired, missing)


def _with_index(name: str) -> dict[str, Any]:
    return {**FIELDS[name], "attempt_index": 0} if name == "stream.append" else FIELDS[name]


@pytest.mark.parametrize("part", ["lease_id", "lease_epoch", "attempt_id"])
@pytest.mark.parametrize("name", FIELDS)
async def test_part_of_a_fence_is_refused(world: World, name: str, part: str) -> None:
    """A fence with a part missing is refused, also when the execution does not exist.

    Acceptance: partial-fence-is-refused
    """
    lease = await world.leased()
    fence = other(lease, **{part: None})
    await world.refused(PartialFence, world.call(name, lease, fence=fence, **FIELDS[name]))
    await world.refused(PartialFence, world.call(name, UNKNOWN, fence=fence, **_with_index(name)))


MALFORMED: Final[dict[str, dict[str, Any]]] = {
    "execution.complete": {"result": Payload(b"", "x")},
    "execution.fail": {"category": "x" * 129},
    "execution.delay": {"delay_until_ms": -1},
    "execution.wait_children": {"actor": "x" * 129},
    "execution.progress": {"percent": -1.0},
    "lease.renew": {"lease_ttl_ms": 0},
    "lease.release": {"reason": "\x00"},
}


@pytest.mark.parametrize(("name", "fields"), MALFORMED.items(), ids=MALFORMED)
async def test_other_malformed_fields_come_first(world: World, name: str, fields: dict[str, Any]) -> None:
    """Of a malformed field and a fence that is missing or partial, the malformed field is the answer."""
    lease = await world.leased()
    await world.refused(InvalidInput, world.call(name, lease, fence=None, **fields))
    partial = other(lease, lease_epoch=None)
    await world.refused(InvalidInput, world.call(name, lease, fence=partial, **fields))


@pytest.mark.parametrize(
    "parts",
    [
        {"lease_id": "x"},
        {"attempt_id": OTHER_UUID.upper() + "A"},
        {"lease_epoch": -1},
        {"lease_epoch": 2**53},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", FIELDS)
async def test_a_malformed_fence_is_refused(world: World, name: str, parts: dict[str, Any]) -> None:
    """A fence with a part that cannot be one is refused as malformed."""
    lease = await world.leased()
    await world.refused(InvalidInput, world.call(name, lease, fence=other(lease, **parts), **FIELDS[name]))


@pytest.mark.parametrize(
    "parts",
    [
        {"lease_id": OTHER_UUID},
        {"attempt_id": OTHER_UUID},
        {"lease_epoch": 0},
        {"lease_epoch": 2},
        {"lane": "other"},
        {"route": "other|"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", FIELDS)
async def test_a_fence_that_differs_in_any_part_is_refused(
    world: World, name: str, parts: dict[str, Any]
) -> None:
    """Every part of the fence must be the live lease's, lane and route too when they are given.

    Acceptance: wrong-lease-is-stale
    Acceptance: wrong-epoch-is-stale
    """
    lease = await world.leased()
    await world.refused(stale_of(name), world.call(name, lease, fence=other(lease, **parts), **FIELDS[name]))


@pytest.mark.parametrize("name", FIELDS)
async def test_lane_and_route_may_be_left_out(world: World, name: str) -> None:
    """The three parts alone are a whole fence."""
    lease = await world.leased()
    await world.call(name, lease, fence=other(lease, lane=None, route=None), **FIELDS[name])


@pytest.mark.parametrize("name", LEASE_CALLS)
async def test_after_expiry_it_is_refused_and_the_expiry_recorded(world: World, name: str) -> None:
    """A call that arrives at or after expiry is refused although no timer ran, and records the expiry.

    Acceptance: late-call-is-lease-expired
    Acceptance: late-call-records-the-expiry
    """
    lease = await world.leased()
    world.clock.advance(TTL_MS)
    for _ in range(2):
        with pytest.raises(LeaseExpired) as caught:
            await world.call(name, lease, **FIELDS[name])
        assert caught.value.details["expired_at_ms"] == lease.lease_expires_at_ms
    seen = await world.describe(lease.execution_id)
    assert seen.state_vector.ownership_state == "lease_expired_reclaimable"
    assert await world.events(lease.execution_id) == ["acquired", "expired"]
    assert (await world.claim_one("other")).attempt_index == 1


@pytest.mark.parametrize("name", LEASE_CALLS)
async def test_a_late_call_with_a_wrong_fence_is_late_first(world: World, name: str) -> None:
    """Of an expired lease and a fence that does not match, the expiry is the answer."""
    lease = await world.leased()
    world.clock.advance(TTL_MS)
    with pytest.raises(LeaseExpired):
        await world.call(name, lease, fence=other(lease, lease_id=OTHER_UUID), **FIELDS[name])


@pytest.mark.parametrize("name", LEASE_CALLS)
async def test_one_millisecond_before_expiry_it_is_accepted(world: World, name: str) -> None:
    """Up to the last millisecond the holder may act."""
    lease = await world.leased()
    world.clock.advance(TTL_MS - 1)
    await world.call(name, lease, **FIELDS[name])


@pytest.mark.parametrize("name", LEASE_CALLS)
async def test_after_revocation_it_is_refused(world: World, name: str) -> None:
    """After revocation the former holder is refused, also after the time its lease would have had.

    Acceptance: revoked-holder-is-refused
    """
    lease = await world.leased()
    await world.lease.revoke(lease, reason="taken away")
    await world.refused(LeaseRevoked, world.call(name, lease, **FIELDS[name]), reason="taken away")
    world.clock.advance(TTL_MS)
    wrong = other(lease, lease_id=OTHER_UUID)
    await world.refused(LeaseRevoked, world.call(name, lease, fence=wrong, **FIELDS[name]))


@pytest.mark.parametrize("name", LEASE_CALLS)
async def test_the_former_holder_is_stale_once_somebody_else_runs(world: World, name: str) -> None:
    """After another worker took over, the former holder's fence is stale.

    Acceptance: former-holder-is-stale
    """
    lease = await world.leased()
    await world.advance(TTL_MS)
    await world.claim_one("other")
    await world.refused(StaleLease, world.call(name, lease, **FIELDS[name]))


@pytest.mark.parametrize("situation", situations.RUNNABLE.values(), ids=situations.RUNNABLE)
@pytest.mark.parametrize("name", LEASE_CALLS)
async def test_what_is_not_active_is_refused(
    world: World, name: str, situation: situations.Situation
) -> None:
    """On an execution that nobody runs the holder's operations say where it is.

    Acceptance: not-active-has-details
    """
    execution_id = await situation(world)
    fence = Fence(lease_id=OTHER_UUID, lease_epoch=1, attempt_id=OTHER_UUID)  # type: ignore[arg-type]
    await world.refused(
        ExecutionNotActive,
        world.call(name, execution_id, fence=fence, **FIELDS[name]),
        lifecycle_phase="runnable",
        terminal_outcome="none",
    )


@pytest.mark.parametrize("situation", situations.ENDED.values(), ids=situations.ENDED)
@pytest.mark.parametrize("name", [name for name in LEASE_CALLS if name != "execution.cancel"])
async def test_what_has_ended_is_refused_with_how(
    world: World, name: str, situation: situations.Situation
) -> None:
    """On a finished execution the holder's operations name outcome, epoch, phase and attempt.

    Acceptance: terminal-operation-on-terminal-names-the-outcome
    """
    execution_id = await situation(world)
    seen = await world.describe(execution_id)
    fence = Fence(lease_id=OTHER_UUID, lease_epoch=9, attempt_id=OTHER_UUID)  # type: ignore[arg-type]
    await world.refused(
        ExecutionNotActive,
        world.call(name, execution_id, fence=fence, **FIELDS[name]),
        lifecycle_phase="terminal",
        terminal_outcome=seen.state_vector.terminal_outcome.value,
        lease_epoch=seen.total_attempt_count,
        attempt_id=seen.current_attempt.attempt_id if seen.current_attempt is not None else None,
    )


@pytest.mark.parametrize("after", ["at once", "later", "another attempt", "its end"])
@pytest.mark.parametrize("name", ENDING_OR_PAUSING)
async def test_a_repetition_gets_the_first_answer(world: World, name: str, after: str) -> None:
    """The same call under the same fence is answered as the first time, however much happened since.

    Acceptance: repeated-terminal-call-gets-the-first-answer
    Acceptance: repeated-fail-gets-the-first-answer
    """
    lease = await world.leased(policy=retrying(delay_ms=0))
    first = await world.call(name, lease, **FIELDS[name])
    if after != "at once":
        world.clock.advance(5 * TTL_MS)
    if after in ("another attempt", "its end"):
        if await world.state(lease.execution_id) == "completed":
            await world.execution.replay(lease.execution_id)
        following = await world.claim_one("other")
        assert following.lease_epoch == 2
        if after == "its end":
            await world.execution.complete(following)
    assert await world.unchanged(world.call(name, lease, **FIELDS[name])) == first


@pytest.mark.parametrize("name", ENDING_OR_PAUSING)
async def test_many_attempts_later_each_repetition_gets_its_answer(world: World, name: str) -> None:
    """Every attempt keeps how it ended: repetitions under old fences get their own answers."""
    leases = [await world.leased(policy=retrying(delay_ms=0))]
    answers = [await world.call(name, leases[0], **FIELDS[name])]
    for _ in range(2):
        world.clock.advance(1)
        if await world.state(leases[0].execution_id) == "completed":
            await world.execution.replay(leases[0].execution_id)
        leases.append(await world.claim_one())
        answers.append(await world.call(name, leases[-1], **FIELDS[name]))
    assert [await world.call(name, lease, **FIELDS[name]) for lease in leases] == answers


@pytest.mark.parametrize("second", ENDING_OR_PAUSING)
@pytest.mark.parametrize("first", ENDING_OR_PAUSING)
async def test_another_operation_under_a_used_fence_is_refused(world: World, first: str, second: str) -> None:
    """After the lease was given back in one way, giving it back in another way is refused.

    Acceptance: other-terminal-operation-is-refused
    """
    if first == second:
        return
    lease = await world.leased(policy=retrying(delay_ms=0))
    await world.call(first, lease, **FIELDS[first])
    refusal: type[Refused] = LeaseRevoked if first == "lease.release" else ExecutionNotActive
    await world.refused(refusal, world.call(second, lease, **FIELDS[second]))
    if first != "execution.complete":
        await world.claim_one("other")
        await world.refused(StaleLease, world.call(second, lease, **FIELDS[second]))


OTHER_CONTENT: Final[dict[str, dict[str, Any]]] = {
    "execution.complete": {"result": Payload(b"2")},
    "execution.fail": {"message": "another"},
    "execution.delay": {"delay_until_ms": 2},
}


@pytest.mark.parametrize("name", OTHER_CONTENT)
async def test_other_content_under_a_used_fence_is_refused(world: World, name: str) -> None:
    """The same operation with other content is not a repetition.

    Acceptance: same-operation-with-other-content-is-refused
    """
    lease = await world.leased(policy=retrying(delay_ms=0))
    await world.call(name, lease, **FIELDS[name])
    changed = OTHER_CONTENT[name]
    await world.refused(
        ExecutionNotActive, world.call(name, lease, **changed), lease_epoch=1, attempt_id=lease.attempt_id
    )
    if name != "execution.complete":
        await world.claim_one("other")
        await world.refused(StaleLease, world.call(name, lease, **changed))


@pytest.mark.parametrize("name", ENDING_OR_PAUSING)
async def test_racing_repetitions_are_carried_out_once(world: World, name: str) -> None:
    """The same call several times at once has one effect and one answer."""
    lease = await world.leased(policy=retrying(delay_ms=0))
    outcomes = await world.race(*(world.call(name, lease, **FIELDS[name]) for _ in range(6)))
    assert len(won(outcomes)) == 6
    assert len({repr(outcome) for outcome in outcomes}) == 1
    assert len(await world.events(lease.execution_id)) == 2


@pytest.mark.parametrize("name", [*ENDING_OR_PAUSING, "execution.cancel"])
async def test_of_two_ways_to_give_back_one_happens(world: World, name: str) -> None:
    """A completion and another way to give the lease back, at the same time: exactly one takes place."""
    if name == "execution.complete":
        return
    for _ in range(5):
        lease = await world.leased(policy=retrying(delay_ms=60_000))
        outcomes = await world.race(world.execution.complete(lease), world.call(name, lease, **FIELDS[name]))
        assert len(won(outcomes)) == 1
        assert len(await world.events(lease.execution_id)) == 2
        await world.execution.cancel(lease.execution_id, source=CancelSource.OPERATOR_OVERRIDE) if (
            await world.state(lease.execution_id) not in ("completed", "cancelled")
        ) else None


@pytest.mark.parametrize("name", OVERRIDABLE)
async def test_an_operator_needs_no_fence(world: World, name: str) -> None:
    """With operator_override the holder's operation is carried out without a fence, and the history says by whom.

    Acceptance: operator-override-needs-no-fence
    """
    lease = await world.leased()
    source = CancelSource.OPERATOR_OVERRIDE
    await world.call(name, lease, fence=None, source=source, actor="ops", **FIELDS[name])
    assert (await world.history(lease.execution_id))[-1].actor == "ops"
    assert (await world.describe(lease.execution_id)).current_lease is None


@pytest.mark.parametrize("name", OVERRIDABLE)
async def test_an_operator_cannot_act_on_what_is_not_active(world: World, name: str) -> None:
    """The override skips the fence only: the execution must be active, its lease neither revoked nor expired.

    Acceptance: operator-override-keeps-the-lifecycle-gate
    """
    source = CancelSource.OPERATOR_OVERRIDE

    def call(execution_id: str) -> Any:
        return world.call(name, execution_id, source=source, **FIELDS[name])

    with pytest.raises(ExecutionNotFound):
        await call(UNKNOWN)
    waiting = await world.create()
    await world.refused(ExecutionNotActive, call(waiting))
    lease = await world.claim_one()
    await world.lease.revoke(lease)
    await world.refused(LeaseRevoked, call(waiting))
    await world.claim_one("other")
    world.clock.advance(TTL_MS)
    with pytest.raises(LeaseExpired):
        await call(waiting)


@pytest.mark.parametrize(
    ("situation", "refusal"),
    [
        (situations.waiting, StreamClosed),
        (situations.completed, StreamClosed),
        (situations.paused, StreamClosed),
    ],
)
async def test_appending_where_nothing_runs_is_refused(
    world: World, situation: situations.Situation, refusal: type[Refused]
) -> None:
    """To append, the execution must be active; otherwise its stream is closed.

    Acceptance: append-after-the-end-is-stream-closed
    """
    execution_id = await situation(world)
    fence = Fence(lease_id=OTHER_UUID, lease_epoch=1, attempt_id=OTHER_UUID)  # type: ignore[arg-type]
    call = world.stream.append(execution_id, attempt_index=0, fence=fence, frames=(frame(1),))
    await world.refused(refusal, call)


@pytest.mark.parametrize("how", ["expired", "recorded", "revoked", "taken over"])
async def test_who_lost_the_lease_cannot_append(world: World, how: str) -> None:
    """After expiry (recorded or not), revocation or takeover the former holder's frames are refused.

    Acceptance: former-holder-cannot-append
    """
    lease = await world.leased()
    if how == "revoked":
        await world.lease.revoke(lease)
    else:
        world.clock.advance(TTL_MS)
    if how in ("recorded", "taken over"):
        await world.advance(0)
    if how == "taken over":
        await world.claim_one("other")
    await world.refused(StaleOwnerCannotAppend, world.stream.append(lease, frames=(frame(1),)))
