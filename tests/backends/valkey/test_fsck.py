"""Checking a store against damage that only somebody behind its back can do: each kind is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.backend import ValkeyBackend, open_backend
from flowfabric.backends.valkey.record import Packed, PackedAttempt, PackedEvent, PackedStream, Static
from flowfabric.backends.valkey.wire import Client, connect, parse_url
from flowfabric.contract.backend import FsckReport
from flowfabric.contract.errors import Misuse
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import FrameMode
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.stored import Keys
from tests.conformance.world import World, frame, payload, policy, retrying

BIG: Final = Payload(b'"' + b"x" * 100_000 + b'"')
Damage = Callable[["Store"], Awaitable[Any]]


class Store:
    """A store with one execution in each situation. One waits, one runs (its second attempt, with frames of every
    kind), one has succeeded, one has lost its lease."""

    def __init__(self, backend: ValkeyBackend, raw: Client, clock: ManualClock) -> None:
        self.backend = backend
        self.raw = raw
        self.world = World(backend, clock)

    async def fill(self) -> None:
        world = self.world
        self.waits = Keys(self.raw, await world.create(kind="waits", priority=1, tags={"a.b": "c"}))
        runs = await world.leased(
            kind="runs", policy=retrying(delay_ms=0), idempotency_key="key", input=BIG, lane="runs"
        )
        self.runs = Keys(self.raw, runs.execution_id)
        await world.stream.append(runs, frames=(frame(1), frame(2, b"{}", mode=FrameMode.SUMMARY)))
        world.clock.advance(5)
        await world.execution.fail(runs)
        runs = await world.claim_one(lanes=("runs",))
        lossy = frame(3, mode=FrameMode.BEST_EFFORT, ttl_ms=10_000)
        await world.stream.append(runs, frames=(frame(1), frame(2), lossy))
        ends = await world.leased(kind="ends", lane="ends")
        self.ends = Keys(self.raw, ends.execution_id)
        await world.execution.complete(ends, result=BIG)
        lost = await world.leased(
            kind="lost", lane="lost", lease_ttl_ms=100, policy=policy(reclaim_grace_ms=50)
        )
        self.lost = Keys(self.raw, lost.execution_id)
        await world.advance(120)

    async def check(self, *, repair: bool = False) -> FsckReport:
        return await self.backend.maintenance.fsck(repair=repair)


@pytest.fixture
async def store(place: str, clock: ManualClock) -> AsyncIterator[Store]:
    """A sound store."""
    raw = await connect(parse_url(place))
    backend = await open_backend(place, clock=clock, partitions=FEW)
    found = Store(backend, raw, clock)
    await found.fill()
    yield found
    await backend.close()
    await raw.close()


async def test_a_sound_store_has_no_findings(store: Store) -> None:
    """Without damage nothing is found, everything was looked at, and the progress is reported."""
    seen: list[tuple[int, int]] = []
    report = await store.backend.maintenance.fsck(progress=lambda done, total: seen.append((done, total)))
    assert report == FsckReport(executions=4, attempts=4, frames=5, findings=())
    assert seen[-1] == (4, 4)


async def _move(keys: Keys, index: str, by: float) -> None:
    await keys("ZADD", index, "INCR", by, keys.uuid)


async def _drop_owner(keys: Keys) -> None:
    await keys("DEL", keys.partition.own)


async def _rank_too_high(store: Store) -> None:
    await _move(store.waits, await store.waits.eligible(), -1)


async def _not_claimable(store: Store) -> None:
    await store.waits("ZREM", await store.waits.eligible(), store.waits.uuid)


async def _claimable_twice(store: Store) -> None:
    await store.runs("ZADD", await store.runs.eligible(), 1, store.runs.uuid)


async def _claimable_elsewhere(store: Store) -> None:
    await store.runs("ZADD", store.runs.partition.eligible("0" * 20), 1, store.runs.uuid)


async def _held_by_another(store: Store) -> None:
    await store.runs("ZADD", store.runs.partition.own, 0, f"default other-1 {store.runs.uuid}")


async def _of_nothing(store: Store) -> None:
    uuid = "11111111-1111-4111-8111-111111111111"
    await store.waits("ZADD", store.waits.partition.due, 5, uuid)


async def _listed_nothing(store: Store) -> None:
    uuid = "11111111-1111-4111-8111-111111111111"
    await store.waits("ZADD", store.waits.partition.all, 5, uuid)


INDEX_DAMAGE: Final[dict[str, Damage]] = {
    "not claimable": _not_claimable,
    "rank": _rank_too_high,
    "claimable twice": _claimable_twice,
    "claimable elsewhere": _claimable_elsewhere,
    "no timer": lambda store: store.runs("ZREM", store.runs.partition.due, store.runs.uuid),
    "late timer": lambda store: _move(store.runs, store.runs.partition.due, 1),
    "other timer": lambda store: store.runs.tamper("v", Packed, due_kind="retention"),
    "no holder": lambda store: _drop_owner(store.runs),
    "another holder": _held_by_another,
    "lost that is not": lambda store: store.waits("ZADD", store.waits.partition.lost, 5, store.waits.uuid),
    "not lost": lambda store: store.lost("ZREM", store.lost.partition.lost, store.lost.uuid),
    "not listed": lambda store: store.ends("ZREM", store.ends.partition.all, store.ends.uuid),
    "listed as older": lambda store: _move(store.ends, store.ends.partition.all, -1),
    "timer of nothing": _of_nothing,
    "listed, of nothing": _listed_nothing,
}


@pytest.mark.parametrize("kind", INDEX_DAMAGE)
async def test_index_damage_is_found_and_repaired(store: Store, kind: str) -> None:
    """An index entry that disagrees with its record is found, is rebuilt by repair, and is sound then."""
    await INDEX_DAMAGE[kind](store)
    (finding,) = (await store.check()).findings
    assert (finding.invariant, finding.repaired) == ("S10 index and record agree", False)
    (finding,) = (await store.check(repair=True)).findings
    assert finding.repaired
    assert not (await store.check()).findings


async def _tamper_idempotency(store: Store) -> None:
    key = store.runs.partition.idempotency(keys.idempotency_hash("default", "key"))
    stored = await store.runs("GET", key)
    digest = await store.runs("HGET", store.runs.hash, "h")
    await store.runs("SET", key, stored.replace(digest, b"0" * len(digest)))


async def _end_twice(store: Store) -> None:
    await store.ends.tamper("e1", PackedEvent, outcome="failed")


async def _drop_payload(keys: Keys) -> None:
    nonce = (await keys.static()).input or (await keys.packed()).result
    await keys("DEL", keys.partition.payload(nonce or ""))


async def _expire_payload(store: Store) -> None:
    await store.ends(
        "PEXPIRE", store.ends.partition.payload((await store.ends.packed()).result or ""), 99_999
    )


def _stream(store: Store, attempt_index: int = 1) -> str:
    return store.runs.partition.durable(store.runs.uuid, attempt_index)


async def _drop_frame(store: Store) -> None:
    ((frame_id, _),) = await store.runs("XRANGE", _stream(store), "-", "+", "COUNT", 1)
    await store.runs("XDEL", _stream(store), frame_id)


async def _swap_frames(store: Store) -> None:
    (_, first), (_, second) = await store.runs("XRANGE", _stream(store), "-", "+")
    await store.runs("DEL", _stream(store))
    at_ms = store.world.now_ms
    for number, fields in enumerate((second, first)):
        await store.runs("XADD", _stream(store), f"{at_ms - 100}-{number}", *fields)


OTHER_DAMAGE: Final[dict[str, Damage]] = {
    "S1": lambda store: store.runs.tamper("v", Packed, lost_at_ms=5),
    "S1 lease of the finished": lambda store: store.ends.tamper("v", Packed, lease_id="x", lost_at_ms=5),
    "S2": lambda store: store.runs.tamper("v", Packed, lease_epoch=1),
    "S2 of attempts": lambda store: store.runs.tamper("a0", PackedAttempt, attempt_epoch=9),
    "S5": lambda store: store.waits("HDEL", store.waits.hash, "j"),
    "S5 of inputs": lambda store: store.waits("HDEL", store.waits.hash, "i"),
    "S5 of large inputs": lambda store: _drop_payload(store.runs),
    "S5 of keys": _tamper_idempotency,
    "S6": lambda store: _drop_payload(store.ends),
    "S6 of results that expire": _expire_payload,
    "S6 of results": lambda store: store.waits.tamper("v", Packed, result="", result_type="a/b"),
    "S6 twice": _end_twice,
    "S8": lambda store: store.runs("HDEL", store.runs.hash, "a0"),
    "S8 of counts": lambda store: store.runs.tamper("v", Packed, total_attempt_count=5),
    "S8 of bounds": lambda store: store.runs.tamper("v", Packed, retry_count=4),
    "S8 of ids": lambda store: store.runs.tamper("a0", PackedAttempt, attempt_id="x"),
    "S9": lambda store: store.waits.tamper("v", Packed, vector=77),
    "S9 of text": lambda store: store.waits("HSET", store.waits.hash, "v", b"\xff"),
    "S9 without a record": lambda store: store.waits("HDEL", store.waits.hash, "v"),
    "S10 of the definition": lambda store: store.waits.tamper("d", Static, max_retries=9),
    "S10 of streams": lambda store: store.runs.tamper("s0", PackedStream, expires_at_ms=store.world.now_ms),
    "S20": _swap_frames,
    "S20 of counts": _drop_frame,
    "S20 of streams": lambda store: store.runs("HDEL", store.runs.hash, "s0"),
    "S20 of attempts": lambda store: store.runs.tamper("v", Packed, total_attempt_count=1),
    "S20 of documents": lambda store: store.runs("HDEL", store.runs.hash, "y0"),
    "S20 of trimming": lambda store: store.runs.tamper("s1", PackedStream, trimmed_ms=2**50),
    "S20 of events": lambda store: store.runs("HDEL", store.runs.hash, "e2"),
    "S24": lambda store: store.waits("SET", store.waits.partition.payload("0" * 24), "stray"),
    "S24 of unknown keys": lambda store: store.waits("SET", f"{store.waits.partition.tag}zz", "stray"),
    "S24 of partitions": lambda store: Keys(store.raw, "{fp:999}:" + store.waits.uuid)(
        "SET", "{fp:999}:due", "stray"
    ),
}


@pytest.mark.parametrize("kind", OTHER_DAMAGE)
async def test_other_damage_is_found(store: Store, kind: str) -> None:
    """Damage that only a person can judge is found under its invariant; repair leaves it alone."""
    await OTHER_DAMAGE[kind](store)
    report = await store.check(repair=True)
    invariant = kind.split(maxsplit=1)[0]
    found = [finding for finding in report.findings if finding.invariant.split()[0] == invariant]
    assert [finding for finding in found if not finding.repaired], report.findings


async def test_damage_of_global_records_is_found(store: Store) -> None:
    """A worker whose timer is gone, and a partition whose copy of a lane's state is wrong, are found."""
    await store.world.worker.register(
        worker_id="w", worker_instance="w-1", lanes=("default",), kinds=("k",), liveness_ttl_ms=1_000
    )
    await store.world.lane.set_state(lane="runs", state="paused")
    assert not (await store.check()).findings
    await store.raw.execute(keys.GLOBAL_SLOT, [("DEL", keys.WORKER_DUE)])
    await store.runs("HDEL", store.runs.partition.lanes, "runs")
    subjects = {finding.subject for finding in (await store.check()).findings}
    assert subjects == {"worker default/w-1", "lane runs"}


async def test_a_staged_payload_is_no_damage(store: Store) -> None:
    """A payload that nobody has adopted yet, and will expire, is not reported."""
    await store.waits("SET", store.waits.partition.payload("0" * 24), "staged", "PX", 60_000)
    assert not (await store.check()).findings


async def test_repair_makes_stuck_work_claimable(store: Store) -> None:
    """An execution whose entry was lost is claimed again after repair, by a claim that waits for it."""
    await _not_claimable(store)
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


async def test_copying_is_for_the_servers(store: Store, tmp_path: Path) -> None:
    """Nobody copies a Valkey store through a client: the refusal says how it is done."""
    with pytest.raises(Misuse, match="back up its servers") as caught:
        await store.backend.maintenance.backup(tmp_path / "copy")
    assert "BGSAVE" in str(caught.value.details["next"])
