"""Reads while a slot moves key by key to another primary: some keys are here, some are there, and nothing is missed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.backend import open_backend
from flowfabric.backends.valkey.keys import Partition
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import FrameMode
from tests.conformance.world import World, frame, retrying
from tests.valkey import servers
from tests.valkey.servers import Cluster

LOSSY, SUMMARY = FrameMode.BEST_EFFORT, FrameMode.SUMMARY


@pytest.fixture(scope="module")
def moving_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with servers.cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
async def world(moving_cluster: Cluster, clock: ManualClock) -> AsyncIterator[World]:
    """A store whose executions are all in one slot."""
    moving_cluster.empty(functions=True)
    backend = await open_backend(moving_cluster.url, clock=clock, partitions=PartitionCounts(flow=1))
    yield World(backend, clock)
    await backend.close()


async def test_reads_see_the_same_in_every_state_of_a_move(world: World, moving_cluster: Cluster) -> None:
    """Whichever keys have moved, pages of frames, attempts, listings and summaries are what they were before."""
    for kind in ("a", "b", "c"):
        lease = await world.leased(kind=kind, lane=kind, policy=retrying(3, 0))
        await world.stream.append(lease, frames=(frame(1), frame(2, mode=LOSSY, ttl_ms=60_000)))
        await world.execution.fail(lease)
        lease = await world.claim_one(lanes=(kind,))
        await world.stream.append(lease, frames=(frame(1, b'{"a":1}', mode=SUMMARY), frame(2), frame(3)))
    before = await world.observe()
    slot = Partition(0).slot
    source = moving_cluster.owner(slot)
    target = next(node for node in moving_cluster.primaries() if node is not source)
    moving_cluster.begin_move(slot, target)
    moved = 0
    assert await world.observe() == before
    while moving_cluster.move_keys(slot, source, target, count=1):
        moved += 1
        assert await world.observe() == before, f"after {moved} keys"
    assert moved > 10
    moving_cluster.end_move(slot, source, target)
    assert await world.observe() == before
    assert not (await world.backend.maintenance.fsck()).findings
