"""The app that the tests of worker processes run, each in a process of its own."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from flowfabric.worker import App, Context, SyncContext

app = App("process")


@app.task
async def quick(number: int) -> int:
    return number


@app.task
async def hold(ctx: Context, folder: str) -> list[int]:
    """Say that it runs, then wait until a file allows it to end."""
    Path(folder, f"started-{ctx.attempt}").write_text(str(os.getpid()))
    await ctx.stream(ctx.attempt)
    while not Path(folder, "go").exists():  # noqa: ASYNC110 -- it waits for a file
        await asyncio.sleep(0.01)
    return [ctx.attempt, os.getpid()]


@app.task
def hold_in_thread(ctx: SyncContext, folder: str) -> list[int]:
    Path(folder, f"started-{ctx.attempt}").write_text(str(os.getpid()))
    while not Path(folder, "go").exists():
        time.sleep(0.01)  # sleeps: it waits for a file
    return [ctx.attempt, os.getpid()]


@app.task
def die(folder: str) -> None:
    if not Path(folder, "died").exists():
        Path(folder, "died").write_text("")
        os._exit(9)
