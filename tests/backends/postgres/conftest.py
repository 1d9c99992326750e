"""The session's server for tests of what is peculiar to Postgres, emptied before each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres import wakes
from flowfabric.backends.postgres.backend import PostgresBackend
from tests.backends.postgres.work import opened
from tests.postgres import session
from tests.postgres.servers import Node


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


@pytest.fixture
def told_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by itself within a test: whoever wakes was woken."""
    for name in ("LOOK_AGAIN_S", "LOOK_FOR_WORK_S", "POLL_CLAIMS_S", "POLL_CHANGES_S"):
        monkeypatch.setattr(wakes, name, 600.0)


@pytest.fixture
async def pair(node: Node) -> AsyncIterator[list[PostgresBackend]]:
    """The same store in two processes, so to speak, on the server's clock."""
    async with opened(node.url, 2) as backends:
        yield backends
        report = await backends[0].maintenance.fsck()
        assert not report.findings, report.findings
