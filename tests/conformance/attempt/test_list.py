"""attempt.list: all attempts of an execution, oldest first."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from tests.conformance.world import TTL_MS, World, retrying


async def test_before_the_first_claim_there_are_none(world: World) -> None:
    """An execution never claimed has no attempts."""
    page = await world.attempt.list(await world.create())
    assert (page.attempts, page.next_cursor) == ((), None)


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 1_000])
async def test_every_way_to_start_one_is_listed_without_gaps(world: World, limit: int) -> None:
    """Initial, retry, reclaim and replay attempts are numbered from 0 without gaps, each naming the one before.

    Acceptance: attempts-are-numbered-without-gaps
    """
    lease = await world.leased(policy=retrying(delay_ms=0))
    await world.execution.fail(lease)
    await world.claim_one()
    await world.advance(TTL_MS)
    await world.execution.complete(await world.claim_one())
    await world.execution.replay(lease.execution_id)
    await world.execution.delay(await world.claim_one(), delay_until_ms=0)
    await world.execution.complete(await world.claim_one())
    found = await world.pages("attempt.list", "attempts", lease.execution_id, limit=limit)
    assert [attempt.attempt_index for attempt in found] == [0, 1, 2, 3]
    assert [attempt.attempt_type.value for attempt in found] == ["initial", "retry", "reclaim", "replay"]
    assert [attempt.previous_attempt_index for attempt in found] == [None, 0, 1, 2]
    assert [attempt.state.value for attempt in found] == [
        "ended_failure",
        "interrupted_reclaimed",
        "ended_success",
        "ended_success",
    ]
    assert [
        await world.attempt.describe(lease.execution_id, attempt_index=index) for index in range(4)
    ] == found


@pytest.mark.parametrize(
    "fields",
    [
        {"limit": 0},
        {"limit": limits.ATTEMPT_PAGE_MAX + 1},
        {"cursor": "x"},
        {"cursor": ""},
        {"cursor": "-1"},
        {"cursor": "1" * 10},
        {"cursor": "\u0661"},
    ],
    ids=str,
)
async def test_malformed_arguments_are_refused(world: World, fields: dict[str, Any]) -> None:
    """Bounds are kept and a cursor that this operation did not return is refused."""
    lease = await world.leased()
    await world.refused(InvalidInput, world.attempt.list(lease.execution_id, **fields))
