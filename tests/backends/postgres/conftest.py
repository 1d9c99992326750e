"""The session's server for tests of what is peculiar to Postgres, emptied before each test."""

from __future__ import annotations

from typing import Final

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.contract.ids import PartitionCounts
from tests.postgres import session
from tests.postgres.servers import Node

FEW: Final = PartitionCounts(flow=16)


@pytest.fixture
def node() -> Node:
    """The session's server, without data. Shared: whoever kills or reconfigures one takes one of their own."""
    return session.empty_node()


@pytest.fixture
def still_node() -> Node:
    """The same for tests that move the clock."""
    return session.empty_node(manual_clock=True)


@pytest.fixture
def place(node: Node) -> str:
    """The URL of an empty store."""
    return node.url


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
