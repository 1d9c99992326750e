"""What workers do through a server shows in its metrics."""

from __future__ import annotations

from flowfabric.client.http import HttpStores
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionFail
from flowfabric.contract.ids import Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import LeaseClaim, LeaseClaimGranted, LeaseGrant, LeaseRenew, LeaseTaken
from flowfabric.server.run import running
from flowfabric.telemetry import metrics

LANE = Lane("counted")


def _value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


async def test_renewals_and_attempts_are_counted() -> None:
    """A renewal, a completion, a final failure and the use of a grant through a server raise its counters."""
    claim = LeaseClaim(worker_id=WorkerId("w"), worker_instance=WorkerInstance("w-1"), lanes=(LANE,))
    before = _value("ff_lease_renewal_total", outcome="ok")
    async with running("sqlite:///:memory:") as url:
        stores = HttpStores(url)
        for _ in range(3):
            await stores.execution.create(ExecutionCreate(kind=Kind("k"), lane=LANE))
        lease = (await stores.lease.claim(claim)).leases[0]
        await stores.lease.renew(LeaseRenew(execution_id=lease.execution_id, fence=lease.fence))
        await stores.execution.complete(ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence))
        lease = (await stores.lease.claim(claim)).leases[0]
        await stores.execution.fail(ExecutionFail(execution_id=lease.execution_id, fence=lease.fence))
        granted = await stores.lease.grant(
            LeaseGrant(worker_id=WorkerId("w"), worker_instance=WorkerInstance("w-1"), lanes=(LANE,))
        )
        taken = await stores.lease.claim_granted(
            LeaseClaimGranted(
                execution_id=granted.execution_id,  # pyright: ignore[reportAttributeAccessIssue]
                worker_id=WorkerId("w"),
                worker_instance=WorkerInstance("w-1"),
            )
        )
        assert isinstance(taken, LeaseTaken)
        await stores.close()
    assert _value("ff_lease_renewal_total", outcome="ok") == before + 1
    assert _value("ff_attempt_outcome_total", lane="counted", outcome="ok") == 1
    assert _value("ff_attempt_outcome_total", lane="counted", outcome="error") == 1
    assert _value("ff_claim_from_grant_duration_seconds_count", lane="counted") == 1
