"""lease.history: every step of an execution's leases, oldest first."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from tests.conformance.world import TTL_MS, World, retrying


async def test_it_tells_the_whole_story(world: World) -> None:
    """Every grant, renewal, loss, takeover, release and end is one entry, in order, with the lease's epoch.

    Acceptance: history-tells-every-lease-step
    """
    lease = await world.leased("a", policy=retrying(delay_ms=0))
    await world.lease.renew(lease)
    await world.advance(TTL_MS)
    second = await world.claim_one("b")
    await world.execution.fail(second)
    third = await world.claim_one("c")
    await world.lease.revoke(third)
    fourth = await world.claim_one("d")
    await world.execution.wait_children(fourth)
    await world.execution.complete(await world.claim_one("e"))
    await world.execution.replay(lease.execution_id)
    events = await world.history(lease.execution_id)
    assert [(event.name.value, event.lease_epoch) for event in events] == [
        ("acquired", 1),
        ("renewed", 1),
        ("expired", 1),
        ("reclaimed", 2),
        ("released", 2),
        ("acquired", 3),
        ("revoked", 3),
        ("reclaimed", 4),
        ("released", 4),
        ("acquired", 5),
        ("released", 5),
        ("replay_initiated", 5),
    ]
    assert [event.reason for event in events if event.name == "released"] == [
        "failed_retry_scheduled",
        "waiting_children",
        "completed",
    ]
    assert [event.attempt_index for event in events] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3]


async def test_the_order_is_strict(world: World) -> None:
    """Event ids increase strictly, also within one millisecond."""
    lease = await world.leased()
    for _ in range(5):
        await world.lease.renew(lease)
    ids = [event.event_id for event in await world.history(lease.execution_id)]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("limit", [1, 2, 5, 1_000])
async def test_pages_lose_and_repeat_nothing(world: World, limit: int) -> None:
    """Whatever the page size every entry appears once; entries that come meanwhile follow."""
    lease = await world.leased()
    for _ in range(4):
        await world.lease.renew(lease)
    whole = await world.history(lease.execution_id)
    found = await world.pages("lease.history", "events", lease.execution_id, limit=limit)
    assert tuple(found) == whole and len(whole) == 5


async def test_an_execution_never_leased_has_none(world: World) -> None:
    """Before the first claim the history is empty."""
    page = await world.lease.history(await world.create())
    assert (page.events, page.next_cursor) == ((), None)


async def test_the_latest_thousand_are_kept(world: World) -> None:
    """Of a very long history about the latest 1,000 entries are kept, the latest among them."""
    lease = await world.leased()
    for _ in range(limits.HISTORY_KEPT + 300):
        world.clock.advance(1)
        await world.lease.renew(lease)
    events = await world.history(lease.execution_id)
    assert limits.HISTORY_KEPT <= len(events) <= limits.HISTORY_KEPT * 1.1
    assert events[-1].at_ms == world.now_ms


@pytest.mark.parametrize(
    "fields",
    [{"limit": 0}, {"limit": limits.PAGE_MAX + 1}, {"cursor": "x"}, {"cursor": "-1"}, {"cursor": "9" * 19}],
    ids=str,
)
async def test_malformed_arguments_are_refused(world: World, fields: dict[str, Any]) -> None:
    """Bounds are kept and a cursor that this operation did not return is refused."""
    lease = await world.leased()
    await world.refused(InvalidInput, world.lease.history(lease.execution_id, **fields))
