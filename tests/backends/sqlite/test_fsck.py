"""Checking a file against damage that only somebody behind the store's back can do: each kind is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.contract.backend import FsckReport
from flowfabric.contract.execution import ExecutionFail
from flowfabric.contract.policies import ExecutionPolicy, FixedBackoff, RetryPolicy
from flowfabric.contract.stream import FrameInput, StreamAppend
from tests.backends.sqlite.store import claim, complete, create, opened, tamper

RETRY = ExecutionPolicy(retry_policy=RetryPolicy(max_retries=3, backoff=FixedBackoff(delay_ms=0)))

INDEX_DAMAGE = {
    "not claimable": "UPDATE execution SET ready_rank = NULL WHERE seq = 1",
    "claimable twice": "UPDATE execution SET ready_rank = 0 WHERE seq = 2",
    "wrong order": "UPDATE execution SET eligible_since_ms = 1 WHERE seq = 1",
    "wrong rank": "UPDATE execution SET ready_rank = -7 WHERE seq = 1",
    "no timer": "UPDATE execution SET due_at_ms = NULL, due_kind = NULL WHERE seq = 2",
    "late timer": "UPDATE execution SET due_at_ms = due_at_ms + 1 WHERE seq = 2",
    "other timer": "UPDATE execution SET due_kind = 'retention' WHERE seq = 2",
    "no holder": "UPDATE execution SET holder = NULL WHERE seq = 2",
    "claim id": "UPDATE execution SET claim_id = 'x' WHERE seq = 2",
    "lost": "UPDATE execution SET lost_at_ms = 5 WHERE seq = 1",
    "public state": "UPDATE execution SET public_state = 'failed' WHERE seq = 3",
}
"""Executions: 1 waits, 2 is leased and has had two attempts and frames, 3 has succeeded."""


def _record(seq: int, path: str, value: str) -> str:
    return (
        f"UPDATE execution SET record = CAST(json_set(CAST(record AS TEXT), '$.{path}', {value}) AS BLOB) "
        f"WHERE seq = {seq}"
    )


OTHER_DAMAGE = {
    "S1": _record(2, "lease.lost_at_ms", "5"),
    "S1 lease of the finished": _record(
        3,
        "lease",
        'json(\'{"lease_id":"x","lease_epoch":1,"worker_id":"w",'
        '"worker_instance":"w","acquired_at_ms":1,"ttl_ms":1,"expires_at_ms":2,"lost_at_ms":2}\')',
    ),
    "S2": _record(2, "lease_epoch", "1"),
    "S2 of attempts": "UPDATE attempt SET record = CAST(json_set(CAST(record AS TEXT), '$.lease_epoch', 9) AS BLOB)",
    "S5": "DELETE FROM definition WHERE seq = 1",
    "S5 of keys": "UPDATE idempotency SET digest = 'other'",
    "S6": "DELETE FROM result WHERE seq = 3",
    "S6 of results": "INSERT INTO result (seq, content_type, data) VALUES (1, 'a/b', x'00')",
    "S6 twice": "UPDATE event SET body = CAST(json_set(CAST(body AS TEXT), '$.outcome', 'failed') AS BLOB) "
    "WHERE seq = 3",
    "S8": "DELETE FROM attempt WHERE seq = 2",
    "S8 of counts": _record(2, "total_attempt_count", "5"),
    "S8 of bounds": _record(2, "retry_count", "4"),
    "S9": _record(1, "state.attempt_state", "'running_attempt'"),
    "S9 of words": _record(1, "state.public_state", "'failed'"),
    "S9 of text": "UPDATE execution SET record = x'7b7d' WHERE seq = 1",
    "S10 of routes": "UPDATE execution SET route_id = 99 WHERE seq = 1",
    "S10 of names": "UPDATE execution SET lane = 'other' WHERE seq = 1",
    "S20": "UPDATE frame SET sequence = 9 WHERE sequence = 1",
    "S20 of counts": "DELETE FROM frame WHERE sequence = 2",
    "S20 of streams": "DELETE FROM stream",
    "S20 of events": "UPDATE store SET event_id = 1",
    "S24": "DELETE FROM execution WHERE seq = 2",
}


async def _store(path: Path, *damage: str, repair: bool = False) -> FsckReport:
    """Make a store with one execution in each situation, damage it, and check it."""
    clock = ManualClock()
    async with opened(path, clock=clock) as store:
        await create(store, kind="waits", priority=1)
        await create(store, kind="runs", policy=RETRY, idempotency_key="key")
        await create(store, kind="ends")
        clock.advance(10)
        (lease,) = await claim(store, kinds=("runs",))
        await store.execution.fail(ExecutionFail(execution_id=lease.execution_id, fence=lease.fence))
        clock.advance(10)
        (lease,) = await claim(store, kinds=("runs",))
        await store.stream.append(
            StreamAppend(
                execution_id=lease.execution_id,
                attempt_index=1,
                fence=lease.fence,
                frames=tuple(FrameInput(sequence=number) for number in (1, 2, 3)),
            )
        )
        (lease,) = await claim(store, kinds=("ends",))
        await complete(store, lease, b"42")
    tamper(path, *damage)
    async with opened(path, clock=clock) as store:
        return await store.maintenance.fsck(repair=repair)


async def test_a_sound_store_has_no_findings(tmp_path: Path) -> None:
    """Without damage nothing is found, and everything was looked at."""
    report = await _store(tmp_path / "store.db")
    assert report == FsckReport(executions=3, attempts=3, frames=3, findings=())


@pytest.mark.parametrize("kind", INDEX_DAMAGE)
async def test_index_damage_is_found_and_repaired(tmp_path: Path, kind: str) -> None:
    """An index entry that disagrees with its record is found, is rebuilt by repair, and is sound then."""
    path = tmp_path / "store.db"
    report = await _store(path, INDEX_DAMAGE[kind], repair=True)
    (finding,) = report.findings
    assert finding.repaired and finding.invariant.startswith("S10")
    async with opened(path) as store:
        assert not (await store.maintenance.fsck()).findings


@pytest.mark.parametrize("kind", OTHER_DAMAGE)
async def test_other_damage_is_found(tmp_path: Path, kind: str) -> None:
    """Damage that only a person can judge is found under its invariant; repair leaves it alone."""
    report = await _store(tmp_path / "store.db", OTHER_DAMAGE[kind], repair=True)
    invariant = kind.split(maxsplit=1)[0]
    found = [finding for finding in report.findings if finding.invariant.split()[0] == invariant]
    assert found, report.findings
    assert not any(finding.repaired for finding in found)


async def test_repair_makes_stuck_work_claimable(tmp_path: Path) -> None:
    """An execution whose entry was lost is claimed again after repair; the progress is reported."""
    path = tmp_path / "store.db"
    await _store(path, INDEX_DAMAGE["not claimable"])
    async with opened(path) as store:
        assert await claim(store, kinds=("waits",)) == ()
        seen: list[tuple[int, int]] = []
        await store.maintenance.fsck(repair=True, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(3, 3)]
        assert len(await claim(store, kinds=("waits",))) == 1


async def test_a_claim_mends_an_entry_that_should_not_be_there(tmp_path: Path) -> None:
    """A claim that meets an index entry of something not claimable leases nothing and puts the entry right."""
    path = tmp_path / "store.db"
    await _store(path, INDEX_DAMAGE["claimable twice"])
    async with opened(path, clock=ManualClock()) as store:
        assert await claim(store, kinds=("runs",), max_tasks=5) == ()
        assert not (await store.maintenance.fsck()).findings
