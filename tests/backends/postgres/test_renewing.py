"""Renewing leases: many at once, each with its own outcome, and the worker SDK on a store opened directly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from flowfabric import App, Context, backends
from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.contract import ids, limits
from flowfabric.contract.attempt import AttemptList
from flowfabric.contract.errors import (
    ExecutionNotActive,
    ExecutionNotFound,
    LeaseExpired,
    LeaseRevoked,
    StaleLease,
)
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionDescribe,
    ExecutionReadResult,
    ResultCompleted,
)
from flowfabric.contract.ids import ExecutionId, Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import (
    Lease,
    LeaseHistory,
    LeaseListExpired,
    LeaseRenew,
    LeaseRenewed,
    LeaseRevoke,
)
from flowfabric.contract.payloads import Fence
from flowfabric.contract.worker import WorkerList, WorkerRegister
from flowfabric.worker.runtime import Worker
from tests.backends.postgres.work import opened
from tests.backends.working import claim, complete, create
from tests.postgres.servers import Node

LEASE_TTL_S = 0.4
LIVES = 3


@pytest.fixture
async def store(still_node: Node, clock: ManualClock) -> AsyncIterator[PostgresBackend]:
    """A store whose clock stands still, with nothing wrong in it afterwards."""
    async with opened(still_node.url, clock=clock) as (backend,):
        yield backend
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings


def renewing(lease: Lease, ttl_ms: int | None = None, **fence: object) -> LeaseRenew:
    """Build the renewal of a lease, or of one that is not quite like it."""
    known = {name: getattr(lease.fence, name) for name in Fence.__struct_fields__}
    return LeaseRenew(
        execution_id=lease.execution_id,
        fence=Fence(**(known | fence)),  # type: ignore[arg-type]
        lease_ttl_ms=ttl_ms,
    )


async def test_each_of_many_has_its_own_outcome(store: PostgresBackend, clock: ManualClock) -> None:
    """Renewals made at once are carried out or refused one by one, whatever the others are."""
    for _ in range(8):
        await create(store)
    overdue, *leases = [*await claim(store, lease_ttl_ms=1_000), *await claim(store, max_tasks=7)]
    live, longer, revoked, stale, other_lane, completed, rival = leases
    await store.lease.revoke(LeaseRevoke(execution_id=revoked.execution_id))
    await complete(store, completed)
    clock.advance(2_000)
    now_ms = clock.now_ms()
    unknown = renewing(rival)
    unknown = LeaseRenew(
        execution_id=ExecutionId("{fp:1}:00000000-0000-4000-8000-000000000000"), fence=unknown.fence
    )
    elsewhere = LeaseRenew(
        execution_id=ExecutionId(f"{{fp:{(partition_of(rival) + 1) % 16}}}:{rival.execution_id[-36:]}"),
        fence=rival.fence,
    )
    outcomes = await asyncio.gather(
        *(
            store.lease.renew(command)
            for command in (
                renewing(overdue),
                renewing(live),
                renewing(longer, 60_000),
                renewing(revoked),
                renewing(stale, lease_id=ids.mint_uuid()),
                renewing(other_lane, lane="elsewhere"),
                renewing(completed),
                unknown,
                elsewhere,
                renewing(rival),
            )
        ),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        LeaseExpired,
        LeaseRenewed,
        LeaseRenewed,
        LeaseRevoked,
        StaleLease,
        StaleLease,
        ExecutionNotActive,
        ExecutionNotFound,
        ExecutionNotFound,
        LeaseRenewed,
    ]
    assert outcomes[1] == LeaseRenewed(
        lease_expires_at_ms=now_ms + limits.LEASE_TTL_DEFAULT_MS,
        renewal_deadline_ms=now_ms + limits.LEASE_TTL_DEFAULT_MS * 2 // 3,
    )
    assert outcomes[2] == LeaseRenewed(
        lease_expires_at_ms=now_ms + 60_000, renewal_deadline_ms=now_ms + 40_000
    )
    lost = await store.lease.list_expired(LeaseListExpired())
    assert {each.execution_id for each in lost.leases} == {overdue.execution_id, revoked.execution_id}


def partition_of(lease: Lease) -> int:
    """Return the partition of a lease's execution."""
    return int(lease.execution_id[4:].partition("}")[0])


