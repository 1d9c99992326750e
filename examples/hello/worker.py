"""Greets people: `flowfabric dev examples/hello/worker.py`, then submit `greet`."""

from __future__ import annotations

import asyncio

from flowfabric import App, Context

app = App("hello")


@app.task(retries=3, backoff="exponential", timeout="30s")
async def greet(ctx: Context, name: str, times: int = 3) -> str:
    """Greet somebody a few times, live, and say so."""
    for count in range(1, times + 1):
        await ctx.stream(f"hello {name}, {count} of {times}")
        await ctx.progress(percent=100 * count / times)
        await asyncio.sleep(0.2)
    return f"greeted {name} {times} times"
