"""Many idle workers at once: bursts of work for a hundred of them, and routing by capabilities.

Every worker waits with a claim of one. In bursts each has a store of its own, and with it connections of its own; a
task's input says when it was submitted, and its time ends when a worker holds it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from bench.drain import KIND, LANE, claim_command
from bench.measure import percentile
from bench.stores import Place, place
from flowfabric.backends import connect
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate
from flowfabric.contract.lease import Lease
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy, RoutingRequirements

GIVEN_UP_S: Final = 5.0
"""What nobody has started by then is stranded."""
SETTLE_S: Final = 0.1
OPENED_AT_ONCE: Final = 10
COUNTED: Final = 3
"""Bursts of which the store's commands are counted."""


class Crowd:
    """Workers that wait for work, one task each, and what they got."""

    def __init__(
        self, stores: list[Backend], capabilities: Callable[[int], tuple[str, ...]], workers: int
    ) -> None:
        self.waits_ms: list[float] = []
        self.wrong: int = 0
        self._capabilities = capabilities
        self._news = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._work(stores[number % len(stores)], number)) for number in range(workers)
        ]

    async def wait_started(self, count: int) -> int:
        """Wait until `count` tasks in all have been started; return how many are missing at the end."""
        deadline = time.monotonic() + GIVEN_UP_S
        while len(self.waits_ms) < count and time.monotonic() < deadline:
            self._news.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._news.wait()
            except TimeoutError:
                break
        return count - len(self.waits_ms)

    async def close(self) -> None:
        """Send everybody home."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, backend: Backend, number: int) -> None:
        owned = self._capabilities(number)
        while True:
            command = msgspec.structs.replace(claim_command(number, wait_ms=30_000), capabilities=owned)
            for lease in (await backend.lease.claim(command)).leases:
                self._started(lease, owned)
                await backend.execution.complete(
                    ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence)
                )

    def _started(self, lease: Lease, owned: tuple[str, ...]) -> None:
        self.waits_ms.append((time.monotonic_ns() - int(lease.input.data)) / 1e6)
        requirements = lease.policy.routing_requirements
        if requirements is not None and not set(requirements.required_capabilities) <= set(owned):
            self.wrong += 1
        self._news.set()


async def _open(where: Place, count: int) -> list[Backend]:
    opened: list[Backend] = []
    for start in range(0, count, OPENED_AT_ONCE):
        opened += await asyncio.gather(
            *(connect(where.url) for _ in range(min(OPENED_AT_ONCE, count - start)))
        )
    return opened


def _task(required: tuple[str, ...] = ()) -> ExecutionCreate:
    policy = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=required))
    return ExecutionCreate(
        kind=KIND,
        lane=LANE,
        input=Payload(str(time.monotonic_ns()).encode()),
        policy=policy if required else None,
    )


# Scenarios --------------------------------------------------------------------------------------------------------


async def bursts(store: str, workers: int, size: int, count: int) -> dict[str, Any]:
    """Submit `count` bursts of `size` executions to idle workers, each on connections of its own."""
    async with place(store) as where:
        submitter, *stores = await _open(where, workers + 1)
        # The first create makes the route known, which happens once in a store's life.
        crowd = Crowd(stores, lambda _: (), workers)
        await submitter.execution.create(_task())
        await crowd.wait_started(1)
        crowd.waits_ms.clear()
        await asyncio.sleep(SETTLE_S)  # sleeps: everybody waits again
        stranded = 0

        async def burst(number: int) -> None:
            nonlocal stranded
            await asyncio.gather(*(submitter.execution.create(_task()) for _ in range(size)))
            stranded = max(stranded, await crowd.wait_started(number * size))
            await asyncio.sleep(SETTLE_S)  # sleeps: everybody waits again

        meter = where.meter().start()
        for number in range(1, count + 1):
            await burst(number)
        meter.stop()
        figures = _waits(crowd)
        # Counting takes time of its own, so it has bursts of its own.
        counter = where.counter()
        for number in range(count + 1, count + COUNTED + 1):
            await burst(number)
        calls = await asyncio.to_thread(counter.stop)
        await crowd.close()
        await asyncio.gather(*(backend.close() for backend in (submitter, *stores)))
    return figures | {
        "stranded": stranded,
        "commands_per_task": calls / (size * COUNTED),
        "cpu_us": meter.cpu_s / (size * count) * 1e6,
        "server_us": meter.server_s / (size * count) * 1e6,
    }


async def routing(
    store: str, workers: int, connections: int, tasks: int, capabilities: int, present: int
) -> dict[str, Any]:
    """Submit tasks that require one or two of `capabilities` to workers that have three of the `present` first each."""
    chance = random.Random(7)
    names = [f"capability-{number}" for number in range(capabilities)]

    def owned(number: int) -> tuple[str, ...]:
        # Neighbours overlap, so that any two neighbouring capabilities are found together.
        return tuple(sorted({names[(number + offset) % present] for offset in range(3)}))

    required = [_neighbours(names, chance) for _ in range(tasks)]
    matching = sum(any(set(one) <= set(owned(number)) for number in range(workers)) for one in required)
    async with place(store) as where:
        submitter, *stores = await _open(where, connections + 1)
        crowd = Crowd(stores, owned, workers)
        for one in dict.fromkeys(required):
            # Makes the routes known; these are not measured.
            await submitter.execution.create(_task(one))
        first = sum(
            any(set(one) <= set(owned(number)) for number in range(workers))
            for one in dict.fromkeys(required)
        )
        await crowd.wait_started(first)
        crowd.waits_ms.clear()
        for start in range(0, tasks, 50):
            await asyncio.gather(
                *(submitter.execution.create(_task(one)) for one in required[start : start + 50])
            )
            await asyncio.sleep(0.02)  # sleeps: work arrives over time
        missing = await crowd.wait_started(matching)
        # What cannot be matched waits: from here on the store should have nothing to do.
        counter, cpu_s, began = where.counter(), where.cpu_s(), time.monotonic()
        await asyncio.sleep(3)  # sleeps: time passes
        idle_s = time.monotonic() - began
        cpu_s, calls = where.cpu_s() - cpu_s, await asyncio.to_thread(counter.stop)
        await crowd.close()
        await asyncio.gather(*(backend.close() for backend in (submitter, *stores)))
    return _waits(crowd) | {
        "wrong": crowd.wrong,
        "matched": matching - missing,
        "of": matching,
        "unmatched": tasks - matching,
        "waiting_commands_per_s": calls / idle_s,
        "waiting_core_percent": cpu_s / idle_s * 100,
    }


def _neighbours(names: list[str], chance: random.Random) -> tuple[str, ...]:
    first = chance.randrange(len(names))
    return tuple(sorted({names[first], names[(first + chance.randrange(2)) % len(names)]}))


def _waits(crowd: Crowd) -> dict[str, Any]:
    waits = crowd.waits_ms or [0.0]
    return {"p50_ms": percentile(waits, 0.5), "p99_ms": percentile(waits, 0.99), "samples": len(waits)}
