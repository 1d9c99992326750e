"""Draining and filling a store from one process, with the store opened directly.

A slot's completion goes out with its next claim. `most` is how many executions one claim takes: 16 slots are 16
callers with `most=1`, or two that take 8 each, which is how a worker with 16 slots claims under load.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from bench.stores import Place, place
from flowfabric.backends import connect
from flowfabric.contract.backend import Backend, Stores
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import Kind, Lane, WorkerId, WorkerInstance, mint_uuid
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload

LANE: Final = Lane("bench")
KIND: Final = Kind("bench")
FILL_BATCH: Final = 1_000
EMPTY_MAX: Final = 1_000


def payload(size: int) -> Payload:
    """Return a JSON string payload of exactly `size` bytes."""
    return Payload(b'"' + b"x" * (size - 2) + b'"')


async def fill(backend: Backend, count: int, size: int, lane: Lane = LANE) -> None:
    """Create `count` executions in batches of 1,000."""
    one = ExecutionCreate(kind=KIND, lane=lane, input=payload(size))
    for start in range(0, count, FILL_BATCH):
        batch = (one,) * min(FILL_BATCH, count - start)
        await backend.execution.create_many(ExecutionCreateMany(executions=batch))


def claim_command(slot: int, most: int = 1, wait_ms: int = 0, lane: Lane = LANE) -> LeaseClaim:
    """Build a claim."""
    return LeaseClaim(
        worker_id=WorkerId("bench"),
        worker_instance=WorkerInstance(f"bench-{slot}"),
        lanes=(lane,),
        kinds=(KIND,),
        max_tasks=most,
        wait_ms=wait_ms,
        claim_id=mint_uuid(),  # pyright: ignore[reportArgumentType]
    )


class Work:
    """What several slots do together: what is still to be claimed, and which claims wrongly found nothing."""

    def __init__(self, tasks: int) -> None:
        self.left = tasks
        self.claims = 0
        self._empty: list[float] = []
        self._last_began = 0.0

    async def claim(self, stores: Stores, command: LeaseClaim) -> tuple[Lease, ...]:
        """Claim, and note what came of it."""
        began = time.perf_counter()
        leases = (await stores.lease.claim(command)).leases
        self.claims += 1
        self.left -= len(leases)
        if leases:
            self._last_began = max(self._last_began, began)
        else:
            self._empty.append(time.perf_counter())
            if len(self._empty) > EMPTY_MAX:
                raise RuntimeError(f"{self.left} executions are never found")
        return leases

    @property
    def empty(self) -> int:
        """How many claims found nothing though a later one, begun after their answer, found something old."""
        return sum(ended < self._last_began for ended in self._empty)


async def slot_loop(
    stores: Stores, slot: int, result: Payload, work: Work, most: int = 1, lane: Lane = LANE
) -> None:
    """Claim and complete until all is claimed; each completion goes out with the next claim."""
    completing: list[Any] = []
    while work.left > 0 or completing:
        claiming = [work.claim(stores, claim_command(slot, most, lane=lane))] if work.left > 0 else []
        found = await asyncio.gather(*claiming, *completing)
        if not claiming:
            return
        leases: tuple[Lease, ...] = found[0]
        completing = [
            stores.execution.complete(
                ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=result)
            )
            for lease in leases
        ]


async def run_slots(stores: Stores, work: Work, slots: int, most: int, size: int) -> None:
    """Let all slots work until everything is claimed and completed."""
    result = payload(size)
    await asyncio.gather(*(slot_loop(stores, slot, result, work, most) for slot in range(slots // most)))


# Scenarios --------------------------------------------------------------------------------------------------------


async def drain(store: str, tasks: int, slots: int, size: int, most: int) -> dict[str, Any]:
    """Pre-submit, then claim and complete everything with `slots` concurrent slots."""
    async with place(store) as where:
        backend = await connect(where.url)
        await fill(backend, tasks, size)
        spread = share(where)
        work = Work(tasks)
        meter = where.meter().start()
        await run_slots(backend, work, slots, most, size)
        meter.stop()
        await backend.close()
    return meter.figures(tasks, empty_claims=work.empty, **spread)


def share(where: Place) -> dict[str, Any]:
    """Say how executions are spread over a cluster's primaries: the least and the largest share, in percent."""
    if len(where.nodes) < 2:
        return {}
    counts = [0] * len(where.nodes)
    for number, node in enumerate(where.nodes):
        cursor = "0"
        while True:
            found, keys = node.call("SCAN", cursor, "MATCH", "{fp:*}:x:*", "COUNT", 10_000)
            counts[number] += len(keys)
            cursor = found.decode()
            if cursor == "0":
                break
    total = sum(counts)
    return {"share_least": min(counts) / total * 100, "share_most": max(counts) / total * 100}


async def create_many(store: str, tasks: int, size: int) -> dict[str, Any]:
    """Create executions in batches of 1,000."""
    async with place(store) as where:
        backend = await connect(where.url)
        await fill(backend, FILL_BATCH, size)
        meter = where.meter().start()
        await fill(backend, tasks, size)
        meter.stop()
        await backend.close()
    return meter.figures(tasks)


async def create_single(store: str, tasks: int, callers: int, size: int) -> dict[str, Any]:
    """Create executions one by one from concurrent callers."""
    one = ExecutionCreate(kind=KIND, lane=LANE, input=payload(size))
    left = tasks
    async with place(store) as where:
        backend = await connect(where.url)
        await fill(backend, FILL_BATCH, size)

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await backend.execution.create(one)

        meter = where.meter().start()
        await asyncio.gather(*(caller() for _ in range(callers)))
        meter.stop()
        await backend.close()
    return meter.figures(tasks)


async def flat(
    store: str, waiting: int, claims: int, slots: int, most: int = 1, lanes: int = 1
) -> dict[str, Any]:
    """Claim and complete with `waiting` executions in the queue.

    With several lanes the others hold one execution each, and the worker serves its own lane alone.
    """
    async with place(store) as where:
        backend = await connect(where.url)
        for number in range(1, lanes):
            await fill(backend, 1, 64, Lane(f"other-{number}"))
        figures = await hold_depth(where, backend, waiting, claims, slots, most)
        await backend.close()
    return figures


async def hold_depth(
    where: Place, backend: Backend, waiting: int, claims: int, slots: int, most: int = 1
) -> dict[str, Any]:
    """Create `waiting` executions, then claim and complete.

    The depth is held: after every tenth of the claims as many executions are created, outside the measurement.
    """
    step = max(slots, claims // 10 // slots * slots)
    await fill(backend, waiting, 64)
    meter = where.meter()
    done = 0
    # The first step warms caches and is not measured.
    for number in range(claims // step + 1):
        await fill(backend, step, 64)
        measuring = meter if number else where.meter()
        measuring.start()
        await run_slots(backend, Work(step), slots, most, 64)
        measuring.stop()
        done += step if number else 0
    return meter.figures(done)
