"""Servers for tests: each test has its own, over its own store in memory, without timers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from flowfabric import backends
from flowfabric.server.protocol import Deadlines
from flowfabric.server.run import listening
from flowfabric.server.settings import ServerSettings
from tests.server.talking import Site

MEMORY = "sqlite:///:memory:"
TOKEN = "first-token-" + "a" * 30

Start = Callable[..., Awaitable[Site]]


@pytest.fixture
async def start() -> AsyncGenerator[Start]:
    """Start servers with settings of the test's choice; they stop when it ends."""
    async with AsyncExitStack() as stack:

        async def started(
            environ: dict[str, str] | None = None, *, deadlines: Deadlines | None = None, **overrides: Any
        ) -> Site:
            backend = await backends.connect(MEMORY)
            stack.push_async_callback(backend.close)
            settings = ServerSettings.load(environ or {}, **{"listen": "127.0.0.1:0", **overrides})
            server, _ = await stack.enter_async_context(listening(backend, settings, deadlines=deadlines))
            session = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            )
            headers = {"authorization": f"Bearer {settings.tokens[0]}"} if settings.tokens else {}
            return Site(server.url, backend, session, server.application, headers)

        yield started


@pytest.fixture
async def site(start: Start) -> Site:
    """A server without a token."""
    return await start()


@pytest.fixture
async def guarded(start: Start) -> Site:
    """A server that wants a token; the site's own requests send it."""
    return await start({"FF_API_TOKEN": TOKEN})
