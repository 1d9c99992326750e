"""A replica takes over in agreement with its primary: nothing is lost, and nobody notices more than a pause."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowfabric.backends.valkey.keys import GLOBAL_SLOT, Partition
from tests.faults.judging import judge
from tests.faults.load import loading
from tests.faults.scenes import blocking
from tests.valkey import servers
from tests.valkey.servers import Cluster


@pytest.fixture(scope="module")
def turning_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with servers.cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def cluster(turning_cluster: Cluster) -> Cluster:
    """Three primaries with one replica each, without data; who is a primary is the servers' to say."""
    turning_cluster.empty(functions=True)
    return turning_cluster


async def test_a_manual_failover_loses_nothing(cluster: Cluster) -> None:
    """When primaries hand over to their replicas under load, everything acknowledged is there, and ends once."""
    async with loading(cluster.url) as load:
        for slot in (GLOBAL_SLOT, Partition(0).slot, GLOBAL_SLOT):
            await load.progress()
            await blocking(lambda slot=slot: cluster.fail_over(cluster.owner(slot)))
        await load.progress()
        await judge(load.backend, await load.finish())


async def test_all_primaries_hand_over_in_a_row(cluster: Cluster) -> None:
    """Every primary may be replaced within a moment, twice, as an upgrade of the servers does."""
    async with loading(cluster.url) as load:
        for _ in range(2):
            await load.progress()
            for primary in cluster.primaries():
                await blocking(lambda primary=primary: cluster.fail_over(primary))
        await load.progress()
        await judge(load.backend, await load.finish())
