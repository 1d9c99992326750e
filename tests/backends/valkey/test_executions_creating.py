"""Creating many executions in few pipelines: what happens when something does not go as it should."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import calling
from flowfabric.backends.valkey.backend import ValkeyBackend
from flowfabric.backends.valkey.create import CHUNK, CHUNKS_AT_ONCE
from flowfabric.backends.valkey.keys import Partition
from flowfabric.backends.valkey.record import INLINE_BYTES_MAX
from flowfabric.contract.errors import InvalidInput, OutcomeUnknown, Unavailable
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ExecutionDuplicate,
    ExecutionReadContext,
    ExecutionReadState,
    ExecutionsCreated,
    ItemRefused,
)
from flowfabric.contract.ids import Kind, Lane, PartitionCounts, parse_execution_id
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy, FixedBackoff, RetryPolicy, TimeoutPolicy
from flowfabric.contract.states import LaneState
from tests.backends.valkey.wire.servers import Cluster, Line, Server
from tests.backends.valkey.work import asleep, in_partition, opened, store_of
from tests.backends.working import claim, gone, served, waiting

LARGE = Payload(b"x" * (INLINE_BYTES_MAX + 1), "text/plain")


@pytest.fixture
async def store(place: str, clock: ManualClock) -> AsyncIterator[ValkeyBackend]:
    async with opened(place, clock=clock) as (backend,):
        yield backend


def item(**fields: object) -> ExecutionCreate:
    """Build an item of a batch."""
    return ExecutionCreate(**{"kind": Kind("k"), **fields})  # type: ignore[arg-type]


async def create(backend: ValkeyBackend, *items: ExecutionCreate) -> ExecutionsCreated:
    """Create a batch."""
    return await backend.execution.create_many(ExecutionCreateMany(executions=items))


async def test_every_item_is_created_in_its_place(store: ValkeyBackend) -> None:
    """Items of any size, with keys and without, on known routes and new ones, answer in the order of the batch."""
    items = [
        item(
            kind=Kind(f"k{number % 7}"),
            input=LARGE if number % 3 == 0 else Payload(str(number).encode()),
            idempotency_key=f"key {number}" if number % 5 == 0 else None,
            priority=number % 4,
        )
        for number in range(300)
    ]
    results = (await create(store, *items)).results
    assert len({result.execution_id for result in results if type(result) is ExecutionCreated}) == 300
    for given, result in zip(items, results, strict=True):
        assert type(result) is ExecutionCreated
        assert result.priority == given.priority
        context = await store.execution.read_context(ExecutionReadContext(execution_id=result.execution_id))
        assert (context.kind, context.input) == (given.kind, given.input)


async def test_one_batch_may_say_the_same_twice(store: ValkeyBackend) -> None:
    """Of items with one key the first is created; the same again is a duplicate, something else a conflict."""
    batch = [
        item(idempotency_key="key"),
        item(idempotency_key="key"),
        item(idempotency_key="key", priority=1),
    ]
    for states in (["created", "duplicate", "refused"], ["duplicate", "duplicate", "refused"]):
        results = (await create(store, *batch)).results
        assert [type(result).__struct_config__.tag for result in results] == states


async def test_refused_items_do_not_hold_up_the_others(store: ValkeyBackend) -> None:
    """Malformed items, wrong ids and lanes that take nothing are refused one by one."""
    await store.lane.set_state(LaneSetState(lane=Lane("closed"), state=LaneState.DISABLED))
    batch = [
        item(),
        item(lane=Lane("closed")),
        item(kind=Kind("no kind")),
        item(execution_id=in_partition(99)),
    ]
    results = (await create(store, *batch, item())).results
    assert [type(result) for result in results] == [
        ExecutionCreated,
        *[ItemRefused] * 3,
        ExecutionCreated,
    ]
    assert [result.code for result in results if type(result) is ItemRefused] == [
        "lane_not_accepting",
        "invalid_input",
        "invalid_input",
    ]


async def test_items_that_share_a_call(store: ValkeyBackend) -> None:
    """Items of one partition are created in one call, whatever they are; those that say the same follow each other."""
    same = in_partition(3)
    future = await store.now_ms() + 60_000
    batch = [
        item(execution_id=in_partition(3)),
        item(execution_id=same, tags={"a.b": "c"}),
        item(execution_id=in_partition(3), input=LARGE, priority=3),
        item(execution_id=same, tags={"a.b": "c"}),
        item(execution_id=same, priority=1),
        item(execution_id=in_partition(3), delay_until_ms=future),
        item(
            execution_id=in_partition(3),
            policy=ExecutionPolicy(retry_policy=RetryPolicy(max_retries=1, backoff=FixedBackoff(delay_ms=1))),
        ),
        item(
            execution_id=in_partition(3),
            policy=ExecutionPolicy(timeout_policy=TimeoutPolicy(execution_deadline_ms=1_000)),
        ),
    ]
    results = (await create(store, *batch)).results
    tags = [type(result).__struct_config__.tag for result in results]
    assert tags == ["created", "created", "created", "duplicate", "refused", "created", "created", "created"]
    again = (await create(store, *batch)).results
    tags = [type(result).__struct_config__.tag for result in again]
    assert tags == ["duplicate"] * 4 + ["refused"] + ["duplicate"] * 3
    leases = await claim(store, max_tasks=20)
    given = {command.execution_id: command for command in batch}
    assert leases[0].execution_id == batch[2].execution_id and leases[0].input == LARGE
    assert len(leases) == 5
    for lease in leases:
        command = given[lease.execution_id]
        assert lease.input == command.input
        if command.policy is not None:
            assert lease.policy.retry_policy == command.policy.retry_policy
            assert lease.policy.timeout_policy == command.policy.timeout_policy
        if lease.execution_id != same:
            assert lease.tags == (command.tags or {})
    report = await store.maintenance.fsck()
    assert not report.findings, report.findings


async def test_large_batches_are_few_calls(single: Server) -> None:
    """Of a large batch some items lie in one partition each time, and cost one call; a small one is spread."""
    async with opened(single.url, partitions=PartitionCounts()) as (backend,):
        await create(backend, item())
        with Line(single.port) as line:

            def calls() -> int:
                match = re.search(r"cmdstat_fcall:calls=(\d+)", str(line("INFO", "commandstats")))
                return int(match[1]) if match else 0

            before = calls()
            await create(backend, *[item()] * 1_000)
            assert 1_000 / 16 <= calls() - before < 300
            before = calls()
            results = (await create(backend, *[item()] * 50)).results
            assert calls() - before > 30
        created = [result.execution_id for result in results if type(result) is ExecutionCreated]
        assert len({parse_execution_id(execution_id)[0] for execution_id in created}) > 20


async def test_a_call_has_a_bound(single: Server, clock: ManualClock) -> None:
    """A call for more executions than a batch has is refused whole, because a function could not end it."""
    async with opened(single.url, clock=clock) as (backend,):
        await create(backend, item())
        creator = backend.execution._creator
        prepared = [creator._prepare(item(execution_id=in_partition(3))) for _ in range(5_000)]
        partition, rid = prepared[0].partition, prepared[0].rid
        names, given = creator._call_of(prepared)
        stored = single.call("DBSIZE")
        with pytest.raises(InvalidInput):
            await store_of(backend).calls.call(partition, "execution_create", names, rid=rid, **given)
        fences = ["", "", "", "", "", "", "", "", 0, ""] * len(prepared)
        names = [partition.eligible(rid), partition.due, partition.own, partition.lost, *names[4:]]
        with pytest.raises(InvalidInput):
            await store_of(backend).calls.call(partition, "execution_complete", names, commands=fences)
        assert single.call("DBSIZE") == stored


async def test_others_are_served_while_a_batch_is_created(single: Server) -> None:
    """A batch is sent in parts, so that a call made after its beginning is answered before its end."""
    async with opened(single.url) as (backend,):
        (first,) = (await create(backend, item())).results
        assert type(first) is ExecutionCreated
        batch = asyncio.create_task(create(backend, *[item(input=LARGE)] * 1_000))
        answered = 0
        while not batch.done():
            await backend.execution.read_state(ExecutionReadState(execution_id=first.execution_id))
            answered += not batch.done()
        assert len((await batch).results) == 1_000
        assert answered >= 1_000 // CHUNK // CHUNKS_AT_ONCE


async def test_functions_that_are_gone_are_loaded_again(store: ValkeyBackend) -> None:
    """A batch that finds the library missing loads it and is created whole, each item once."""
    await create(store, item())
    for name in store_of(store).client.primaries():
        with Line(int(name.rpartition(":")[2])) as line:
            line("FUNCTION", "FLUSH")
    results = (await create(store, *[item(input=LARGE)] * 100)).results
    assert {type(result) for result in results} == {ExecutionCreated}
    taken = 0
    while leases := await claim(store, max_tasks=100):
        taken += len(leases)
    assert taken == 101


async def test_a_create_that_was_carried_out_unheard_is_created(store: ValkeyBackend) -> None:
    """A create whose first sending was carried out answers `created` to the second: nobody else knows its id."""
    creator = store.execution._creator
    prepared = creator._prepare(item(idempotency_key="key", input=LARGE))
    first = await creator._create(prepared)
    again = await creator._create(prepared)
    assert type(first) is ExecutionCreated
    assert again == first
    other = await creator._create(creator._prepare(item(idempotency_key="key", input=LARGE)))
    assert type(other) is ExecutionDuplicate
    assert other.execution_id == first.execution_id
    context = await store.execution.read_context(ExecutionReadContext(execution_id=first.execution_id))
    assert context.input == LARGE


async def test_a_batch_meets_a_partition_on_the_move(cluster: Cluster) -> None:
    """While a partition moves key by key, a batch waits for it; each item is created once and keeps its input."""
    async with opened(cluster.url) as (backend,):
        ids = [in_partition(number % 16) for number in range(160)]
        partition = store_of(backend).partitions.all[3]
        await create(backend, *[item(execution_id=in_partition(3), input=LARGE) for _ in range(5)])
        source = cluster.owner(partition.slot)
        target = next(node for node in cluster.nodes[:3] if node is not source)
        cluster.begin_move(partition.slot, target)
        cluster.move_keys(partition.slot, source, target, count=3)
        batch = asyncio.create_task(
            create(backend, *[item(execution_id=found, input=LARGE) for found in ids])
        )
        await asyncio.sleep(0.2)  # sleeps: until the batch has met the slot; it must wait for it
        assert not batch.done()
        while cluster.move_keys(partition.slot, source, target, count=10):
            pass
        cluster.end_move(partition.slot, source, target)
        results = (await batch).results
        assert {type(result) for result in results} == {ExecutionCreated}
        for found in ids:
            context = await backend.execution.read_context(ExecutionReadContext(execution_id=found))
            assert context.input == LARGE
        for key in target.call("KEYS", f"{partition.tag}p:*"):
            assert target.call("PTTL", key) == -1


async def test_a_batch_that_may_have_been_carried_out(
    store: ValkeyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one part of a batch fails without an answer, no other failure says that nothing happened."""
    failures = [OutcomeUnknown("sent and not answered"), Unavailable("not sent"), Unavailable("not sent")]
    sent = asyncio.Event()

    async def failing(*_: object) -> object:
        failure = failures.pop(0)
        if type(failure) is Unavailable:
            await sent.wait()
        sent.set()
        raise failure

    monkeypatch.setattr(store_of(store).calls, "execute", failing)
    with pytest.raises(OutcomeUnknown, match="repeat"):
        await create(store, *[item(execution_id=in_partition(1)) for _ in range(3 * CHUNK)])


