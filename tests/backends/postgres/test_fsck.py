"""Checking a store against damage that only somebody behind its back can do: each kind is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres import fsck
from flowfabric.contract.backend import Backend, FsckReport
from flowfabric.contract.errors import Misuse
from flowfabric.contract.ids import ExecutionId, execution_uuid
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import FrameMode
from tests.backends.postgres.work import FEW
from tests.conformance.world import World, frame, payload, policy, retrying
from tests.postgres.servers import Node

BIG: Final = Payload(b'"' + b"x" * 100_000 + b'"')


class Store:
    """A store with an execution in each situation: `waits`, `runs` (its second attempt, with frames of every kind),
    `ends` (successfully), `lost` (its lease)."""

    def __init__(self, backend: Backend, node: Node, clock: ManualClock) -> None:
        self.backend = backend
        self.world = World(backend, clock)
        self._node = node
        self.rows: dict[str, int] = {}

    async def fill(self) -> None:
        world = self.world
        self._remember("waits", await world.create(kind="waits", priority=1, tags={"a.b": "c"}))
        runs = await world.leased(
            kind="runs", policy=retrying(delay_ms=0), idempotency_key="key", input=BIG, lane="runs"
        )
        self._remember("runs", runs.execution_id)
        await world.stream.append(runs, frames=(frame(1), frame(2, b"{}", mode=FrameMode.SUMMARY)))
        world.clock.advance(5)
        await world.execution.fail(runs)
        runs = await world.claim_one(lanes=("runs",))
        lossy = frame(3, mode=FrameMode.BEST_EFFORT, ttl_ms=10_000)
        await world.stream.append(runs, frames=(frame(1), frame(2), lossy))
        ends = await world.leased(kind="ends", lane="ends")
        self._remember("ends", ends.execution_id)
        await world.execution.complete(ends, result=BIG)
        lost = await world.leased(
            kind="lost", lane="lost", lease_ttl_ms=100, policy=policy(reclaim_grace_ms=50)
        )
        self._remember("lost", lost.execution_id)
        await world.advance(120)

    def damage(self, *statements: str) -> None:
        """Run statements behind the store's back; `{waits}` and the like are row numbers."""
        for statement in statements:
            self._node.call(statement.format(**self.rows))

    async def check(self, *, repair: bool = False) -> FsckReport:
        return await self.backend.maintenance.fsck(repair=repair)

    def _remember(self, name: str, execution_id: ExecutionId) -> None:
        self.rows[name] = self._node.one(
            "SELECT seq FROM ff.execution WHERE id = %s", execution_uuid(execution_id)
        )


@pytest.fixture
async def store(still_node: Node, clock: ManualClock) -> AsyncIterator[Store]:
    """A sound store."""
    backend = await backends.connect(still_node.url, clock=clock, partitions=FEW)
    found = Store(backend, still_node, clock)
    await found.fill()
    yield found
    await backend.close()


async def test_a_sound_store_has_no_findings(store: Store) -> None:
    """Without damage nothing is found, everything was looked at, and the progress is reported."""
    seen: list[tuple[int, int]] = []
    report = await store.backend.maintenance.fsck(progress=lambda done, total: seen.append((done, total)))
    assert report == FsckReport(executions=4, attempts=4, frames=5, findings=())
    assert seen[-1] == (4, 4)


