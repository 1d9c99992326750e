"""Repair of very much at once: one run puts everything right, however many entries a page has."""

from __future__ import annotations

from flowfabric.backends.clock import ManualClock
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import Kind
from tests.backends.postgres.work import FEW, opened
from tests.backends.working import create_many
from tests.postgres.servers import Node

MANY = 1_300


async def test_all_index_entries_are_lost(still_node: Node, clock: ManualClock) -> None:
    """More wrong entries on a page than are listed are repaired in one run, and strays are removed."""
    async with opened(still_node.url, clock=clock, partitions=FEW) as (backend,):
        items = [
            ExecutionCreate(kind=Kind("k"), deadline_at_ms=clock.now_ms() + 10_000_000) for _ in range(MANY)
        ]
        await create_many(backend, items)
        still_node.call("DELETE FROM ff.ready")
        still_node.call("DELETE FROM ff.agenda")
        still_node.call(
            "INSERT INTO ff.agenda (seq, due_at_ms, due_kind, id) "
            "SELECT n, 5, 'retention', gen_random_uuid() FROM generate_series(1000000, 1002500) AS n"
        )
        report = await backend.maintenance.fsck(repair=True)
        assert len(report.findings) == 1_000
        assert not (await backend.maintenance.fsck()).findings
        assert still_node.one("SELECT count(*) FROM ff.ready") == MANY
        assert still_node.one("SELECT count(*) FROM ff.agenda") == MANY


async def test_strays_behind_what_is_not_repaired(still_node: Node, clock: ManualClock) -> None:
    """Entries are repaired also where they come after very many rows that only a person can judge."""
    async with opened(still_node.url, clock=clock, partitions=FEW) as (backend,):
        still_node.call(
            "INSERT INTO ff.result SELECT n, 'a/b', '' FROM generate_series(1000000, 1002500) AS n"
        )
        still_node.call(
            "INSERT INTO ff.agenda (seq, due_at_ms, due_kind, id) VALUES (1002600, 5, 'retention', gen_random_uuid())"
        )
        await backend.maintenance.fsck(repair=True)
        assert still_node.one("SELECT count(*) FROM ff.agenda") == 0
