"""Claiming over partitions: whose turn it is, claims that are repeated or given up, and hints that mislead."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.backend import ValkeyBackend
from flowfabric.backends.valkey.claim import HINTS_AT_ONCE, REPLY_BYTES_MAX, SLACK_MS
from flowfabric.contract import ids
from flowfabric.contract.errors import InvalidInput, Unavailable
from flowfabric.contract.execution import ExecutionCancel, ExecutionChangePriority, ExecutionCreate
from flowfabric.contract.ids import ExecutionId, Kind, WorkerId, WorkerInstance
from flowfabric.contract.lease import Lease, LeaseGrant, LeaseGranted, NothingToGrant
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import CancelSource
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.wire.servers import Server
from tests.backends.valkey.work import in_partition, opened, store_of
from tests.backends.working import (
    claim,
    claim_id,
    claiming,
    create,
    create_many,
    until,
)


@pytest.fixture
async def store(place: str, clock: ManualClock) -> AsyncIterator[ValkeyBackend]:
    """A store with 16 partitions whose clock stands still."""
    async with opened(place, clock=clock) as (backend,):
        yield backend


@pytest.fixture
async def pair(place: str, clock: ManualClock) -> AsyncIterator[list[ValkeyBackend]]:
    """The same store in two processes, so to speak."""
    async with opened(place, 2, clock=clock) as backends:
        yield backends


async def cancel(store: ValkeyBackend, execution_id: ExecutionId) -> None:
    """Cancel as an operator."""
    await store.execution.cancel(
        ExecutionCancel(execution_id=execution_id, source=CancelSource.OPERATOR_OVERRIDE)
    )


# Order ------------------------------------------------------------------------------------------------------------


def check_order(waiting_work: dict[ExecutionId, tuple[int, int]], leases: tuple[Lease, ...]) -> None:
    """Check leases, in order, against what waited: priority exactly, age within the slack."""
    for lease in leases:
        priority, since_ms = waiting_work.pop(lease.execution_id)
        better = [other for other in waiting_work.values() if other[0] > priority]
        assert not better, f"priority {priority} went before {max(better)[0]}"
        older = [other[1] for other in waiting_work.values() if other[0] == priority]
        assert since_ms <= min(older, default=since_ms) + SLACK_MS


@pytest.mark.parametrize("count", [1, 3, 16, 40])
@pytest.mark.parametrize("priorities", [1, 4, 9_000])
async def test_the_order_over_partitions(
    store: ValkeyBackend, clock: ManualClock, count: int, priorities: int
) -> None:
    """However many are claimed at once: exact between priorities, within a quarter of a second of age inside one."""
    chance = random.Random(count * priorities)
    work: dict[ExecutionId, tuple[int, int]] = {}
    for _ in range(160):
        priority = chance.randrange(priorities)
        execution_id = await create(
            store,
            priority=priority,
            execution_id=in_partition(chance.choice((0, 1, 2, 2, 2, chance.randrange(FEW.flow)))),
        )
        work[execution_id] = (priority, clock.now_ms())
        clock.advance(chance.choice((0, 1, 40, 400)))
    while work:
        leases = await claim(store, max_tasks=count)
        assert len(leases) == min(count, len(work))
        check_order(work, leases)


async def test_the_best_partition_gives_all_it_has_first(store: ValkeyBackend, clock: ManualClock) -> None:
    """Of a claim for several, all come from one partition when it has the oldest, and none is taken out of turn."""
    old = [await create(store, execution_id=in_partition(1)) for _ in range(5)]
    clock.advance(10_000)
    young = [await create(store, execution_id=in_partition(number)) for number in range(2, 12)]
    first = [lease.execution_id for lease in await claim(store, max_tasks=4)]
    assert sorted(first) == sorted(old)[:4] or set(first) < set(old)
    rest = [lease.execution_id for lease in await claim(store, max_tasks=20)]
    assert set(rest[:1]) < set(old)
    assert set(rest[1:]) == set(young)


async def test_more_than_one_look_at_the_hints(store: ValkeyBackend) -> None:
    """A claim for more than hints are taken at once gets all there is."""
    created = await create_many(
        store,
        [ExecutionCreate(kind=Kind(f"k{number % 5}"), priority=number % 3) for number in range(200)],
    )
    assert 5 * FEW.flow > HINTS_AT_ONCE
    leases = await claim(store, max_tasks=250)
    assert sorted(lease.execution_id for lease in leases) == sorted(created)
    assert [lease.priority for lease in leases] == sorted((lease.priority for lease in leases), reverse=True)


async def test_a_reply_is_bounded(store: ValkeyBackend) -> None:
    """Inputs of one claim are at most eight MiB, and what did not fit is claimed the next time."""
    data = Payload(b"x" * 1_000_000, "application/octet-stream")
    for number in range(12):
        await create(store, input=data, execution_id=in_partition(number % 3))
    first = await claim(store, max_tasks=20)
    assert sum(len(lease.input.data) for lease in first) <= REPLY_BYTES_MAX + 3 * len(data.data)
    rest = await claim(store, max_tasks=20)
    assert len(first) + len(rest) == 12
    assert all(lease.input == data for lease in first + rest)


# Hints that mislead -----------------------------------------------------------------------------------------------


async def test_work_that_is_gone_misleads_nobody(store: ValkeyBackend) -> None:
    """A claim finds what there is although the best hints are of work that was cancelled or ranked down."""
    for number in range(6):
        await cancel(store, await create(store, priority=9, execution_id=in_partition(number)))
    lowered = await create(store, priority=8, execution_id=in_partition(7))
    await store.execution.change_priority(ExecutionChangePriority(execution_id=lowered, priority=1))
    wanted = await create(store, priority=5, execution_id=in_partition(8))
    (first,) = await claim(store)
    (second,) = await claim(store)
    assert [first.execution_id, second.execution_id] == [wanted, lowered]
    assert await claim(store) == ()


async def test_no_work_is_overlooked_while_others_look_at_it(pair: list[ValkeyBackend]) -> None:
    """While a claimer that may be gone holds the hints, another finds the work all the same."""
    one, other = pair
    created = [await create(one, execution_id=in_partition(number)) for number in range(3)]
    taken = await one._hints.take([keys.route_id("default", "default", "k|")], 16)
    assert len(taken.hints) == 3
    leases = await claim(other, max_tasks=10)
    assert sorted(lease.execution_id for lease in leases) == sorted(created)


async def test_a_lane_stopped_unheard_gives_nothing_and_loses_nothing(
    store: ValkeyBackend, place: str
) -> None:
    """What the partitions know of a lane decides, whatever a claimer believes; its work is there when it goes on."""
    await create(store, execution_id=in_partition(3))
    await create(store, execution_id=in_partition(4), lane=ids.Lane("other"))
    calls = store_of(store).calls
    for partition in store_of(store).partitions.all:
        await calls.read(partition, [("HSET", partition.lanes, "default", "paused")])
    lanes = (ids.Lane("default"), ids.Lane("other"))
    assert [lease.lane for lease in await claim(store, lanes=lanes, max_tasks=5)] == ["other"]
    for partition in store_of(store).partitions.all:
        await calls.read(partition, [("HDEL", partition.lanes, "default")])
    assert [lease.lane for lease in await claim(store, lanes=lanes, max_tasks=5)] == ["default"]


async def test_a_route_not_heard_of_is_found(pair: list[ValkeyBackend]) -> None:
    """A claim in a process that hears nothing of new routes finds their work by itself."""
    one, other = pair
    assert await claim(other) == ()
    deaf = store_of(other)
    deaf.client.subscriber().remove(keys.CATALOG_CHANNEL.encode(), deaf._catalog_changed)
    for kind in ("k", "l"):
        execution_id = await create(one, kind=Kind(kind))
        assert [lease.execution_id for lease in await claim(other)] == [execution_id]


async def test_what_was_leased_is_the_answer_whatever_fails_then(
    store: ValkeyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that has leases answers with them when looking for more fails; one that has none says that it failed."""
    for number, priority in ((1, 5), (2, 3)):
        await create(store, priority=9, execution_id=in_partition(number))
        for _ in range(12):
            await create(store, priority=priority, execution_id=in_partition(number))
    calls = store_of(store).calls
    read = calls.read

    async def failing(partition: Any, commands: Any, **more: Any) -> Any:
        if commands[0][0] == "ZRANGE":
            raise Unavailable("the heads cannot be compared")
        return await read(partition, commands, **more)

    monkeypatch.setattr(calls, "read", failing)
    assert [lease.priority for lease in await claim(store, max_tasks=12)] == [9, 9]
    with pytest.raises(Unavailable, match="compared"):
        await claim(store, max_tasks=12)
    monkeypatch.undo()
    assert len(await claim(store, max_tasks=40)) == 24


