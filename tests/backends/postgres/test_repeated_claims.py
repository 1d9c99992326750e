"""Claims that are made again, by the same id or by a caller that left: who gets what they leased."""

from __future__ import annotations

import asyncio

from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.contract.execution import (
    ExecutionCreate,
)
from flowfabric.contract.ids import ExecutionId, Kind
from tests.backends.postgres.work import held
from tests.backends.working import (
    claim,
    claim_id,
    claiming,
    create,
    create_many,
    served,
)


async def test_one_claim_made_twice_at_once(pair: list[PostgresBackend]) -> None:
    """Two processes that claim with one id at the same moment get the same leases."""
    one, other = pair
    await create_many(one, [ExecutionCreate(kind=Kind("k")) for _ in range(60)])
    seen: set[ExecutionId] = set()
    for _ in range(20):
        known = claim_id()
        first, second = await asyncio.gather(
            claim(one, max_tasks=2, claim_id=known), claim(other, max_tasks=2, claim_id=known)
        )
        assert first == second and len(first) == 2
        seen.update(lease.execution_id for lease in first)
    assert len(seen) == 40


async def test_a_claim_whose_id_is_in_use_waits_for_the_other(pair: list[PostgresBackend]) -> None:
    """While a claim is not committed, one of the same id in another process has no answer; then it has the same one."""
    one, other = pair
    await create(one)
    known = claim_id()
    assert await claim(one, kinds=(Kind("none"),)) == ()
    (route,) = await one._catalog.fitting(claiming())
    rival = (
        "SELECT count(*) FROM ff.lease_claim(ARRAY['default'], ARRAY[$1], ARRAY[$2::integer], ARRAY['w'], ARRAY['w'],"
        " ARRAY[30000], ARRAY[$3::uuid], ARRAY[1])"
    )
    async with held(one, rival, f"{{{route}}}", one._catalog.known, known):
        task = asyncio.create_task(claim(other, claim_id=known))
        done, _ = await asyncio.wait([task], timeout=0.3)
        assert not done
    (lease,) = await served(task)
    assert await claim(one, claim_id=known) == (lease,)
