"""What another process does to a store: `python -m tests.backends.sqlite.child <verb> <path> ...`.

Each line it prints is one thing that has happened; it is flushed at once, so that a parent may kill it after any line.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 (imported late by asyncio, when another user may not read it)
import os
import resource
import sqlite3
import sys
import time
from pathlib import Path

from flowfabric.contract.errors import FlowFabricError
from tests.backends.sqlite.store import claim, complete, create, opened


def say(*words: object) -> None:
    print(*words, flush=True)


async def wait_for_work(path: Path) -> None:
    """Wait for one execution, say which it was and when it was got, and complete it."""
    async with opened(path) as store:
        say("ready")
        (lease,) = await claim(store, "other", wait_ms=30_000)
        say(lease.execution_id, time.monotonic_ns())
        await complete(store, lease)


async def work(path: Path, name: str) -> None:
    """Claim and complete until nothing is left, and say what was completed."""
    async with opened(path) as store:

        async def slot() -> None:
            while leases := await claim(store, name, max_tasks=2):
                for lease in leases:
                    await complete(store, lease)
                    say(lease.execution_id)

        await asyncio.gather(*(slot() for _ in range(4)))


async def create_forever(path: Path) -> None:
    """Create executions from several callers and say each id that was acknowledged."""
    async with opened(path) as store:

        async def caller() -> None:
            while True:
                say(await create(store))

        await asyncio.gather(*(caller() for _ in range(4)))


async def create_limited(path: Path, limit: int) -> None:
    """Create under a file-size limit until it is refused, then again without the limit."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with opened(path) as store:
        soft = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft[1]))
        created = 0
        try:
            while True:
                await create(store)
                created += 1
        except FlowFabricError as error:
            say("refused", error.code, created)
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        await create(store)
        say("resumed", len(await claim(store, max_tasks=256)))
        report = await store.maintenance.fsck()
        say("findings", len(report.findings))


async def use_as_nobody(path: Path) -> None:
    """Open the store as a user who may only read it, and say what happens."""
    os.setgid(65_534)
    os.setuid(65_534)
    try:
        async with opened(path) as store:
            await create(store)
            say("created")
    except FlowFabricError as error:
        say(error.code, error.message)


def read_long(path: Path) -> None:
    """Stay on one old state until standard input ends."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM execution").fetchone()
    say("reading", os.getpid())
    sys.stdin.read()
    connection.execute("COMMIT")
    connection.close()


def main() -> None:
    verb, path = sys.argv[1], Path(sys.argv[2])
    match verb:
        case "wait_for_work":
            asyncio.run(wait_for_work(path))
        case "work":
            asyncio.run(work(path, sys.argv[3]))
        case "create_forever":
            asyncio.run(create_forever(path))
        case "create_limited":
            asyncio.run(create_limited(path, int(sys.argv[3])))
        case "use_as_nobody":
            asyncio.run(use_as_nobody(path))
        case "read_long":
            read_long(path)
        case _:
            raise SystemExit(f"no verb {verb}")


if __name__ == "__main__":
    main()
