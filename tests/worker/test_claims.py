"""The imperative surface: claim, hold and end tasks by hand, under the same guarantees."""

from __future__ import annotations

import pytest

from flowfabric.client.http import HttpStores
from flowfabric.contract.backend import Backend, Stores
from flowfabric.contract.errors import (
    ExecutionNotLeaseable,
    LeaseRevoked,
    Misuse,
    OutcomeUnknown,
    StaleLease,
    Unavailable,
    WorkerAtCapacity,
)
from flowfabric.contract.execution import (
    ExecutionFailed,
    ResultCancelled,
    ResultCompleted,
    RetryScheduled,
)
from flowfabric.contract.lease import LeaseGrant, LeaseGranted, LeaseRevoke
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy, FixedBackoff, RetryPolicy
from flowfabric.contract.states import FrameMode, GrantPurpose, PublicState
from flowfabric.contract.worker import WorkerList
from flowfabric.server.run import running
from flowfabric.worker import WorkerClient
from tests.client.cutting import Cut, cutting
from tests.worker.rig import Rig, opened, until


def client(stores: Stores, **options: object) -> WorkerClient:
    return WorkerClient(stores, worker_id="w", **options)  # pyright: ignore[reportArgumentType]


async def test_a_task_is_claimed_and_completed(backend: Backend, rig: Rig) -> None:
    """claim_next gives the task with everything about it; complete ends it and frees the place."""
    execution_id = await rig.submit("any.kind", raw=b'{"a":1}', tags={"app.x": "y"})
    async with client(backend, instance="w-1") as worker:
        task = await worker.claim_next()
        assert task is not None
        assert (task.execution_id, task.execution_kind, task.lane) == (execution_id, "any.kind", "default")
        assert (task.input_payload, task.tags) == (Payload(b'{"a":1}'), {"app.x": "y"})
        assert (task.attempt_index, task.lease_epoch, task.is_lease_healthy) == (0, 1, True)
        assert task.attempt_id == task.lease.attempt_id
        assert task.lease_id == task.lease.lease_id
        assert task.consecutive_renewal_failures == 0
        assert worker.held == 1
        await task.progress(50, "half")
        renewed = await task.renew()
        assert renewed.lease_expires_at_ms >= task.lease.lease_expires_at_ms
        await task.complete(b'"done"')
        assert worker.held == 0
        assert await worker.claim_next() is None
        registered = (await backend.worker.list(WorkerList())).workers
        assert [one.worker_instance for one in registered] == ["w-1"]
    ended = await rig.result(execution_id)
    assert isinstance(ended, ResultCompleted)
    assert ended.result == Payload(b'"done"')


async def test_ends_of_every_kind(backend: Backend, rig: Rig) -> None:
    """fail, cancel, delay, wait_children and release end the task as they say."""
    policy = ExecutionPolicy(retry_policy=RetryPolicy(max_retries=1, backoff=FixedBackoff(delay_ms=0)))
    async with client(backend) as worker:

        async def claim():
            task = await worker.claim_next(wait_ms=5_000)
            assert task is not None
            return task

        failing = await rig.submit("fails", policy=policy)
        assert isinstance(await (await claim()).fail("why", "odd"), RetryScheduled)
        assert isinstance(await (await claim()).fail("why", "odd"), ExecutionFailed)
        assert (await rig.describe(failing)).public_state is PublicState.FAILED

        cancelling = await rig.submit("cancels")
        await (await claim()).cancel("enough")
        assert isinstance(await rig.result(cancelling), ResultCancelled)

        pausing = await rig.submit("pauses")
        first = await claim()
        await first.delay(0)
        second = await claim()
        assert second.lease.resumed
        await second.wait_children()
        third = await claim()
        assert third.attempt_id == first.attempt_id
        await third.release()
        fourth = await claim()
        assert fourth.attempt_index == 1
        await fourth.complete()
        assert isinstance(await rig.result(pausing), ResultCompleted)
        assert worker.held == 0


async def test_streams_are_written_and_read(backend: Backend, rig: Rig) -> None:
    """Frames are appended one by one in any mode, and read or tailed by the same task."""
    await rig.submit("streams")
    async with client(backend) as worker:
        task = await worker.claim_next()
        assert task is not None
        first = await task.append_frame("event", Payload(b"1"))
        await task.append_frame_with_mode("sum", Payload(b'{"a":1}'), mode=FrameMode.SUMMARY)
        last = await task.append_frame_with_mode(
            "live", Payload(b"2"), mode=FrameMode.BEST_EFFORT, ttl_ms=5_000
        )
        assert (first.last_sequence, last.last_sequence, last.frame_count) == (1, 2 + 1, 3)
        page = await task.read_stream()
        assert [frame.frame_type for frame in page.frames] == ["event", "sum", "live"]
        tail = await task.tail_stream(first.last_frame_id)
        assert [frame.frame_type for frame in tail.frames] == ["sum", "live"]
        await task.complete()


