"""The driver of this backend is an extra: whoever has not installed it is told so, and nobody else needs it."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import asyncio, sys
sys.modules["asyncpg"] = None  # as if it were not installed
from flowfabric import FlowFabricError, backends
import flowfabric.provision.postgres, flowfabric.server.run, flowfabric.worker.entry

async def main():
    store = await backends.connect("sqlite:///:memory:")
    await store.close()
    for open_or_migrate in (backends.connect, backends.migrate):
        for url in ("postgresql://h/d", "postgres://h/d"):
            try:
                await open_or_migrate(url)
            except FlowFabricError as error:
                print(type(error).__name__, error.message)

asyncio.run(main())
"""


def test_without_the_driver() -> None:
    """A Postgres URL is refused with the name of the extra to install; everything else works as ever."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("Misuse ") and "'flowfabric[postgres]'" in line for line in lines)
