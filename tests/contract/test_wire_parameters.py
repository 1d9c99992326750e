"""Path and query parameters: read strictly."""

from __future__ import annotations

import pytest

from flowfabric.contract.execution import ExecutionList, ExecutionReadResult
from flowfabric.contract.states import PublicState
from flowfabric.contract.stream import StreamRead
from tests.contract.wiring import EXECUTION, decode, refused


def test_query_fields() -> None:
    """Fields of a read that the path does not bind come from the query."""
    query = [("state", "active"), ("limit", "7"), ("tag", "app.tier=gold"), ("created_from_ms", "0")]
    assert decode("execution.list", query=query) == ExecutionList(
        state=PublicState.ACTIVE, limit=7, tag="app.tier=gold", created_from_ms=0
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("limit", ""),
        ("limit", "x"),
        ("limit", "5 "),
        ("limit", "+5"),
        ("limit", "05"),
        ("limit", "5.0"),
        ("limit", "1_0"),
        ("limit", "٣"),
        ("limit", "1" * 5_000),
        ("limit", "0"),
        ("limit", "1001"),
        ("state", ""),
        ("state", "ACTIVE"),
        ("state", "nope"),
        ("nope", "1"),
        ("created_from_ms", "-1"),
        ("cursor", "!"),
        ("id_prefix", "G0"),
    ],
)
def test_malformed_query(name: str, text: str) -> None:
    """A malformed or unknown query parameter is refused by name."""
    assert refused("invalid_input", "execution.list", query=[(name, text)]).details["field"] == name


def test_repeated_query() -> None:
    """A parameter given twice is refused, even with the same value."""
    refused("invalid_input", "execution.list", query=[("limit", "5"), ("limit", "5")])


def test_long_unknown_name() -> None:
    """A refusal does not repeat a long name in full."""
    assert len(refused("invalid_input", "execution.list", query=[("n" * 5_000, "1")]).message) < 500


def test_path_fields_not_in_query() -> None:
    """A field bound by the path may not stand in the query as well."""
    refused("invalid_input", "execution.read_result", query=[("execution_id", EXECUTION)])
    assert decode("execution.read_result", query=[("wait_ms", "5")]) == ExecutionReadResult(
        execution_id=EXECUTION, wait_ms=5
    )


@pytest.mark.parametrize("text", ["x", "-1", "007", "1.0", "", "1000001"])
def test_malformed_path_integer(text: str) -> None:
    """A path segment that should be an integer and is not is refused."""
    refused("invalid_input", "stream.read", path={"execution_id": EXECUTION, "attempt_index": text})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "{fp:7}:550E8400-e29b-41d4-a716-446655440000",
        "{fp:07}:550e8400-e29b-41d4-a716-446655440000",
        "{fp:65535}:550e8400-e29b-41d4-a716-446655440000",
        "{fp:7}:550e8400-e29b-41d4-a716-446655440000\n",
        "{fp:7}:550e8400e29b41d4a716446655440000",
        "fp:7:550e8400-e29b-41d4-a716-446655440000",
        "{fp:7}:550e8400-e29b-41d4-a716-44665544000\u0660",
    ],
)
def test_malformed_execution_id(text: str) -> None:
    """An execution id has one spelling."""
    refused("invalid_input", "execution.describe", path={"execution_id": text})


def test_two_routes_of_one_operation() -> None:
    """The path's parameters choose between an operation's routes."""
    run = decode("stream.read", path={"execution_id": EXECUTION})
    attempt = decode("stream.read", path={"execution_id": EXECUTION, "attempt_index": "2"})
    assert run == StreamRead(execution_id=EXECUTION)
    assert attempt == StreamRead(execution_id=EXECUTION, attempt_index=2)
    query = [("attempt_index", "2")]
    assert decode("stream.read", path={"execution_id": EXECUTION}, query=query) == attempt


def test_reads_take_no_body() -> None:
    """A read with a body is refused."""
    refused("invalid_body", "execution.describe", b"{}")
