"""Two stores in two databases of one server: their channels are shared, nothing else is."""

from __future__ import annotations

from flowfabric import backends
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import Kind, Lane, PartitionCounts, WorkerId, WorkerInstance
from flowfabric.contract.lane import LaneList, LaneSetState
from flowfabric.contract.lease import LeaseClaim
from flowfabric.contract.states import LaneState
from tests.valkey.servers import Node

FEW = PartitionCounts(flow=4)
LANE = Lane("shared-name")


def _claim() -> LeaseClaim:
    return LeaseClaim(
        worker_id=WorkerId("w"),
        worker_instance=WorkerInstance("w-1"),
        lanes=(LANE,),
    )


async def test_databases_do_not_hear_each_other(empty_node: Node) -> None:
    """A route or lane state of one database is not taken for one of another."""
    first = await backends.connect(f"valkey://127.0.0.1:{empty_node.port}/0", partitions=FEW)
    second = await backends.connect(f"valkey://127.0.0.1:{empty_node.port}/1", partitions=FEW)
    try:
        create = ExecutionCreate(kind=Kind("k"), lane=LANE)
        await second.execution.create(create)
        await second.lane.set_state(LaneSetState(lane=LANE, state=LaneState.PAUSED))
        assert (await first.lane.list(LaneList())).lanes == ()
        made = await first.execution.create(create)
        third = await backends.connect(f"valkey://127.0.0.1:{empty_node.port}/0")
        try:
            (lease,) = (await third.lease.claim(_claim())).leases
        finally:
            await third.close()
        assert lease.execution_id == made.execution_id
        assert (await second.lease.claim(_claim())).leases == ()
    finally:
        await first.close()
        await second.close()