async def test_a_batch_that_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was created before its caller gave up a batch wakes whoever waits for work, as ever."""
    async with opened(cluster.url, 2) as (one, other):
        await create(one, item(kind=Kind("first")))
        await claim(one)
        there, away = (
            next(n for n in range(16) if cluster.owner(store_of(one).partitions.all[n].slot) is node)
            for node in cluster.nodes[:2]
        )
        calls = store_of(one).calls
        execute, answered = calls.execute, asyncio.Event()

        async def hanging(partition: Partition, commands: object) -> object:
            if partition.number == away:
                await asyncio.Event().wait()
            replies = await execute(partition, commands)  # type: ignore[arg-type]
            answered.set()
            return replies

        monkeypatch.setattr(calls, "execute", hanging)
        waits = waiting(other, kinds=(Kind("first"),))
        await asleep(other, count=1)
        batch = asyncio.create_task(
            create(one, *[item(kind=Kind("first"), execution_id=in_partition(n)) for n in (there, away)])
        )
        await answered.wait()
        await asyncio.sleep(0)
        await gone(batch)
        (lease,) = await served(waits)
        assert parse_execution_id(lease.execution_id)[0] == there


async def test_a_server_that_is_gone(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch on a server that is gone is refused as a whole, and says whether something may have been created."""
    with Server() as server:
        async with opened(server.url, clock=clock) as (backend,):
            await create(backend, item())
            server.kill()
            monkeypatch.setattr(calling, "CALL_TIMEOUT_S", 0.5)
            with pytest.raises(Unavailable) as caught:
                await create(backend, *[item()] * 200)
            assert type(caught.value) in (Unavailable, OutcomeUnknown)
            monkeypatch.undo()
            server.start()
            results = (await create(backend, *[item()] * 200)).results
            assert {type(result) for result in results} == {ExecutionCreated}
