"""Short ways to decode requests in tests."""

from __future__ import annotations

from typing import Any, Final

import pytest

from flowfabric.contract import wire
from flowfabric.contract.errors import FlowFabricError
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.operations import OPERATIONS

EXECUTION: Final = ExecutionId("{fp:7}:550e8400-e29b-41d4-a716-446655440000")
UUID: Final = "550e8400-e29b-41d4-a716-446655440000"
FENCE: Final = b'{"lease_id":"%b","lease_epoch":3,"attempt_id":"%b"}' % (UUID.encode(), UUID.encode())


def decode(
    name: str,
    body: bytes = b"",
    *,
    path: dict[str, str] | None = None,
    query: list[tuple[str, str]] | None = None,
) -> Any:
    """Decode a request of an operation; one on an execution names the same one unless told otherwise."""
    operation = OPERATIONS[name]
    if path is None:
        path = {"execution_id": EXECUTION} if "execution_id" in operation.routes[0].fields else {}
        if "attempt_index" in operation.routes[0].fields:
            path["attempt_index"] = "0"
    return wire.decode_command(operation, path=path, query=query or [], body=body)


def refused(
    code: str,
    name: str,
    body: bytes = b"",
    *,
    path: dict[str, str] | None = None,
    query: list[tuple[str, str]] | None = None,
) -> FlowFabricError:
    """Decode a request that is refused with this code, and return the refusal."""
    with pytest.raises(FlowFabricError) as caught:
        decode(name, body, path=path, query=query)
    assert caught.value.code == code, caught.value
    return caught.value
