"""How a batch is cut into requests."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings, strategies as st

from flowfabric.client.batches import CHUNK_BYTES, chunks, request_bytes
from flowfabric.contract import limits, wire
from flowfabric.contract.execution import ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import Kind
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import Payload


def item(size: int = 4, **fields: Any) -> ExecutionCreate:
    """Make a create whose input has about this many bytes."""
    return ExecutionCreate(kind=Kind("k"), input=Payload(b'"' + b"x" * size + b'"'), **fields)


def test_chunks_keep_order_and_count() -> None:
    """No chunk has more items than asked for, and together they are the batch in order."""
    items = [item(priority=index) for index in range(25)]
    cut = list(chunks(items, 10))
    assert [len(chunk) for chunk in cut] == [10, 10, 5]
    assert [one for chunk in cut for one in chunk] == items
    assert list(chunks([], 10)) == []


def test_chunks_fit_a_request() -> None:
    """Large items are spread over requests that stay under the batch's body limit."""
    items = [item(900_000) for _ in range(20)]
    cut = list(chunks(items, limits.CREATE_MANY_MAX))
    assert len(cut) > 1
    for chunk in cut:
        sent = wire.encode_command(
            OPERATIONS["execution.create_many"], ExecutionCreateMany(executions=tuple(chunk))
        )
        assert sent.body is not None
        assert len(sent.body) <= OPERATIONS["execution.create_many"].body_max


def test_an_item_too_large_for_any_request_goes_alone() -> None:
    """One item beyond the limit is a chunk of its own, so that only it is refused."""
    items = [item(), item(CHUNK_BYTES), item()]
    assert [len(chunk) for chunk in chunks(items, 1_000)] == [1, 1, 1]


@settings(max_examples=50, deadline=None)
@given(
    data=st.binary(max_size=5_000),
    is_json=st.booleans(),
    key=st.text(min_size=1, max_size=100),
    tags=st.dictionaries(st.just("a.b"), st.text(max_size=200)),
)
def test_the_estimate_is_never_too_small(data: bytes, is_json: bool, key: str, tags: dict[str, str]) -> None:
    """What an item takes in a request's body is at most what was estimated."""
    payload = (
        Payload(msgspec.json.encode(data.decode("latin-1")))
        if is_json
        else Payload(data, "application/x-test")
    )
    one = ExecutionCreate(kind=Kind("k"), input=payload, idempotency_key=key, tags=tags)
    sent = wire.encode_command(OPERATIONS["execution.create_many"], ExecutionCreateMany(executions=(one,)))
    assert sent.body is not None
    assert len(sent.body) <= request_bytes(one) + len('{"executions":[]}')
