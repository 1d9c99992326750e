"""A real server on a free port, and clients over it and over a store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

import flowfabric
from flowfabric import Client, backends
from flowfabric.contract.backend import Backend
from flowfabric.server.run import running
from flowfabric.server.settings import ServerSettings

TOKEN = "t" * 40
MEMORY = "sqlite:///:memory:"


@dataclass
class Served:
    """A server that runs, and the store behind it."""

    url: str
    backend: Backend
    token: str | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        port = urlsplit(self.url).port
        assert port is not None
        return port


@pytest.fixture
async def served() -> AsyncGenerator[Served]:
    """A server without a token, which runs no timers: tests decide when things fall due."""
    backend = await backends.connect(MEMORY)
    try:
        async with running(backend, engine=False) as url:
            yield Served(url, backend)
    finally:
        await backend.close()


@pytest.fixture
async def guarded() -> AsyncGenerator[Served]:
    """A server that wants a token."""
    backend = await backends.connect(MEMORY)
    settings = ServerSettings.load({"FF_API_TOKEN": TOKEN}, listen="127.0.0.1:0")
    try:
        async with running(backend, settings, engine=False) as url:
            yield Served(url, backend, TOKEN)
    finally:
        await backend.close()


@pytest.fixture(params=["store", "server"])
async def client(request: pytest.FixtureRequest) -> AsyncGenerator[Client]:
    """A client of a store, then of a server in front of one."""
    if request.param == "store":
        async with flowfabric.connect(MEMORY) as ff:
            yield ff
        return
    backend = await backends.connect(MEMORY)
    try:
        async with running(backend, engine=False) as url, flowfabric.connect(url) as ff:
            yield ff
    finally:
        await backend.close()
