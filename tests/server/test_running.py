"""Running servers: in this process and as a process, one after the other and several on one store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.contract.errors import Misuse, Unavailable
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import Kind, Lane
from flowfabric.contract.lane import LaneList, LaneSetState
from flowfabric.contract.states import Durability, LaneState
from flowfabric.server.run import check_durability, running, seed_lanes, serve
from flowfabric.server.settings import ServerSettings
from tests.server.conftest import MEMORY, TOKEN, Start
from tests.server.talking import PATIENCE_S, Site

CLAIM: dict[str, Any] = {"worker_instance": "w-1", "lanes": ["default"], "wait_ms": 20_000}


async def post(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Any:
    """Post a JSON body and return the answer's, which must be one of success."""
    async with session.post(url, json=body) as response:
        assert response.status < 300, await response.text()
        return await response.json()


# In this process --------------------------------------------------------------------------------------------------


async def test_one_after_the_other() -> None:
    """Servers of one process follow each other without a trace, each with a store of its own.

    Acceptance: servers-of-one-process-do-not-interfere
    """
    for _ in range(2):
        async with running(MEMORY) as url, aiohttp.ClientSession() as session:
            async with session.get(f"{url}/v1/executions") as response:
                assert (await response.json())["executions"] == []
            await post(session, f"{url}/v1/executions", {"kind": "k"})
        with pytest.raises(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(f"{url}/healthz"):
                pass


async def test_side_by_side() -> None:
    """Two servers of one process do not interfere: stopping one leaves the other's waits alone."""
    async with running(MEMORY) as url, aiohttp.ClientSession() as session:
        async with running(MEMORY):
            claim = asyncio.create_task(post(session, f"{url}/v1/workers/w/claim", CLAIM))
            await post(session, f"{url}/v1/executions", {"kind": "k", "lane": "other"})
        assert not claim.done()
        created = await post(session, f"{url}/v1/executions", {"kind": "k"})
        (lease,) = (await asyncio.wait_for(claim, PATIENCE_S))["leases"]
        assert lease["execution_id"] == created["execution_id"]


async def test_several_on_one_file(tmp_path: Path) -> None:
    """A claim that waits at one server is woken by a create at another one of the same file."""
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with running(store) as first, running(store) as second, aiohttp.ClientSession() as session:
        claim = asyncio.create_task(post(session, f"{first}/v1/workers/w/claim", CLAIM))
        created = await post(session, f"{second}/v1/executions", {"kind": "k"})
        (lease,) = (await asyncio.wait_for(claim, PATIENCE_S))["leases"]
        assert lease["execution_id"] == created["execution_id"]


async def test_store_of_the_caller() -> None:
    """A store that was handed in stays open when the server stops; one given by URL does not stay."""
    backend = await backends.connect(MEMORY)
    async with running(backend):
        pass
    await backend.ping()
    await backend.close()
    with pytest.raises(Unavailable):
        await backend.ping()


async def test_engine_runs() -> None:
    """A server runs the store's timers: delayed work reaches a claim that waits for it.

    Acceptance: delayed-is-promoted-by-the-running-engine
    """
    clock = ManualClock()
    backend = await backends.connect(MEMORY, clock=clock)
    try:
        async with running(backend) as url, aiohttp.ClientSession() as session:
            delayed = {"kind": "k", "delay_until_ms": clock.now_ms() + 60_000}
            created = await post(session, f"{url}/v1/executions", delayed)
            claim = asyncio.create_task(post(session, f"{url}/v1/workers/w/claim", CLAIM))
            clock.advance(60_000)
            (lease,) = (await asyncio.wait_for(claim, PATIENCE_S))["leases"]
            assert lease["execution_id"] == created["execution_id"]
    finally:
        await backend.close()


async def test_address_in_use(site: Site) -> None:
    """An address that is taken is refused with what to do, and nothing is left behind."""
    settings = ServerSettings.load({}, listen=f"127.0.0.1:{site.address[1]}")
    with pytest.raises(Misuse, match="--listen"):
        async with running(MEMORY, settings):
            pass
    assert (await site.get("/healthz")).status == 200


async def test_ipv6() -> None:
    """A server listens on IPv6 too."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    settings = ServerSettings.load({}, listen="[::1]:0")
    async with running(MEMORY, settings) as url, aiohttp.ClientSession() as session:
        assert url.startswith("http://[::1]:")
        await post(session, f"{url}/v1/executions", {"kind": "k"})


async def test_own_address_for_metrics(start: Start) -> None:
    """The second address serves the metrics without a token, and nothing else."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    site = await start({"FF_API_TOKEN": TOKEN, "FF_METRICS_ADDR": f"127.0.0.1:{port}"})
    headers, site.headers = site.headers, {}
    assert (await site.get("/metrics")).code == "unauthorized"
    site.headers, site.url = headers, f"http://127.0.0.1:{port}"
    reply = await site.get("/metrics")
    assert reply.status == 200
    assert b"ff_http_requests_total" in reply.body
    for path in ("/v1/lanes", "/healthz", "/", "/docs"):
        reply = await site.get(path)
        assert (reply.status, reply.code) == (404, "route_not_found")
    reply = await site.post("/metrics")
    assert (reply.status, reply.code, reply.headers["allow"]) == (405, "method_not_allowed", "GET")


# What a server makes sure of first --------------------------------------------------------------------------------


async def test_durability(tmp_path: Path) -> None:
    """A store that promises less than was asked for is refused; one that promises as much is served."""
    memory, file = await backends.connect(MEMORY), await backends.connect(f"sqlite:///{tmp_path / 'a.db'}")
    try:
        with pytest.raises(Misuse, match="FF_REQUIRE_DURABILITY asks for fsync, the store promises memory"):
            await check_durability(memory, Durability.FSYNC)
        with pytest.raises(Misuse, match="replicated"):
            await check_durability(file, Durability.REPLICATED)
        for store, level in ((memory, None), (memory, Durability.MEMORY), (file, Durability.FSYNC)):
            await check_durability(store, level)
    finally:
        await memory.close()
        await file.close()


async def test_durability_before_anything_else() -> None:
    """A server that must not run with its store never listens."""
    settings = ServerSettings.load(
        {"FF_REQUIRE_DURABILITY": "fsync"}, store=MEMORY, listen="127.0.0.1:0", lanes="a"
    )
    with pytest.raises(Misuse, match="FF_REQUIRE_DURABILITY"):
        await asyncio.wait_for(serve(settings), PATIENCE_S)


async def test_lanes_from_the_start() -> None:
    """Configured lanes exist from the start; the state of one that exists already is left alone."""
    backend = await backends.connect(MEMORY)
    try:
        await backend.lane.set_state(LaneSetState(lane=Lane("old"), state=LaneState.PAUSED))
        await backend.execution.create(ExecutionCreate(kind=Kind("k")))
        await seed_lanes(backend, ("new", "old", "default"))
        found = {lane.lane: lane.state for lane in (await backend.lane.list(LaneList())).lanes}
        assert found == {"new": LaneState.ACTIVE, "old": LaneState.PAUSED, "default": LaneState.ACTIVE}
    finally:
        await backend.close()


# As a process -----------------------------------------------------------------------------------------------------

SERVE = """
import asyncio, sys
from flowfabric.server.run import serve
from flowfabric.server.settings import ServerSettings
from flowfabric.telemetry import log
log.configure("info", "json")
asyncio.run(serve(ServerSettings.load({}, store=sys.argv[1], listen="127.0.0.1:0")))
print("stopped in order", flush=True)
"""


async def started(store: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start a server as a process; return it and its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, store, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := await process.stderr.readline():
            entry = json.loads(line)
            if entry.get("event") == "serving":
                return process, entry["url"]
    raise AssertionError("the server did not start")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends waits at once and stops everything in order; what was acknowledged is there at the next start."""
    store = f"sqlite:///{tmp_path / 'store.db'}"
    process, url = await started(store)
    async with aiohttp.ClientSession() as session:
        created = await post(session, f"{url}/v1/executions", {"kind": "k", "lane": "other"})
        claim = asyncio.create_task(session.post(f"{url}/v1/workers/w/claim", json=CLAIM))
        async with session.get(f"{url}/healthz") as response:
            assert response.status == 200
        process.send_signal(number)
        output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, output) == (0, b"stopped in order\n"), errors
        assert b"Traceback" not in errors
        with contextlib.suppress(aiohttp.ClientError):  # it may not have arrived before the signal
            assert (await claim).status in (200, 503)
    again, url = await started(store)
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/executions") as response:
        (info,) = (await response.json())["executions"]
        assert info["execution_id"] == created["execution_id"]
    again.terminate()
    await asyncio.wait_for(again.communicate(), PATIENCE_S)
