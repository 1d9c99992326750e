"""The order of work across routes, which SQLite merges from several index ranges."""

from __future__ import annotations

import random
from pathlib import Path

from flowfabric.backends.clock import ManualClock
from flowfabric.contract.ids import Kind
from flowfabric.contract.policies import ExecutionPolicy, RoutingRequirements
from tests.backends.sqlite.store import claim, create, opened


async def test_order_over_routes(tmp_path: Path) -> None:
    """Priority, then age, then id, whatever kinds, capabilities and lanes the work is spread over."""
    clock = ManualClock()
    chance = random.Random(7)
    async with opened(tmp_path / "store.db", clock=clock) as store:
        expected: list[tuple[int, int, str]] = []
        for _ in range(300):
            clock.advance(chance.choice((0, 0, 1)))
            priority = chance.randrange(3)
            needs = chance.choice(((), ("a",), ("a", "b"), ("c",)))
            routing = RoutingRequirements(required_capabilities=needs)
            execution_id = await create(
                store,
                kind=Kind(f"k{chance.randrange(4)}"),
                lane=chance.choice(("one", "two")),
                priority=priority,
                policy=ExecutionPolicy(routing_requirements=routing),
            )
            if needs != ("c",):
                expected.append((-priority, clock.now_ms(), execution_id[-36:]))
        got: list[str] = []
        while leases := await claim(
            store, lanes=("one", "two"), capabilities=("a", "b"), max_tasks=chance.randrange(1, 20)
        ):
            got += [lease.execution_id[-36:] for lease in leases]
        assert got == [uuid for _, _, uuid in sorted(expected)]


async def test_a_reply_is_bounded_by_bytes(tmp_path: Path) -> None:
    """A claim for many large inputs gives what fits into a reply; the rest follows with the next claim."""
    from flowfabric.contract.payloads import Payload

    large = Payload(b'"' + b"x" * 1_000_000 + b'"')
    async with opened(tmp_path / "store.db") as store:
        for _ in range(12):
            await create(store, input=large)
        first = await claim(store, max_tasks=256)
        second = await claim(store, max_tasks=256)
        assert len(first) == 9 and len(second) == 3


async def test_a_thousand_empty_routes_cost_little(tmp_path: Path) -> None:
    """Claims remember which routes are empty, and forget it when another process writes."""
    async with opened(tmp_path / "store.db") as store, opened(tmp_path / "store.db") as other:
        for number in range(50):
            await create(store, kind=Kind(f"k{number}"))
        assert len(await claim(store, max_tasks=256)) == 50
        assert await claim(store) == ()
        await create(other, kind=Kind("k7"))
        assert len(await claim(store)) == 1
        await create(store, kind=Kind("k9"))
        assert len(await claim(store)) == 1