async def test_pages_are_checked_as_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of many pages is checked to its end, and damage on any page is found once."""
    monkeypatch.setattr(fsck, "PAGE", 3)
    monkeypatch.setattr(fsck, "KEYS_PAGE", 2)
    for number in range(20):
        await store.world.create(lane="many", priority=number % 3, idempotency_key=f"key {number}")
    for _ in range(7):
        (lease,) = await store.world.claim(lanes=("many",))
        await store.world.execution.complete(lease)
    assert await store.check() == FsckReport(executions=24, attempts=11, frames=5, findings=())
    store.damage("DELETE FROM ff.agenda WHERE seq = (SELECT max(seq) FROM ff.agenda)")
    store.damage(
        "UPDATE ff.idempotency SET digest = '' WHERE key = 'key 11'", "DELETE FROM ff.ready WHERE rank = 0"
    )
    report = await store.check(repair=True)
    subjects = [finding.subject for finding in report.findings]
    assert len(subjects) == len(set(subjects)) > 2
    (left,) = (await store.check()).findings
    assert left.subject.startswith("idempotency key")


INDEX_DAMAGE: Final = {
    "not claimable": "DELETE FROM ff.ready WHERE seq = {waits}",
    "rank": "UPDATE ff.ready SET rank = rank - 1 WHERE seq = {waits}",
    "age": "UPDATE ff.ready SET eligible_since_ms = 5 WHERE seq = {waits}",
    "another's number": "UPDATE ff.ready SET seq = {ends} WHERE seq = {waits}",
    "claimable twice": "INSERT INTO ff.ready SELECT route_id, -priority, eligible_since_ms, id, seq FROM ff.execution "
    "WHERE seq = {runs}",
    "claimable elsewhere": "INSERT INTO ff.ready SELECT route_id + 1, 0, 5, id, seq FROM ff.execution "
    "WHERE seq = {runs}",
    "claimable after the end": "INSERT INTO ff.ready SELECT route_id, 0, 5, id, seq FROM ff.execution "
    "WHERE seq = {ends}",
    "no timer": "UPDATE ff.agenda SET due_at_ms = NULL, due_kind = NULL WHERE seq = {runs}",
    "late timer": "UPDATE ff.agenda SET due_at_ms = due_at_ms + 1 WHERE seq = {runs}",
    "other timer": "UPDATE ff.agenda SET due_kind = 'retention' WHERE seq = {runs}",
    "never removed": "DELETE FROM ff.agenda WHERE seq = {ends}",
    "timer of another": "UPDATE ff.agenda SET id = gen_random_uuid() WHERE seq = {runs}",
    "no holder": "UPDATE ff.agenda SET holder = NULL WHERE seq = {runs}",
    "another holder": "UPDATE ff.agenda SET holder = 'default other-1' WHERE seq = {runs}",
    "another claim": "UPDATE ff.agenda SET claim_id = gen_random_uuid() WHERE seq = {runs}",
    "lost that is not": "INSERT INTO ff.agenda SELECT seq, NULL, NULL, NULL, NULL, 5, id FROM ff.execution "
    "WHERE seq = {waits}",
    "not lost": "UPDATE ff.agenda SET lost_at_ms = NULL WHERE seq = {lost}",
    "timer of nothing": "INSERT INTO ff.agenda VALUES (99, 5, 'retention', NULL, NULL, NULL, gen_random_uuid())",
    "claimable, of nothing": "INSERT INTO ff.ready VALUES (1, 0, 5, gen_random_uuid(), 99)",
}


@pytest.mark.parametrize("kind", INDEX_DAMAGE)
async def test_index_damage_is_found_and_repaired(store: Store, kind: str) -> None:
    """An index entry that disagrees with its record is found, is rebuilt by repair, and is sound then."""
    store.damage(INDEX_DAMAGE[kind])
    findings = (await store.check()).findings
    assert findings
    assert {(found.invariant, found.repaired) for found in findings} == {
        ("S10 index and record agree", False)
    }
    findings = (await store.check(repair=True)).findings
    assert findings and all(found.repaired for found in findings)
    assert not (await store.check()).findings


def _set(row: str, changes: str) -> str:
    return f"UPDATE ff.execution SET {changes} WHERE seq = {{{row}}}"


OTHER_DAMAGE: Final = {
    "S1": _set("runs", "lost_at_ms = 5"),
    "S1 lease of the finished": _set(
        "ends", "lease_id = gen_random_uuid(), lost_at_ms = 5, expires_at_ms = 6"
    ),
    "S1 lease of none": _set("runs", "lease_id = NULL"),
    "S1 lease that ends before it begins": _set("runs", "expires_at_ms = acquired_at_ms - 1"),
    "S2": _set("runs", "lease_epoch = 1"),
    "S2 of attempts": "UPDATE ff.attempt SET attempt_epoch = 9 WHERE seq = {runs}",
    "S2 of the finished": _set("ends", "lease_epoch = 0"),
    "S5": "DELETE FROM ff.definition WHERE seq = {waits}",
    "S5 of the finished": "DELETE FROM ff.definition WHERE seq = {ends}",
    "S5 of documents": "UPDATE ff.definition SET document = 'x' WHERE seq = {waits}",
    "S5 of digests": "UPDATE ff.definition SET digest = 'x' WHERE seq = {ends}",
    "S5 of ids": _set("ends", "partition = partition + 1"),
    "S5 of definitions": "UPDATE ff.definition SET document = (SELECT document FROM ff.definition WHERE seq = {ends}) "
    "WHERE seq = {waits}",
    "S5 of keys": "UPDATE ff.idempotency SET digest = 'x'",
    "S5 of other keys": "UPDATE ff.idempotency SET key = 'x'",
    "S5 of numbers": "ALTER SEQUENCE ff.execution_seq RESTART 1",
    "S6": "DELETE FROM ff.result WHERE seq = {ends}",
    "S6 of results": "INSERT INTO ff.result VALUES ({waits}, 'a/b', '')",
    "S6 of results of the failed": _set("ends", "vector = ff.ended_vector('failed', 'attempt_terminal')"),
    "S6 of results that are unknown": _set("ends", "has_result = false"),
    "S6 twice": "UPDATE ff.event SET outcome = 'failed' WHERE seq = {ends}",
    "S6 without an instant": _set("ends", "completed_at_ms = NULL"),
    "S6 for ever": _set("ends", "retention_due_at_ms = NULL"),
    "S6 in the middle": _set("ends", "attempt_state = 'started'"),
    "S6 asleep": _set("lost", "reclaim_at_ms = NULL, reclaim_ready = false"),
    "S8": "DELETE FROM ff.attempt WHERE seq = {runs}",
    "S8 of counts": _set("runs", "total_attempt_count = 5"),
    "S8 of counts of the finished": _set("ends", "total_attempt_count = 2"),
    "S8 of bounds": _set("runs", "retry_count = 4"),
    "S8 of bounds of the finished": _set("ends", "replay_count = 1000"),
    "S8 of ids": "UPDATE ff.attempt SET attempt_id = (SELECT attempt_id FROM ff.execution WHERE seq = {runs})",
    "S8 of attempts too many": "INSERT INTO ff.attempt (seq, attempt_index, attempt_id, attempt_type, attempt_state, "
    "attempt_started_at_ms, worker_id, worker_instance, attempt_epoch) VALUES "
    "({ends}, 7, gen_random_uuid(), 'initial', 'ended_success', 5, 'w', 'w', 1)",
    "S9": _set("waits", "vector = 77"),
    "S9 below nothing": _set("ends", "vector = -1"),
    "S9 of words": _set("ends", "attempt_type = 'other'"),
    "S9 of closings": _set("ends", "stream_closed_reason = 'other'"),
    "S9 of failures": _set("ends", "attempt_failure = ARRAY['other', '', '']"),
    "S9 of failures cut short": _set("waits", "failure = ARRAY['permanent']"),
    "S9 of tags": _set("waits", "tags = '[1]'"),
    "S9 of events": "UPDATE ff.event SET name = 'other' WHERE seq = {ends}",
    "S10 of the definition": _set("waits", "max_retries = 9"),
    "S10 of the definition of the finished": _set("ends", "retention_ms = 9"),
    "S10 of names": _set("ends", "lane = 'other'"),
    "S10 of routes": _set("ends", "route_id = 99"),
    "S10 of kinds": "UPDATE ff.route SET kind = 'other' WHERE lane = 'ends'",
    "S10 of capabilities": "UPDATE ff.route SET required = ARRAY['x'] WHERE lane = 'ends'",
    "S10 of revisions": "UPDATE ff.route SET revision = NULL WHERE lane = 'ends'",
    "S10 of streams": "UPDATE ff.stream SET expires_at_ms = 5 WHERE attempt_index = 0",
    "S20": "UPDATE ff.frame SET sequence = 9 WHERE sequence = 1",
    "S20 of counts": "DELETE FROM ff.frame WHERE sequence = 2",
    "S20 of streams": "DELETE FROM ff.stream WHERE attempt_index = 0",
    "S20 of streams of the finished": "UPDATE ff.frame SET seq = {ends} WHERE sequence = 3",
    "S20 of attempts": _set("runs", "total_attempt_count = 1"),
    "S20 of attempts that are none": "INSERT INTO ff.stream (seq, attempt_index, best_effort_cap) "
    "VALUES ({ends}, 3, 1)",
    "S20 of documents": "UPDATE ff.stream SET document = NULL WHERE version > 0",
    "S20 of trimming": "UPDATE ff.stream SET trimmed_ms = last_ms + 1",
    "S20 of events": "DELETE FROM ff.event WHERE seq = {runs} AND n = 2",
    "S20 of events of the finished": "DELETE FROM ff.event WHERE seq = {ends} AND n = 1",
    "S20 of orders": "UPDATE ff.event SET at_ms = 5 WHERE seq = {ends} AND n = 2",
    "S20 of closing": _set("ends", "stream_closed_at_ms = NULL"),
    "S24": "DELETE FROM ff.execution WHERE seq = {ends}",
    "S24 of frames": "INSERT INTO ff.frame VALUES (99, 0, 1, 0, 1, NULL, NULL, 'durable', 'x', 'a/b', NULL, '')",
    "S24 of results": "INSERT INTO ff.result VALUES (9999999999, 'a/b', '')",
}


@pytest.mark.parametrize("kind", OTHER_DAMAGE)
async def test_other_damage_is_found(store: Store, kind: str) -> None:
    """Damage that only a person can judge is found under its invariant; repair leaves it alone."""
    store.damage(OTHER_DAMAGE[kind])
    report = await store.check(repair=True)
    invariant = kind.split(maxsplit=1)[0]
    found = [finding for finding in report.findings if finding.invariant.split()[0] == invariant]
    assert [finding for finding in found if not finding.repaired], report.findings


async def test_damage_of_workers_is_found(store: Store) -> None:
    """A worker whose timer is not that of its record is found."""
    await store.world.worker.register(
        worker_id="w", worker_instance="w-1", lanes=("default",), kinds=("k",), liveness_ttl_ms=1_000
    )
    assert not (await store.check()).findings
    store.damage("UPDATE ff.worker SET due_at_ms = due_at_ms + 1")
    (finding,) = (await store.check()).findings
    assert finding.subject == "worker default/w-1"


async def test_findings_are_bounded(store: Store) -> None:
    """Of very many findings a thousand are listed."""
    store.damage("INSERT INTO ff.result SELECT n, 'a/b', '' FROM generate_series(10000, 20000) AS n")
    assert len((await store.check()).findings) == 1_000


async def test_repair_makes_stuck_work_claimable(store: Store) -> None:
    """An execution whose entry was lost is claimed again after repair, by a claim that waits for it."""
    store.damage(INDEX_DAMAGE["not claimable"])
    assert await store.world.claim(kinds=("waits",)) == ()
    waiting = asyncio.create_task(store.world.claim(kinds=("waits",), wait_ms=20_000))
    await store.check(repair=True)
    assert len(await waiting) == 1


async def test_a_store_in_use_has_no_findings(store: Store) -> None:
    """While executions are created, claimed, written to, completed and removed, nothing is found."""
    world, done = store.world, asyncio.Event()

    async def work(worker: str) -> int:
        count = 0
        while not done.is_set():
            lease = (await world.claim(worker, lanes=(f"lane-{worker}",)) or (None,))[0]
            if lease is None:
                await world.create(lane=f"lane-{worker}", input=BIG, policy=policy(retention_ms=count % 2))
                continue
            frames = tuple(frame(number, mode=FrameMode.DURABLE) for number in range(1, 4))
            await world.stream.append(lease, frames=frames)
            await world.execution.complete(lease, result=payload("1") if count % 3 else BIG)
            await world.execution.trim(lease.execution_id)
            count += 1
        return count

    workers = [asyncio.create_task(work(f"w{number}")) for number in range(8)]
    try:
        for _ in range(10):
            assert not (await store.check(repair=True)).findings
    finally:
        done.set()
        counts = await asyncio.gather(*workers)
    assert min(counts) > 0
    assert not (await store.check()).findings


async def test_copying_is_for_the_server(store: Store, tmp_path: Path) -> None:
    """Nobody copies a Postgres store through a client: the refusal says how it is done."""
    with pytest.raises(Misuse, match="back up its database") as caught:
        await store.backend.maintenance.backup(tmp_path / "copy")
    assert "pg_dump" in str(caught.value.details["next"])