@pytest.mark.parametrize(
    "fields", [{"ids": []}, {"ids": ["x", "y"]}, {"most": 257}, {"mode": "look"}], ids=str
)
async def test_a_malformed_call_leases_nothing(store: ValkeyBackend, fields: dict[str, Any]) -> None:
    """Without an id for each lease and attempt nothing is leased."""
    execution_id = await create(store, execution_id=in_partition(3))
    partition = store_of(store).partitions.all[3]
    index = partition.eligible(keys.route_id("default", "default", "k|"))
    given: dict[str, Any] = {"mode": "claim", "lane": "default", "namespace": "default", "worker_id": "w"}
    given |= {"worker_instance": "w", "ttl_ms": 1_000, "claim_id": None, "most": 1, "bound": None}
    given |= {"room": 1_000, "ids": [ids.mint_uuid(), ids.mint_uuid()], **fields}
    names = (index, partition.due, partition.own, partition.lost, partition.lanes)
    with pytest.raises(InvalidInput):
        await store_of(store).calls.call(partition, "lease_claim", names, **given)
    assert [lease.execution_id for lease in await claim(store)] == [execution_id]


# Repeated claims --------------------------------------------------------------------------------------------------


async def test_a_claim_id_with_nothing_to_recover_claims_nothing_else(store: ValkeyBackend) -> None:
    """A worker that asks what an unanswered claim was granted gets nothing when that never arrived."""
    await create(store)
    assert await claim(store, kinds=(Kind("none"),), claim_id=claim_id()) == ()


