"""A claim that is repeated while what it held is taken away from it."""

from __future__ import annotations

import asyncio

from flowfabric.contract.lease import LeaseRevoke
from tests.backends.postgres.work import held, opened
from tests.backends.working import claim, claim_id, create, until
from tests.postgres.session import own_database, shared_node

GATED = """
ALTER FUNCTION ff._claimed RENAME TO t_claimed;
CREATE FUNCTION ff._claimed(
    p_claim_ids uuid[], p_namespaces text[], p_worker_instances text[], p_wanted integer[], p_now bigint
) RETURNS TABLE (at integer, seq bigint) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM ff.t_claimed(p_claim_ids, p_namespaces, p_worker_instances, p_wanted, p_now);
    PERFORM pg_advisory_xact_lock_shared(42);
END $$;
"""
"""Stops a repeated claim when it knows what it holds and has not read it."""


async def test_a_repeated_claim_never_answers_with_the_lease_of_another() -> None:
    """What is revoked and leased to somebody else while a claim is repeated is not in its answer."""
    node = shared_node()
    with own_database() as url:
        name = url.rpartition("/")[2]
        async with opened(url, 2) as (one, other):
            node.call(GATED, database=name)
            for _ in range(2):
                await create(one)
            known = claim_id()
            first, second = await claim(one, claim_id=known, max_tasks=2)
            async with held(one, "SELECT pg_advisory_xact_lock(42)"):
                again = asyncio.create_task(claim(one, claim_id=known, max_tasks=2))
                await until(
                    lambda: bool(
                        node.call(
                            "SELECT FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'",
                            name,
                        )
                    )
                )
                await other.lease.revoke(LeaseRevoke(execution_id=first.execution_id, reason="test"))
                (rival,) = await claim(other, "rival")
            assert rival.execution_id == first.execution_id
            assert await again == (second,)
