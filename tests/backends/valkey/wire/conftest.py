"""Servers for the session, emptied before each test; a client for a test, closed after it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import pytest

from flowfabric.backends.valkey.wire import Client, connect, parse_url
from tests.backends.valkey.wire.servers import Cluster, Server


class Connects(Protocol):
    """Opens clients that are closed when the test is over."""

    async def __call__(self, url: str, *, timeout_s: float = 5, connections_per_node: int = 2) -> Client: ...


@pytest.fixture(scope="session")
def one_server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server(one_server: Server) -> Server:
    """A single server without data."""
    one_server.call("FLUSHALL")
    return one_server


@pytest.fixture(scope="session")
def one_cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
async def connects() -> AsyncIterator[Connects]:
    async with contextlib.AsyncExitStack() as stack:

        async def open_client(url: str, *, timeout_s: float = 5, connections_per_node: int = 2) -> Client:
            client = await connect(
                parse_url(url), timeout_s=timeout_s, connections_per_node=connections_per_node
            )
            stack.push_async_callback(client.close)
            return client

        yield open_client


@pytest.fixture
async def client(server: Server, connects: Connects) -> Client:
    """A client of the single server."""
    return await connects(server.url)
