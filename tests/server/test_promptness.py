"""Answers leave at once, whichever event loop runs the server."""

from __future__ import annotations

import asyncio
import statistics

from tests.server.talking import Site, connected

DELAYED_ACK_S = 0.04


async def test_answers_are_not_held_back(site: Site) -> None:
    """No answer waits for the client to acknowledge the one before: most take far less than a delayed one."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    async with connected(site) as socket:
        for _ in range(60):
            started = loop.time()
            socket.write(b"GET /v1/lanes HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await socket.reply()).status == 200
            times.append(loop.time() - started)
    assert statistics.median(times[20:]) < DELAYED_ACK_S / 2
