"""Run `tests.backends.sqlite.child` in processes of their own."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.backends.sqlite.store import PATIENCE_S, ROOT


@asynccontextmanager
async def child(verb: str, path: Path, *more: object) -> AsyncIterator[Process]:
    """Run another process on a store; it is killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.backends.sqlite.child",
        verb,
        str(path),
        *(str(word) for word in more),
        stdin=PIPE,
        stdout=PIPE,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> list[str]:
    """Read the words of the next line a child prints; none when it has ended."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        return (await process.stdout.readline()).decode().split()


async def rest(process: Process) -> list[list[str]]:
    """Read every line until the child ends."""
    lines: list[list[str]] = []
    while words := await line(process):
        lines.append(words)
    return lines
