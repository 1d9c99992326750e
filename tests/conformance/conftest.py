"""The one `backend` fixture, run on every store there is; the frozen clock; and fsck after every test.

To add a backend, add a row to `STORES`: no test changes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.client.http import HttpStores
from flowfabric.contract.backend import Backend
from flowfabric.contract.ids import PartitionCounts
from flowfabric.server.run import listening
from flowfabric.server.settings import ServerSettings
from tests.conformance.world import START_MS, World
from tests.postgres import session as postgres
from tests.valkey import session as valkey

STORES: Final[dict[str, Callable[[Path, PartitionCounts], str]]] = {
    "sqlite-memory": lambda folder, partitions: "sqlite:///:memory:",
    "sqlite-file": lambda folder, partitions: f"sqlite:///{folder / 'store.db'}",
    "valkey": lambda folder, partitions: valkey.empty_node().url,
    "valkey-cluster": lambda folder, partitions: valkey.empty_cluster().url,
    "postgres": lambda folder, partitions: postgres.empty_node(partitions, manual_clock=True).url,
}
"""How to come by each store under test, empty, for a clock that is moved.

Given are a folder of its own, and the partitions it will be opened with. What cannot be started is an error.
"""

OTHER_STORES: Final = tuple(name for name in STORES if not name.startswith("sqlite"))
"""The stores that do not run the rules themselves."""

SLOW_STORES: Final = tuple(
    name for name in OTHER_STORES if name.endswith("cluster") or name.startswith("postgres")
)
"""Stores of many processes: long scripts are run on them less often."""
QUICK_STORES: Final = tuple(name for name in STORES if name not in SLOW_STORES)

FEW: Final = PartitionCounts(flow=16)
"""For stores that keep each partition apart: some on every node of a cluster, and the tests stay quick."""

FIRST: Final = next(iter(STORES))
ALL: Final = os.environ.get("FLOWFABRIC_CONFORMANCE") == "all"
REMOTE: Final = "remote"
"""Not another store but another way to the first one: through a server and the client that talks to it.

Tests that are run for one case take it, too; those run for many cases do when `FLOWFABRIC_CONFORMANCE=all`. Tests of
a `local` or `closing` store do not: a request is bounded as a whole, and a client waits for a server that went away.
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on every store, and remotely where that is wanted."""
    if "access" not in metafunc.fixturenames:
        return
    ways = [*STORES]
    one_case = metafunc.definition.get_closest_marker("parametrize") is None
    if not {"closing", "local"}.intersection(metafunc.fixturenames) and (one_case or ALL):
        ways.append(REMOTE)
    metafunc.parametrize("access", ways, indirect=True)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until it is moved."""
    return ManualClock(start_ms=START_MS)


@pytest.fixture
def access(request: pytest.FixtureRequest) -> str:
    """Which store is under test, or that it is reached through a server."""
    return request.param


def emptied(store: str, partitions: PartitionCounts = FEW) -> str:
    """Return the URL of one of the `OTHER_STORES`, empty from now on, to be opened with these partitions."""
    return STORES[store](Path(), partitions)


@asynccontextmanager
async def opened(access: str, folder: Path, clock: ManualClock) -> AsyncIterator[World]:
    """Open an empty store; through a server, if that is how it is to be reached."""
    url = STORES[FIRST if access == REMOTE else access](folder, FEW)
    partitions = FEW if access in OTHER_STORES else None
    backend = await backends.connect(url, clock=clock, partitions=partitions)
    try:
        if access != REMOTE:
            yield World(backend, clock)
            return
        settings = ServerSettings.load({}, listen="127.0.0.1:0")
        async with listening(backend, settings) as (server, _):
            stores = HttpStores(server.url)
            try:
                yield World(backend, clock, stores)
            finally:
                await stores.close()
    finally:
        await backend.close()


@pytest.fixture
async def world(access: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    """A store, its clock, and short ways to use them; after the test every stored invariant must hold."""
    async with opened(access, tmp_path, clock) as found:
        yield found
        report = await found.backend.maintenance.fsck()
        assert not report.findings, report.findings


@pytest.fixture
def local(world: World) -> World:
    """The store itself, for payloads as large as it takes: no request has room for them and what is around them."""
    return world


@pytest.fixture
def backend(world: World) -> Backend:
    """The store itself."""
    return world.backend


@pytest.fixture
async def closing(access: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    """A store for tests that close it themselves; nothing is checked afterwards."""
    async with opened(access, tmp_path, clock) as found:
        yield found
