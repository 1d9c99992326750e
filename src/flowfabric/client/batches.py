"""Submitting many: chunks that fit one request, in order, each item with its own outcome."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

from flowfabric.client.progress import Report
from flowfabric.contract import limits
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import FlowFabricError, from_code
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ExecutionDuplicate,
    ItemRefused,
)

CHUNK_DEFAULT: Final = limits.CREATE_MANY_MAX
CHUNK_BYTES: Final = limits.BODY_BATCH_MAX - 512 * 1024
"""Of a request's body, as estimated from above."""

ITEM_BYTES: Final = 1_024
"""Room for an item's id, names and numbers."""

Outcome = ExecutionCreated | ExecutionDuplicate | FlowFabricError


def request_bytes(item: ExecutionCreate) -> int:
    """Return an upper bound of what an item takes in a request's body."""
    size = ITEM_BYTES + _text(item.kind, item.namespace, item.lane, item.creator, item.idempotency_key)
    size += sum(_text(key, value) + 8 for key, value in item.tags.items())
    if item.policy is not None:
        size += ITEM_BYTES
        if item.policy.routing_requirements is not None:
            size += _text(*item.policy.routing_requirements.required_capabilities)
        if item.policy.retry_policy is not None:
            size += _text(*item.policy.retry_policy.retryable_categories)
    # JSON is sent as it is, other bytes as base64.
    return size + len(item.input.data) * 4 // 3 + 4


def _text(*texts: str | None) -> int:
    # A control character becomes six bytes in JSON.
    return sum(len(text) * 6 + 4 for text in texts if text is not None)


def chunks(items: Sequence[ExecutionCreate], count_max: int) -> Generator[Sequence[ExecutionCreate]]:
    """Cut a batch into pieces that one request takes, keeping the order."""
    begin, size = 0, 0
    for index, item in enumerate(items):
        item_size = request_bytes(item)
        if index > begin and (index - begin >= count_max or size + item_size > CHUNK_BYTES):
            yield items[begin:index]
            begin, size = index, 0
        size += item_size
    if begin < len(items):
        yield items[begin:]


async def create_all(
    stores: Stores, items: Sequence[ExecutionCreate], *, count_max: int, report: Report
) -> list[Outcome]:
    """Create every item, chunk by chunk, and return one outcome per item in the order given.

    A chunk that could not be sent is the outcome of each of its items; those after it are not tried and have the same.
    """
    outcomes: list[Outcome] = []
    for chunk in chunks(items, count_max):
        try:
            created = await stores.execution.create_many(ExecutionCreateMany(executions=tuple(chunk)))
        except FlowFabricError as error:
            outcomes += [_at(error, index) for index in range(len(outcomes), len(items))]
            return outcomes
        for result in created.results:
            if isinstance(result, ItemRefused):
                error = from_code(result.code, result.message, result.details)
                outcomes.append(_at(error, len(outcomes)))
            else:
                outcomes.append(result)
        report(len(outcomes), len(items))
    return outcomes


def _at(error: FlowFabricError, index: int) -> FlowFabricError:
    return type(error)(error.message, **{**error.details, "index": index})