async def test_one_lease_renewed_many_times_at_once(store: PostgresBackend) -> None:
    """Renewals of one lease that are made together are all carried out, one after the other."""
    await create(store)
    (lease,) = await claim(store)
    await asyncio.gather(*(store.lease.renew(renewing(lease)) for _ in range(20)))
    history = await store.lease.history(LeaseHistory(execution_id=lease.execution_id))
    assert [event.name for event in history.events] == ["acquired"] + ["renewed"] * 20
    assert [event.event_id for event in history.events] == list(range(1, 22))


async def test_a_history_is_bounded(store: PostgresBackend) -> None:
    """Of a lease that is renewed for ever the latest events are kept."""
    await create(store)
    (lease,) = await claim(store)
    await asyncio.gather(*(store.lease.renew(renewing(lease)) for _ in range(limits.HISTORY_KEPT + 3)))
    reading = LeaseHistory(execution_id=lease.execution_id, limit=limits.PAGE_MAX)
    history = await store.lease.history(reading)
    assert [event.event_id for event in history.events] == list(range(5, limits.HISTORY_KEPT + 5))


async def test_a_renewal_counts_as_a_heartbeat(store: PostgresBackend, clock: ManualClock) -> None:
    """Renewing keeps a registered worker alive; one that is not registered, or has lapsed, stays as it is."""
    for name in ("alive", "lapsed"):
        await store.worker.register(
            WorkerRegister(
                worker_id=WorkerId(name),
                worker_instance=WorkerInstance(name),
                lanes=(Lane("default"),),
                liveness_ttl_ms=5_000 if name == "alive" else 1_000,
            )
        )
    for _ in range(3):
        await create(store)
    leases = [(await claim(store, name))[0] for name in ("alive", "lapsed", "stranger")]
    clock.advance(4_000)
    await asyncio.gather(*(store.lease.renew(renewing(lease)) for lease in leases))
    clock.advance(4_000)
    listed = await store.worker.list(WorkerList())
    assert {worker.worker_instance: worker.alive for worker in listed.workers} == {
        "alive": True,
        "lapsed": False,
    }


@pytest.mark.parametrize("blocks", [False, True], ids=["waiting", "blocking"])
async def test_leases_outlive_themselves(node: Node, *, blocks: bool) -> None:
    """An attempt that takes longer than its lease lives keeps it, also while it blocks its event loop."""
    app = App("renewing")

    @app.task(lane="l")
    async def slow(ctx: Context) -> str:
        if blocks:
            time.sleep(LIVES * LEASE_TTL_S)  # noqa: ASYNC251  # sleeps: blocking for so long is the point
        else:
            await asyncio.sleep(LIVES * LEASE_TTL_S)  # sleeps: taking so long is the point
        return "done"

    backend = await backends.connect(node.url)
    try:
        async with Worker(backend, app, lease_ttl=LEASE_TTL_S):
            created = await backend.execution.create(ExecutionCreate(kind=Kind("slow"), lane=Lane("l")))
            read = ExecutionReadResult(execution_id=created.execution_id, wait_ms=20_000)
            result = await backend.execution.read_result(read)
        assert isinstance(result, ResultCompleted)
        listed = await backend.attempt.list(AttemptList(execution_id=created.execution_id))
        assert len(listed.attempts) == 1
        described = ExecutionDescribe(execution_id=created.execution_id)
        assert (await backend.execution.describe(described)).reclaim_count == 0
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings
    finally:
        await backend.close()
