"""The one `backend` fixture, run on every store there is; the frozen clock; and fsck after every test.

To add a backend, add a row to `STORES`: no test changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.contract.backend import Backend
from tests.conformance.world import START_MS, World

STORES: Final[dict[str, Callable[[Path], str]]] = {
    "sqlite-memory": lambda folder: "sqlite:///:memory:",
    "sqlite-file": lambda folder: f"sqlite:///{folder / 'store.db'}",
}
"""How to open each store under test, given a folder of its own."""


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until it is moved."""
    return ManualClock(start_ms=START_MS)


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """How to open the store under test."""
    return STORES[request.param](tmp_path)


@pytest.fixture
async def backend(url: str, clock: ManualClock) -> AsyncIterator[Backend]:
    """An empty store; after the test every stored invariant must hold."""
    store = await backends.connect(url, clock=clock)
    try:
        yield store
        report = await store.maintenance.fsck()
        assert not report.findings, report.findings
    finally:
        await store.close()


@pytest.fixture
def world(backend: Backend, clock: ManualClock) -> World:
    """The store, its clock, and short ways to use them."""
    return World(backend, clock)


@pytest.fixture
async def closing(url: str, clock: ManualClock) -> AsyncIterator[World]:
    """A store for tests that close it themselves; nothing is checked afterwards."""
    store = await backends.connect(url, clock=clock)
    yield World(store, clock)
    await store.close()