async def test_a_large_input_comes_again(store: ValkeyBackend) -> None:
    """A repeated claim gets inputs of any size again."""
    data = Payload(b"y" * 300_000)
    await create(store, input=data)
    known = claim_id()
    (first,) = await claim(store, claim_id=known)
    (again,) = await claim(store, claim_id=known)
    assert first == again and again.input == data


# Grants -----------------------------------------------------------------------------------------------------------


def granting(worker: str = "w", **fields: object) -> LeaseGrant:
    """Build a grant of the best of lane `default`."""
    return LeaseGrant(
        worker_id=WorkerId(worker),
        worker_instance=WorkerInstance(worker),
        lanes=(ids.Lane("default"),),
        **fields,  # type: ignore[arg-type]
    )


async def test_grants_follow_the_hints(store: ValkeyBackend) -> None:
    """Grants are given best first over all partitions, each execution once, until there is none."""
    work = deque([await create(store, priority=priority) for priority in range(9, -1, -1)])
    while work:
        granted = await store.lease.grant(granting())
        assert isinstance(granted, LeaseGranted) and granted.execution_id == work.popleft()
    assert await store.lease.grant(granting()) == NothingToGrant()


async def test_a_grant_leaves_the_rest_to_be_found(pair: list[ValkeyBackend]) -> None:
    """After a grant the other work of its partition is found by claims, in any process."""
    one, other = pair
    created = [await create(one, execution_id=in_partition(2)) for _ in range(3)]
    granted = await one.lease.grant(granting())
    assert isinstance(granted, LeaseGranted)
    leases = await claim(other, max_tasks=5)
    assert sorted([granted.execution_id, *(lease.execution_id for lease in leases)]) == sorted(created)


async def test_what_claims_need(single: Server, clock: ManualClock) -> None:
    """A claim of one is two calls, one more for its timer and one to give the hint back when no other look follows."""
    async with opened(single.url, clock=clock) as (store,):
        for _ in range(4):
            await create(store)
        await claim(store)

        def calls() -> int:
            found = single.call("INFO", "commandstats").decode()
            return int(found.partition("cmdstat_fcall:calls=")[2].partition(",")[0])

        await until(lambda: not store._hints._given)
        await store._hints.settled()
        before = calls()
        command = replace(claiming(), claim_id=claim_id())
        await store.lease.claim(command)
        await store._hints.settled()
        assert calls() - before <= 4
