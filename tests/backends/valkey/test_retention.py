"""Retention in Valkey: everything goes, in bounded steps, and what is left in between is sound."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.backend import ValkeyBackend, open_backend
from flowfabric.backends.valkey.wire import Client, connect, parse_url
from flowfabric.contract.errors import ExecutionNotFound
from flowfabric.contract.lease import Lease
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import StreamPolicy
from flowfabric.contract.states import FrameMode
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.stored import Keys
from tests.conformance.world import World, frame, policy, retrying

BIG: Final = Payload(b'"' + b"x" * 100_000 + b'"')
ATTEMPTS: Final = 600


class Placed(World):
    """A store, its backend's own type, and raw commands."""

    def __init__(self, backend: ValkeyBackend, clock: ManualClock, raw: Client) -> None:
        super().__init__(backend, clock)
        self.raw = raw
        self.calls = backend._store.calls

    def keys(self, execution_id: str) -> Keys:
        return Keys(self.raw, execution_id)

    async def check(self) -> None:
        """Expect the store to be sound."""
        assert not (await self.backend.maintenance.fsck()).findings


@pytest.fixture
async def world(place: str, clock: ManualClock) -> AsyncIterator[Placed]:
    raw = await connect(parse_url(place))
    backend = await open_backend(place, clock=clock, partitions=FEW)
    yield Placed(backend, clock, raw)
    await backend.close()
    await raw.close()


async def many_attempts(world: Placed, **fields: int) -> Lease:
    """Run an execution through many attempts that each leave frames, and complete it."""
    lease = await world.leased(policy=retrying(ATTEMPTS, 0, **fields), input=BIG)
    for number in range(ATTEMPTS):
        await world.stream.append(lease, frames=(frame(1), frame(2, b"{}", mode=FrameMode.SUMMARY)))
        if number < ATTEMPTS - 1:
            await world.execution.fail(lease)
            lease = await world.claim_one()
    await world.execution.complete(lease, result=BIG)
    return lease


async def test_nothing_is_left(world: Placed) -> None:
    """A removed execution leaves no key behind but the entry of its idempotency key."""
    lease = await world.leased(policy=policy(retention_ms=1_000), input=BIG, idempotency_key="key")
    lossy = frame(3, mode=FrameMode.BEST_EFFORT, ttl_ms=5)
    await world.stream.append(lease, frames=(frame(1), frame(2, b"{}", mode=FrameMode.SUMMARY), lossy))
    await world.execution.complete(lease, result=BIG)
    assert await world.advance(1_000) >= 1
    keys = world.keys(lease.execution_id)
    (left,) = await keys.stored()
    assert left.startswith(f"{keys.partition.tag}k:")
    again = await world.execution.create(
        kind="k", input=BIG, idempotency_key="key", policy=policy(retention_ms=1_000)
    )
    assert again.execution_id == lease.execution_id
    await world.check()


async def test_a_large_execution_goes_in_steps(world: Placed) -> None:
    """An execution with hundreds of attempts is removed in steps; interrupted in between, it is sound, and goes on."""
    lease = await many_attempts(world, retention_ms=1_000)
    world.clock.advance(1_000)
    keys = world.keys(lease.execution_id)
    step = (keys.hash, keys.partition.due, keys.partition.all)
    found = await world.calls.call(keys.partition, "execution_trim", step, start=0)
    assert found == [b"more", 256]
    await world.check()
    for attempt_index, count in ((0, 0), (255, 0), (256, 2)):
        page = await world.stream.read(lease.execution_id, attempt_index=attempt_index)
        assert (len(page.frames), page.trimmed) == (count, count == 0)
    assert (await world.execution.trim(lease.execution_id)).status == "deleted"
    assert await keys.stored() == []
    await world.refused(ExecutionNotFound, world.execution.trim(lease.execution_id))


async def test_frames_of_many_attempts_go_and_the_record_stays(world: Placed) -> None:
    """Frames go before the record, those of every attempt; summaries stay, readers are told."""
    fields = {"stream_policy": StreamPolicy(retention_ttl_ms=1_000), "retention_ms": 5_000}
    lease = await many_attempts(world, **fields)  # type: ignore[arg-type]
    world.clock.advance(1_000)
    assert (await world.execution.trim(lease.execution_id)).status == "frames_deleted"
    keys = world.keys(lease.execution_id)
    assert not [name for name in await keys.stored() if name.startswith(f"{keys.partition.tag}s")]
    page = await world.stream.read(lease.execution_id, limit=10_000)
    assert len(page.frames) == ATTEMPTS
    assert page.trimmed
    summary = await world.stream.read_summary(lease.execution_id, attempt_index=0)
    assert summary.version == 1
    await world.check()


async def test_lossy_streams_of_earlier_attempts_expire_one_by_one(world: Placed) -> None:
    """Each lossy stream goes at its own time, whichever attempt it belongs to, and wakes the timers for the next."""
    lease = await world.leased(policy=retrying(3, 0), lease_ttl_ms=60_000)
    for number, ttl_ms in enumerate((3_000, 1_000, 2_000)):
        lossy = frame(1, mode=FrameMode.BEST_EFFORT, ttl_ms=ttl_ms)
        await world.stream.append(lease, frames=(lossy,))
        if number < 2:
            await world.execution.fail(lease)
            lease = await world.claim_one(lease_ttl_ms=60_000)
    left = [len(await world.frames(lease.execution_id, number)) for number in range(3)]
    assert left == [1, 1, 1]
    for expected in ([1, 0, 1], [1, 0, 0], [0, 0, 0]):
        await world.advance(2_000)
        assert [len(await world.frames(lease.execution_id, number)) for number in range(3)] == expected
        await world.check()
    assert (await world.stream.read(lease.execution_id, attempt_index=0)).trimmed is False