async def test_capacity_is_checked_before_anything_is_asked(backend: Backend, rig: Rig) -> None:
    """A full worker refuses before it touches a grant, which stays good for later.

    Acceptance: worker-at-capacity-keeps-the-grant
    """
    await rig.submit("first")
    async with client(backend, instance="w-1", max_concurrent=1) as worker:
        task = await worker.claim_next()
        assert task is not None
        second = await rig.submit("second")
        grant = await backend.lease.grant(
            LeaseGrant(
                worker_id=worker.registration.worker_id,
                worker_instance=worker.registration.worker_instance,
                execution_id=second,
            )
        )
        assert isinstance(grant, LeaseGranted)
        with pytest.raises(WorkerAtCapacity, match="1 of 1"):
            await worker.claim_next()
        with pytest.raises(WorkerAtCapacity):
            await worker.claim_from_grant(grant)
        with pytest.raises(WorkerAtCapacity):
            await worker.claim_via_grant("default")
        await task.complete()
        granted = await worker.claim_from_grant(grant)
        assert granted.execution_id == second
        await granted.complete()
        with pytest.raises(ExecutionNotLeaseable):
            await worker.claim_from_grant(grant)


async def test_a_grant_is_asked_for_and_used(backend: Backend, rig: Rig) -> None:
    """claim_via_grant asks the store for a grant and uses it, for first claims and resumed attempts alike.

    Acceptance: granted-resume-falls-back-to-the-attempt
    """
    async with client(backend) as worker:
        assert await worker.claim_via_grant("default") is None
        execution_id = await rig.submit("any")
        task = await worker.claim_via_grant("default")
        assert task is not None
        await task.delay(0)
        again = await worker.claim_via_grant("default")
        assert again is not None
        assert (again.execution_id, again.lease.resumed) == (execution_id, True)
        await again.complete()


async def test_a_lost_execution_is_taken_over_by_a_reclaim_grant(backend: Backend, rig: Rig) -> None:
    """A reclaim grant turns a revoked execution into a new attempt here."""
    policy = ExecutionPolicy(reclaim_grace_ms=600_000)
    execution_id = await rig.submit("any", policy=policy)
    async with client(backend, instance="a") as first, client(backend, instance="b") as second:
        task = await first.claim_next()
        assert task is not None
        await backend.lease.revoke(LeaseRevoke(execution_id=execution_id))
        grant = await backend.lease.grant(
            LeaseGrant(
                worker_id=second.registration.worker_id,
                worker_instance=second.registration.worker_instance,
                execution_id=execution_id,
                purpose=GrantPurpose.RECLAIM,
            )
        )
        assert isinstance(grant, LeaseGranted)
        taken = await second.claim_from_grant(grant)
        assert (taken.attempt_index, taken.lease.attempt_type) == (1, "reclaim")
        with pytest.raises((StaleLease, LeaseRevoked)):
            await task.complete()
        assert first.held == 0
        assert not task.is_lease_healthy
        await taken.complete()


async def test_losing_the_lease_sets_an_event(backend: Backend, rig: Rig) -> None:
    """A task whose lease is gone says so within a renewal interval."""
    execution_id = await rig.submit("any")
    async with client(backend, lease_ttl="300ms") as worker:
        task = await worker.claim_next()
        assert task is not None
        assert not task.lost.is_set()
        await backend.lease.revoke(LeaseRevoke(execution_id=execution_id))
        await until(task.lost.is_set)
        assert not task.is_lease_healthy
        task.abandon()
        assert worker.held == 0


async def test_leases_are_renewed_in_the_background(backend: Backend, rig: Rig) -> None:
    """A held task stays held for longer than its lease's first life, without a call."""
    await rig.submit("any")
    async with client(backend, lease_ttl="200ms") as worker:
        task = await worker.claim_next()
        assert task is not None
        first_end = task.lease.lease_expires_at_ms

        async def past() -> bool:
            return await backend.now_ms() > first_end + 400

        await until(past)
        await task.complete()


@pytest.mark.parametrize("cut", [Cut.REPLY, Cut.REQUEST])
async def test_an_end_can_be_repeated_after_a_transport_error(cut: Cut) -> None:
    """When the reply of complete is lost for good, the same task object completes again and gets the first answer.

    Acceptance: repeatable-end-after-a-transport-error
    """
    async with opened() as (rig, backend), running(backend, engine=False) as url:
        port = int(url.rpartition(":")[2])
        async with cutting(port) as proxy:
            stores = HttpStores(proxy.url, timeout_s=0.3)
            execution_id = await rig.submit("any")
            async with client(stores, stores_factory=lambda: _another(proxy.url)) as worker:
                task = await worker.claim_next()
                assert task is not None
                proxy.cut("/complete", cut, times=100)
                with pytest.raises((OutcomeUnknown, Unavailable)):
                    await task.complete(b"1")
                assert worker.held == 1
                proxy.heal()
                await task.complete(b"1")
                assert worker.held == 0
            assert isinstance(await rig.result(execution_id), ResultCompleted)
            await stores.close()


async def _another(url: str) -> Stores:
    return HttpStores(url)


async def test_misuse_is_named(backend: Backend) -> None:
    """A client that was not entered, or with options out of range, says what is wrong."""
    with pytest.raises(Misuse, match="max_concurrent"):
        client(backend, max_concurrent=0)
    with pytest.raises(Misuse, match="lane name"):
        client(backend, lanes=["no spaces"])
    with pytest.raises(Misuse, match="enter the client first"):
        await client(backend).claim_next()
