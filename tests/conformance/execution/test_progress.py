"""execution.progress: how far the attempt is. Fences are in `test_fences`."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from tests.conformance.world import World


async def test_what_is_not_given_keeps_its_value(world: World) -> None:
    """A percentage or a message alone leaves the other as it was.

    Acceptance: progress-partial-update
    """
    lease = await world.leased()
    await world.execution.progress(lease, percent=10.5, message="reading")
    world.clock.advance(1)
    reply = await world.execution.progress(lease, percent=20.0)
    assert (reply.percent, reply.message) == (20.0, "reading")
    reply = await world.execution.progress(lease, message="writing")
    assert (reply.percent, reply.message) == (20.0, "writing")
    stored = (await world.describe(lease.execution_id)).progress
    assert stored is not None
    assert (stored.percent, stored.message, stored.at_ms) == (20.0, "writing", world.now_ms)


async def test_giving_nothing_changes_nothing(world: World) -> None:
    """With neither given the stored progress is answered and nothing is written.

    Acceptance: progress-without-values-is-a-no-op
    """
    lease = await world.leased()
    empty = await world.unchanged(world.execution.progress(lease))
    assert (empty.percent, empty.message) == (None, None)
    await world.execution.progress(lease, percent=5.0)
    world.clock.advance(1)
    reply = await world.unchanged(world.execution.progress(lease))
    assert (reply.percent, reply.message) == (5.0, None)


async def test_the_last_write_wins(world: World) -> None:
    """Progress may go back, and repeating it is harmless."""
    lease = await world.leased()
    for percent in (50.0, 10.0, 10.0):
        await world.execution.progress(lease, percent=percent)
    stored = (await world.describe(lease.execution_id)).progress
    assert stored is not None and stored.percent == 10.0


@pytest.mark.parametrize("percent", [0.0, 100.0])
async def test_the_bounds_are_accepted(world: World, percent: float) -> None:
    """Zero and a hundred percent are accepted, and a message of 4,096 bytes."""
    lease = await world.leased()
    message = "x" * limits.REASON_BYTES_MAX
    reply = await world.execution.progress(lease, percent=percent, message=message)
    assert (reply.percent, reply.message) == (percent, message)


@pytest.mark.parametrize(
    "fields",
    [
        {"percent": -0.1},
        {"percent": 100.1},
        {"percent": float("nan")},
        {"message": "x" * 4_097},
        {"message": "\x00"},
    ],
    ids=str,
)
async def test_past_the_bounds_is_refused(world: World, fields: dict[str, object]) -> None:
    """Percentages outside 0..100, NaN and long messages are refused."""
    lease = await world.leased()
    await world.refused(InvalidInput, world.execution.progress(lease, **fields))


async def test_it_is_no_heartbeat(world: World) -> None:
    """Reporting progress does not extend the lease."""
    lease = await world.leased()
    world.clock.advance(5)
    await world.execution.progress(lease, percent=1.0)
    current = (await world.describe(lease.execution_id)).current_lease
    assert current is not None and current.expires_at_ms == lease.lease_expires_at_ms


async def test_racing_reports_all_answer(world: World) -> None:
    """Reports at the same time are all stored in some order; the last is one of them."""
    lease = await world.leased()
    given = [float(number) for number in range(10)]
    replies = await world.race(*(world.execution.progress(lease, percent=percent) for percent in given))
    assert [reply.percent for reply in replies] == given
    stored = (await world.describe(lease.execution_id)).progress
    assert stored is not None and stored.percent in given
