"""A server in a thread of its own, for tests that talk to it from blocking code."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import requests

from flowfabric.server.run import running

PATIENCE_S = 20.0
MISSING = "{fp:1}:00000000-0000-4000-8000-000000000000"
FENCE = ("lease_id", "lease_epoch", "attempt_id")


class Served:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._numbers = itertools.count(1)

    def count(self) -> int:
        """Return a number that was not returned before."""
        return next(self._numbers)

    def post(self, path: str, body: Any) -> Any:
        """Post a JSON body and return the answer's."""
        return requests.post(self.url + path, json=body, timeout=PATIENCE_S).json()

    def places(self) -> dict[str, str]:
        """Make an execution in each of a few states and return their ids by it."""
        lane = f"places-{self.count()}"

        def create() -> str:
            body = {"kind": "k", "lane": lane, "input": {"n": 1}, "tags": {"a.b": "c"}}
            return self.post("/v1/executions", body)["execution_id"]

        def claim() -> dict[str, Any]:
            claimed = self.post("/v1/workers/w/claim", {"worker_instance": "w-1", "lanes": [lane]})
            return claimed["leases"][0]

        for _ in range(2):
            create()
        ended, active = claim(), claim()
        fence = {name: ended[name] for name in FENCE}
        path = f"/v1/executions/{quote(ended['execution_id'], safe='')}"
        frames = [{"sequence": 1, "payload": {"x": 1}}]
        self.post(f"{path}/attempts/0/stream", {"fence": fence, "frames": frames})
        self.post(f"{path}/complete", {"fence": fence, "result": {"x": 1}})
        return {
            "waiting": create(),
            "active": active["execution_id"],
            "ended": ended["execution_id"],
            "missing": MISSING,
        }


@contextmanager
def served_in_thread() -> Iterator[Served]:
    """Run a server over a store in memory until the block ends."""
    ready: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with running("sqlite:///:memory:", engine=False) as url:
            ready.set_result((url, asyncio.get_running_loop(), stop))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run, name="server")
    thread.start()
    url, loop, stop = ready.result(PATIENCE_S)
    try:
        yield Served(url)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"
