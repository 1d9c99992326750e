"""The usual way of an execution, which changes stored records as texts, against the general way, which loads them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.backend import ValkeyBackend
from flowfabric.backends.valkey.record import CORE, FIRST, PackedEvent, unpack
from flowfabric.contract.execution import ExecutionChangePriority, ExecutionComplete, ExecutionCreate
from flowfabric.contract.ids import ExecutionId, Kind, WorkerId, WorkerInstance
from flowfabric.contract.lease import LeaseClaimGranted, LeaseGrant, LeaseTaken
from flowfabric.contract.payloads import Payload
from tests.backends.valkey.stored import Keys
from tests.backends.valkey.work import opened, store_of
from tests.backends.working import claim, complete, create, create_many

OWN = ("form", "attempt_id", "lease_id")
"""What differs between two executions that went through the same."""


async def seen(backend: ValkeyBackend, execution_id: ExecutionId) -> tuple[int, dict[str, Any], list[Any]]:
    """Read the form of a record, what it says, and its history."""
    stored = Keys(store_of(backend).client, execution_id)
    packed = await stored.packed()
    events: list[Any] = []
    for number in range(1, packed.history_count + 1):
        event = unpack(await stored("HGET", stored.hash, f"e{number}"), PackedEvent)
        assert event.attempt_id == packed.attempt_id
        events.append(msgspec.structs.replace(event, attempt_id=None, lease_id=None))
    return packed.form, {k: v for k, v in msgspec.structs.asdict(packed).items() if k not in OWN}, events


async def claim_granted(backend: ValkeyBackend, execution_id: ExecutionId) -> Any:
    """Lease an execution under a grant, which goes the general way."""
    worker: dict[str, Any] = {"worker_id": WorkerId("w"), "worker_instance": WorkerInstance("w")}
    await backend.lease.grant(LeaseGrant(execution_id=execution_id, **worker))
    claimed = await backend.lease.claim_granted(LeaseClaimGranted(execution_id=execution_id, **worker))
    assert isinstance(claimed, LeaseTaken)
    return claimed.lease


async def test_the_usual_way_leaves_what_the_general_way_leaves(place: str, clock: ManualClock) -> None:
    """An execution that is claimed and completed as usual has the same record and history as one under a grant."""
    async with opened(place, clock=clock) as (backend,):
        clock.advance(7)
        general = await create(backend, priority=5)
        usual = await create(backend, priority=5)
        assert await seen(backend, usual) == await seen(backend, general)
        clock.advance(1_000)
        granted = await claim_granted(backend, general)
        (lease,) = await claim(backend)
        form, said, events = await seen(backend, usual)
        assert form == FIRST
        assert (CORE, said, events) == await seen(backend, general)
        clock.advance(1_000)
        for each in (granted, lease):
            await complete(backend, each, b'"done"')
        form, said, events = await seen(backend, usual)
        assert form == CORE
        assert (CORE, said, events) == await seen(backend, general)


async def test_an_execution_that_was_changed_before_it_was_leased_is_leased_as_usual(
    place: str, clock: ManualClock
) -> None:
    """What an operation left of a waiting execution is laid out as what creating left."""
    async with opened(place, clock=clock) as (backend,):
        execution_id = await create(backend, priority=5)
        clock.advance(1)
        await backend.execution.change_priority(
            ExecutionChangePriority(execution_id=execution_id, priority=300)
        )
        (lease,) = await claim(backend)
        form, said, _ = await seen(backend, execution_id)
        assert (lease.priority, form, said["priority"]) == (300, FIRST, 300)


async def test_what_a_call_shares_is_told_apart(place: str, clock: ManualClock) -> None:
    """Completions in one call with different results and actors each keep their own."""
    async with opened(place, clock=clock) as (backend,):
        await create_many(backend, [ExecutionCreate(kind=Kind("k")) for _ in range(4)])
        leases = await claim(backend, max_tasks=4)
        assert len(leases) == 4
        results = [Payload(b"0", "a/b"), Payload(b"1", "c/d"), None, Payload(b"3", "a/b")]
        await asyncio.gather(
            *(
                backend.execution.complete(
                    ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=result)
                )
                for lease, result in zip(leases, results, strict=True)
            )
        )
        for lease, result in zip(leases, results, strict=True):
            stored = Keys(store_of(backend).client, lease.execution_id)
            said = (await stored.packed()).result_type, await stored("HGET", stored.hash, "r")
            assert said == ((result.content_type, result.data) if result is not None else (None, None))
