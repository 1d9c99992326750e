"""Routes as long as the contract lets them be."""

from __future__ import annotations

import random
import string

from flowfabric.contract import limits
from flowfabric.contract.ids import Kind
from flowfabric.contract.policies import ExecutionPolicy, RoutingRequirements
from tests.backends.postgres.work import opened
from tests.backends.working import claim, create

LENGTH = 40


def required(seed: int) -> tuple[str, ...]:
    """Make as many capabilities as may be required, of text that does not get smaller when it is compressed."""
    chance = random.Random(seed)
    letters = string.ascii_letters + string.digits
    count = (limits.CAPABILITY_BYTES_MAX + 1) // (LENGTH + 1)
    return tuple("".join(chance.choices(letters, k=LENGTH)) for _ in range(count))


async def test_work_that_requires_as_much_as_may_be(place: str) -> None:
    """Executions of the longest routes are created, counted once per route, and claimed by whoever is capable."""
    async with opened(place) as (backend,):
        for seed in (1, 2, 1):
            needs = RoutingRequirements(required_capabilities=required(seed))
            await create(backend, policy=ExecutionPolicy(routing_requirements=needs), kind=Kind("k" * 128))
        assert await claim(backend, max_tasks=9) == ()
        assert len(await claim(backend, max_tasks=9, capabilities=required(1))) == 2
        assert len(await claim(backend, max_tasks=9, capabilities=required(2))) == 1
