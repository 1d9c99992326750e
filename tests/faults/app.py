"""An ordinary app for the worker SDK: every task streams a few frames and returns what it was given."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from flowfabric import App, Context
from tests.faults.witness import FOLDER_VARIABLE, Fact, Witness

app = App("faults")
_WITNESS = Witness(Path(os.environ[FOLDER_VARIABLE]))


@app.task(lane="sdk", retries=1_000)
async def streamed(ctx: Context, number: int) -> dict[str, int]:
    """Stream three frames and return the number."""
    _WITNESS.saw(Fact(what="started", execution_id=ctx.execution_id, attempt_index=ctx.attempt_index))
    for sequence in range(1, 4):
        await ctx.stream({"number": number, "sequence": sequence})
        _WITNESS.saw(
            Fact(
                what="frame",
                execution_id=ctx.execution_id,
                attempt_index=ctx.attempt_index,
                sequence=sequence,
                data=str(number),
            )
        )
        await asyncio.sleep(0.002)
    return {"number": number}
