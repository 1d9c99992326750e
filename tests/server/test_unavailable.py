"""When the store cannot serve: a clear answer that it is worth trying again, and service resumes by itself."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from flowfabric import backends
from flowfabric.backends.sqlite import writer
from flowfabric.server.run import listening
from flowfabric.server.settings import ServerSettings
from tests.server.talking import Site, until


async def test_store_that_is_held_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process holds the file writes are 503 and reads go on; afterwards writes work again."""
    monkeypatch.setattr(writer, "BUSY_PATIENCE_S", 0.1)
    file = tmp_path / "store.db"
    backend = await backends.connect(f"sqlite:///{file}")
    holder = sqlite3.connect(file, isolation_level=None)
    try:
        settings = ServerSettings.load({}, listen="127.0.0.1:0")
        async with (
            listening(backend, settings) as (server, _),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            site = Site(server.url, backend, session, server.application)
            execution_id = await site.create()
            holder.execute("begin immediate")
            replies = await asyncio.gather(*(site.post("/v1/executions", {"kind": "k"}) for _ in range(20)))
            for reply in replies:
                assert (reply.status, reply.code) == (503, "unavailable")
                assert reply.json["error"]["retryable"] is True
                assert str(tmp_path) not in reply.body.decode()
            assert (await site.get(f"/v1/executions/{quote(execution_id, safe='')}/state")).status == 200
            assert (await site.get("/readyz")).status == 200
            holder.execute("rollback")
            assert (await site.post("/v1/executions", {"kind": "k"})).status == 201
            assert len((await site.get("/v1/executions")).json["executions"]) == 2
    finally:
        holder.close()
        await backend.close()


async def test_store_that_is_closed(site: Site) -> None:
    """Requests to a server whose store is gone are 503, waits among them, and none is a server's error."""
    path = f"/v1/executions/{quote(await site.create(), safe='')}"
    waiting = asyncio.create_task(site.get(f"{path}/result?wait_ms=30000"))
    await until(lambda: site.application.load.waits == 1)
    await site.backend.close()
    body = {"worker_instance": "w-1", "lanes": ["default"], "wait_ms": 30_000}
    for reply in (
        await waiting,
        await site.get(path),
        await site.get(f"{path}/stream/tail"),
        await site.get(f"{path}/stream/tail", {"accept": "text/event-stream"}),
        await site.post("/v1/executions", {"kind": "k"}),
        await site.post("/v1/workers/w/claim", body),
        await site.get("/v1/lanes"),
    ):
        assert (reply.status, reply.code) == (503, "unavailable")
