"""Real servers for tests of what is peculiar to Valkey: one alone and a cluster, emptied before each test.

`place` is both in turn: what holds on one server must hold on a cluster, where no two keys of different tags can be
touched by one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.store import Store, open_store
from flowfabric.contract.ids import PartitionCounts
from tests.backends.valkey.wire.servers import Cluster, Server

FEW: PartitionCounts = PartitionCounts(flow=16)
"""Enough partitions to be on every primary of a cluster."""


class Opens(Protocol):
    """Opens stores that are closed when the test is over."""

    async def __call__(
        self, url: str, *, clock: ManualClock | None = None, partitions: PartitionCounts | None = FEW
    ) -> Store: ...


@pytest.fixture(scope="session")
def lone_server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.close()


def _empty(server: Server) -> None:
    server.call("FLUSHALL")
    server.call("FUNCTION", "FLUSH")


@pytest.fixture
def single(lone_server: Server) -> Server:
    """A single server without data and functions."""
    _empty(lone_server)
    return lone_server


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Cluster:
    """A cluster without data and functions."""
    for node in whole_cluster.nodes:
        if b"role:master" in node.call("INFO", "replication"):
            _empty(node)
    return whole_cluster


@pytest.fixture(params=["single", "cluster"])
def place(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, on one server and on a cluster."""
    return request.getfixturevalue(request.param).url


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def opens() -> AsyncIterator[Opens]:
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(
            url: str, *, clock: ManualClock | None = None, partitions: PartitionCounts | None = FEW
        ) -> Store:
            store = await open_store(url, clock=clock, partitions=partitions)
            stack.push_async_callback(store.close)
            return store

        yield open_one
