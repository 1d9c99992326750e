"""execution.create_many: a thousand creates in one call, each with its own outcome."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreated, ExecutionDuplicate, ItemRefused
from tests.conformance.world import World, payload


def item(**fields: Any) -> ExecutionCreate:
    """Make one item of a batch."""
    return ExecutionCreate(**{"kind": "k", **fields})


async def test_results_come_in_the_order_of_the_items(world: World) -> None:
    """Every item has its result, in the order of the items, and can be read.

    Acceptance: create-many-answers-in-order
    """
    batch = tuple(item(kind=f"k{index}", priority=index) for index in range(200))
    results = (await world.execution.create_many(executions=batch)).results
    assert [result.priority for result in results] == list(range(200))
    infos = [await world.execution.read_info(result.execution_id) for result in results]
    assert [info.kind for info in infos] == [each.kind for each in batch]


async def test_a_refused_item_does_not_touch_the_others(world: World) -> None:
    """Each item is atomic by itself: malformed, conflicting and refused ones name their code, the rest is created.

    Acceptance: create-many-items-are-independent
    """
    await world.create(idempotency_key="taken")
    await world.lane.set_state(lane="closed", state="draining")
    batch = (
        item(),
        item(kind=""),
        item(tags={"x": ""}),
        item(idempotency_key="taken", input=payload("2")),
        item(lane="closed"),
        item(),
    )
    results = (await world.execution.create_many(executions=batch)).results
    outcomes = [
        result.code if isinstance(result, ItemRefused) else type(result).__name__ for result in results
    ]
    assert outcomes == [
        "ExecutionCreated",
        "invalid_input",
        "invalid_tag_key",
        "idempotency_conflict",
        "lane_not_accepting",
        "ExecutionCreated",
    ]
    refused = results[4]
    assert refused.retryable and refused.details["lane"] == "closed"
    assert len(await world.listed()) == 3


async def test_repeating_the_batch_is_safe(world: World) -> None:
    """A batch of keyed items sent again answers duplicates of the same executions, in the same order.

    Acceptance: create-many-is-repeatable
    """
    batch = tuple(item(idempotency_key=f"key {index}") for index in range(50))
    first = (await world.execution.create_many(executions=batch)).results
    again = (await world.unchanged(world.execution.create_many(executions=batch))).results
    assert {type(result) for result in again} == {ExecutionDuplicate}
    assert [result.execution_id for result in again] == [result.execution_id for result in first]


async def test_the_same_key_twice_in_a_batch_is_one_execution(world: World) -> None:
    """Within a batch, too, the second use of a key is a duplicate or a conflict."""
    batch = (item(idempotency_key="a"), item(idempotency_key="a"), item(idempotency_key="a", priority=1))
    created, duplicate, conflict = (await world.execution.create_many(executions=batch)).results
    assert type(created) is ExecutionCreated and type(duplicate) is ExecutionDuplicate
    assert duplicate.execution_id == created.execution_id
    assert conflict.code == "idempotency_conflict"


@pytest.mark.parametrize("count", [1, limits.CREATE_MANY_MAX])
async def test_a_batch_holds_one_to_a_thousand(world: World, count: int) -> None:
    """A batch of one and one of a thousand are carried out."""
    results = (await world.execution.create_many(executions=(item(),) * count)).results
    assert len({result.execution_id for result in results}) == count


@pytest.mark.parametrize("count", [0, limits.CREATE_MANY_MAX + 1])
async def test_an_empty_or_too_large_batch_is_refused(world: World, count: int) -> None:
    """An empty batch and one of 1,001 are refused whole."""
    await world.refused(InvalidInput, world.execution.create_many(executions=(item(),) * count))


async def test_racing_batches_make_each_execution_once(world: World) -> None:
    """Two equal batches at the same time create every execution exactly once."""
    batch = tuple(item(idempotency_key=f"key {index}") for index in range(150))
    outcomes = await world.race(*(world.execution.create_many(executions=batch) for _ in range(2)))
    ids = [[result.execution_id for result in outcome.results] for outcome in outcomes]
    assert ids[0] == ids[1]
    assert len(await world.listed(limit=1_000)) == 150
