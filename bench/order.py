"""In which order work is taken under load: higher priorities first, then the older.

Only what is certain counts. An execution was taken too early when another with a better claim, which waited all the
time, was asked for by a claim that began after this one had been answered; two claims under way at once may end in
either order.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from bench.drain import FILL_BATCH, KIND, LANE, Work, claim_command, payload
from bench.stores import place
from flowfabric.backends import connect
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionCreateMany


@dataclass(frozen=True)
class Taken:
    """One lease and when the claim that got it began and ended."""

    priority: int
    created_at_ms: int
    began: float
    ended: float


async def order(store: str, tasks: int, slots: int, size: int, most: int, priorities: int) -> dict[str, Any]:
    """Drain executions of random priorities and say how well their order was kept."""
    chance = random.Random(7)
    body = payload(size)
    async with place(store) as where:
        backend = await connect(where.url)
        for start in range(0, tasks, FILL_BATCH):
            await backend.execution.create_many(
                ExecutionCreateMany(
                    executions=tuple(
                        ExecutionCreate(
                            kind=KIND, lane=LANE, input=body, priority=chance.randrange(priorities)
                        )
                        for _ in range(min(FILL_BATCH, tasks - start))
                    )
                )
            )
        work, taken = Work(tasks), list[Taken]()
        meter = where.meter().start()
        await asyncio.gather(
            *(_slot(backend, slot, size, work, most, taken) for slot in range(slots // most))
        )
        meter.stop()
        await backend.close()
    return meter.figures(tasks, **errors(taken), empty_claims=work.empty)


async def _slot(backend: Backend, slot: int, size: int, work: Work, most: int, taken: list[Taken]) -> None:
    result = payload(size)
    completing: list[Any] = []

    async def claim() -> None:
        nonlocal completing
        began = time.perf_counter()
        leases = await work.claim(backend, claim_command(slot, most))
        ended = time.perf_counter()
        taken.extend(Taken(lease.priority, lease.created_at_ms, began, ended) for lease in leases)
        completing = [
            backend.execution.complete(
                ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=result)
            )
            for lease in leases
        ]

    while work.left > 0:
        await asyncio.gather(*completing, claim())
    await asyncio.gather(*completing)


def errors(taken: list[Taken]) -> dict[str, Any]:
    """Count what was taken before a higher priority, and say how much older (ms) the worst overtaken one was."""
    later = sorted(taken, key=lambda one: one.began, reverse=True)
    best = -1
    oldest: dict[int, int] = {}
    overtakes, age_ms = 0, 0
    at = 0
    for one in sorted(taken, key=lambda one: one.ended, reverse=True):
        while at < len(later) and later[at].began > one.ended:
            other = later[at]
            best = max(best, other.priority)
            oldest[other.priority] = min(oldest.get(other.priority, other.created_at_ms), other.created_at_ms)
            at += 1
        overtakes += best > one.priority
        age_ms = max(age_ms, one.created_at_ms - oldest.get(one.priority, one.created_at_ms))
    return {"overtakes": overtakes, "age_error_ms": age_ms}
