"""What work leaves behind: updates without index writes, finished work out of the way, space that is used again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.engine.timers import run_due
from tests.backends.postgres.work import FEW
from tests.conformance.world import World, frame, payload, policy
from tests.postgres.servers import Node

TASKS: Final = 200
RETENTION_MS: Final = 1_000


@pytest.fixture
async def world(still_node: Node, clock: ManualClock) -> AsyncIterator[World]:
    backend = await backends.connect(still_node.url, clock=clock, partitions=FEW)
    yield World(backend, clock)
    await backend.close()


async def _work(world: World, tasks: int = TASKS) -> None:
    """Create, claim and complete, in some batches."""
    for _ in range(tasks // 20):
        for _ in range(20):
            await world.create(input=payload("1"), policy=policy(retention_ms=RETENTION_MS))
        for lease in await world.claim(max_tasks=20):
            await world.stream.append(lease, frames=(frame(1),))
            await world.lease.renew(lease)
            await world.execution.complete(lease, result=payload("2"))


def _counts(node: Node, table: str) -> tuple[int, int]:
    """Return how many rows were updated, and how many of them without touching an index."""
    ((updated, hot),) = node.call(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = 'ff' AND relname = %s",
        table,
    )
    return updated, hot


def _size(node: Node) -> int:
    return node.one(
        "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class "
        "WHERE relnamespace = 'ff'::regnamespace AND relkind = 'r'"
    )


async def test_updates_touch_no_index(world: World, still_node: Node) -> None:
    """Claiming, renewing and completing rewrite an execution's row in place: no index is written for it."""
    await _work(world)
    await world.backend.close()
    # Counters are told by the connections that worked, at the latest when they end.
    still_node.drop_connections()
    updated, hot = _counts(still_node, "execution")
    assert updated >= 3 * TASKS
    assert hot >= 0.8 * updated


async def test_finished_work_is_out_of_the_way(world: World, still_node: Node) -> None:
    """Of finished work nothing is left in what claims look at, and one timer each says when it goes."""
    await _work(world)
    assert still_node.one("SELECT count(*) FROM ff.ready") == 0
    kinds = still_node.call("SELECT due_kind, holder, lost_at_ms, count(*) FROM ff.agenda GROUP BY 1, 2, 3")
    assert kinds == [("retention", None, None, TASKS)]


async def test_space_is_used_again(world: World, still_node: Node) -> None:
    """With retention and vacuum at work a store that is used at a constant rate stops growing, and ends empty."""
    sizes: list[int] = []
    for _ in range(4):
        await _work(world)
        world.clock.advance(RETENTION_MS)
        while await run_due(world.backend):
            pass
        still_node.call("VACUUM")
        sizes.append(_size(still_node))
    assert max(sizes[1:]) <= 1.2 * sizes[0], sizes
    tables = ("execution", "definition", "result", "attempt", "event", "stream", "frame", "agenda", "ready")
    left = {table: still_node.one(f"SELECT count(*) FROM ff.{table}") for table in tables}
    assert left == dict.fromkeys(tables, 0)
    assert not (await world.backend.maintenance.fsck()).findings
