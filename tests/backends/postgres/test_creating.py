"""Creating many executions in few statements: what happens when something does not go as it should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres import shapes
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.backends.postgres.create import CREATE
from flowfabric.backends.postgres.shapes import CHUNK
from flowfabric.contract import ids, limits
from flowfabric.contract.errors import IdempotencyConflict
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ExecutionDescribe,
    ExecutionDuplicate,
    ExecutionList,
    ExecutionReadContext,
    ExecutionReadInfo,
    ExecutionReadState,
    ExecutionsCreated,
    ItemRefused,
)
from flowfabric.contract.ids import ExecutionId, Kind, Lane, Namespace, WorkerId, WorkerInstance
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import (
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    KindDefaults,
    RetryPolicy,
    StreamPolicy,
    TimeoutPolicy,
)
from flowfabric.contract.states import LaneState
from flowfabric.contract.worker import WorkerRegister
from tests.backends.postgres.work import opened, store_of
from tests.backends.working import claim
from tests.postgres.servers import Node

LARGE: Final = Payload(b"x" * 100_000, "text/plain")
MINUTE_MS: Final = 60_000


@pytest.fixture
async def store(place: str) -> AsyncIterator[PostgresBackend]:
    async with opened(place) as (backend,):
        yield backend


def item(**fields: Any) -> ExecutionCreate:
    """Build an item of a batch."""
    return ExecutionCreate(**{"kind": Kind("k"), **fields})


def in_partition(partition: int) -> ExecutionId:
    """Mint an id in a partition."""
    return ExecutionId(f"{{fp:{partition}}}:{ids.mint_uuid()}")


async def create(backend: PostgresBackend, *items: ExecutionCreate) -> ExecutionsCreated:
    """Create a batch."""
    return await backend.execution.create_many(ExecutionCreateMany(executions=items))


def kinds_of(found: ExecutionsCreated) -> list[str]:
    """Say what became of each item."""
    return [
        result.code if isinstance(result, ItemRefused) else type(result).__struct_config__.tag  # type: ignore[misc]
        for result in found.results
    ]


async def register(backend: PostgresBackend, **defaults: Any) -> None:
    """Publish defaults of kind `k`."""
    await backend.worker.register(
        WorkerRegister(
            worker_id=WorkerId("w"),
            worker_instance=WorkerInstance("w"),
            lanes=(Lane("default"),),
            defaults=(KindDefaults(kind=Kind("k"), **defaults),),
        )
    )


async def test_every_item_is_created_in_its_place(store: PostgresBackend) -> None:
    """Items of any size, with keys and without, on known routes and new ones, answer in the order of the batch."""
    items = [
        item(
            kind=Kind(f"k{number % 7}"),
            input=LARGE if number % 3 == 0 else Payload(str(number).encode()),
            idempotency_key=f"key {number}" if number % 5 == 0 else None,
            priority=number % 4,
            tags={"a.number": str(number)} if number % 2 else {},
        )
        for number in range(300)
    ]
    results = (await create(store, *items)).results
    assert len({result.execution_id for result in results if type(result) is ExecutionCreated}) == 300
    for given, result in zip(items, results, strict=True):
        assert type(result) is ExecutionCreated
        assert result.priority == given.priority
        context = await store.execution.read_context(ExecutionReadContext(execution_id=result.execution_id))
        assert (context.kind, context.input, context.tags) == (given.kind, given.input, given.tags)


async def test_one_batch_may_say_the_same_twice(store: PostgresBackend) -> None:
    """Of items with one key or id the first is created; the same again is a duplicate, something else a conflict."""
    own = in_partition(3)
    batch = [
        item(idempotency_key="key"),
        item(idempotency_key="key"),
        item(idempotency_key="key", priority=1),
        item(idempotency_key="key", namespace=Namespace("other")),
        item(execution_id=own),
        item(execution_id=own),
        item(execution_id=own, priority=1),
        item(execution_id=own[:4] + "4" + own[5:]),
    ]
    first = ["created", "duplicate", "idempotency_conflict", "created"]
    second = ["created", "duplicate", "idempotency_conflict", "idempotency_conflict"]
    assert kinds_of(await create(store, *batch)) == first + second
    again = [kind.replace("created", "duplicate") for kind in first + second]
    assert kinds_of(await create(store, *batch)) == again


async def test_an_item_that_is_refused_is_no_first_of_its_key(store: PostgresBackend) -> None:
    """An item that its lane does not take leaves its key to the next one, whatever that is."""
    await store.lane.set_state(LaneSetState(lane=Lane("closed"), state=LaneState.DISABLED))
    batch = [
        item(idempotency_key="key", lane=Lane("closed")),
        item(idempotency_key="key", lane=Lane("open")),
        item(idempotency_key="key", lane=Lane("closed")),
        item(idempotency_key="key", lane=Lane("open")),
    ]
    assert kinds_of(await create(store, *batch)) == [
        "lane_not_accepting",
        "created",
        "idempotency_conflict",
        "duplicate",
    ]


async def test_refused_items_do_not_hold_up_the_others(store: PostgresBackend) -> None:
    """Malformed items, wrong ids and lanes that take nothing are refused one by one."""
    await store.lane.set_state(LaneSetState(lane=Lane("closed"), state=LaneState.DISABLED))
    batch = [
        item(),
        item(lane=Lane("closed")),
        item(kind=Kind("no kind")),
        item(execution_id=in_partition(99)),
        item(),
    ]
    found = await create(store, *batch)
    assert kinds_of(found) == [
        "created",
        "lane_not_accepting",
        "invalid_input",
        "invalid_input",
        "created",
    ]
    refused = found.results[1]
    assert isinstance(refused, ItemRefused) and refused.details == {"lane": "closed", "state": "disabled"}


async def test_others_are_served_while_a_batch_is_created(store: PostgresBackend) -> None:
    """A batch is sent in parts, so that calls made after its beginning are answered before its end."""
    (first,) = (await create(store, item())).results
    assert type(first) is ExecutionCreated
    batch = asyncio.create_task(create(store, *[item(input=LARGE)] * (4 * CHUNK)))
    answered = 0
    while not batch.done():
        await store.execution.read_state(ExecutionReadState(execution_id=first.execution_id))
        answered += not batch.done()
    assert len((await batch).results) == 4 * CHUNK
    assert answered >= 4


async def test_rivals_create_each_thing_once(place: str) -> None:
    """Batches with the same keys and ids, in any order, from several processes: one creates, the others find it."""
    own = [in_partition(number % 16) for number in range(40)]
    items = [item(execution_id=found) for found in own]
    items += [item(idempotency_key=f"key {number}") for number in range(40)]
    async with opened(place, 3) as backends:
        found = await asyncio.gather(
            *(
                create(backend, *(items if turn % 2 else items[::-1]))
                for backend in backends
                for turn in range(4)
            )
        )
        for turn in range(len(found)):
            results = found[turn].results if turn % 2 else found[turn].results[::-1]
            found[turn] = ExecutionsCreated(results=results)
        for column in zip(*(each.results for each in found), strict=True):
            assert sorted(type(result).__name__ for result in column) == [
                "ExecutionCreated",
                *["ExecutionDuplicate"] * 11,
            ]
            assert len({result.execution_id for result in column}) == 1  # type: ignore[union-attr]
        page = await backends[0].execution.list(ExecutionList(limit=limits.PAGE_MAX))
        assert len(page.executions) == 80


async def test_a_key_whose_time_is_over_is_taken_over(still_node: Node, clock: ManualClock) -> None:
    """A key holds for its window, also when its execution is gone; after that the next create gets it."""
    policy = ExecutionPolicy(dedup_window_ms=MINUTE_MS)
    async with opened(still_node.url, clock=clock) as (backend,):
        given = item(idempotency_key="key", policy=policy)
        first = await backend.execution.create(given)
        clock.advance(MINUTE_MS - 1)
        again = await backend.execution.create(given)
        assert isinstance(again, ExecutionDuplicate) and again.execution_id == first.execution_id
        clock.advance(1)
        second = await backend.execution.create(given)
        assert isinstance(second, ExecutionCreated) and second.execution_id != first.execution_id
        with pytest.raises(IdempotencyConflict) as conflict:
            await backend.execution.create(item(idempotency_key="key"))
        assert conflict.value.details == {"execution_id": second.execution_id}


async def test_a_known_id_gives_its_new_key_back(store: PostgresBackend) -> None:
    """A create whose id is known does not take the key that came with it."""
    own = ids.mint_execution_id(
        store_of(store).partitions, namespace=ids.DEFAULT_NAMESPACE, idempotency_key="key"
    )
    known = await store.execution.create(item(execution_id=own))
    assert known.execution_id == own
    batch = await create(store, item(execution_id=own, idempotency_key="key"), item(idempotency_key="key"))
    assert kinds_of(batch) == ["idempotency_conflict", "created"]


async def test_a_create_that_was_carried_out_unheard_is_created(store: PostgresBackend) -> None:
    """A create whose first sending was carried out answers `created` to the second: nobody else knows its id."""
    creator: Any = store.execution._creator
    await store_of(store).calls.now_ms()
    prepared = creator._prepare(item(idempotency_key="key", input=LARGE), None)
    rows = [await store_of(store).calls.hot(CREATE, prepared.values, None) for _ in range(2)]
    assert [row["status"] for row in rows] == ["created", "duplicate"]
    first, again = (
        shapes.answer_of(
            prepared, row["status"], row["execution_id"], row["public_state"], row["created_at_ms"]
        )
        for row in rows
    )
    assert type(first) is ExecutionCreated
    assert again == first


async def test_defaults_of_another_process_hold_at_once(place: str) -> None:
    """What a worker publishes through one process is what creates through another go by, from the next one on."""
    async with opened(place, 2) as (mine, other):
        await mine.execution.create(item())
        for turn in range(20):
            await register(other, lane=Lane(f"lane-{turn}"), priority=turn)
            single = await mine.execution.create(item())
            assert isinstance(single, ExecutionCreated)
            assert (single.lane, single.priority) == (f"lane-{turn}", turn)
            await register(other, lane=Lane(f"lane-{turn}"), priority=turn + 1)
            (several,) = {
                (result.lane, result.priority)
                for result in (await create(mine, *[item()] * 200)).results
                if isinstance(result, ExecutionCreated)
            }
            assert several == (f"lane-{turn}", turn + 1)


@pytest.mark.parametrize(
    "policy",
    [
        None,
        ExecutionPolicy(
            retry_policy=RetryPolicy(
                max_retries=4,
                backoff=FixedBackoff(delay_ms=7, jitter=True),
                retryable_categories=("a", "b,c", 'd"e'),
            ),
            timeout_policy=TimeoutPolicy(attempt_timeout_ms=5, execution_deadline_ms=60_000),
            max_reclaim_count=3,
            reclaim_grace_ms=2,
            max_replay_count=1,
            dedup_window_ms=9,
            retention_ms=11,
            stream_policy=StreamPolicy(retention_maxlen=12, retention_ttl_ms=13),
        ),
        ExecutionPolicy(
            retry_policy=RetryPolicy(
                backoff=ExponentialBackoff(initial_delay_ms=3, max_delay_ms=4, multiplier=1.5)
            )
        ),
    ],
    ids=["none", "everything", "exponential"],
)
async def test_what_functions_need_of_a_policy_is_stored(
    store: PostgresBackend, place: str, policy: ExecutionPolicy | None
) -> None:
    """The columns that functions read say what the definition says."""
    created = await store.execution.create(item(policy=policy, delay_until_ms=limits.TIMESTAMP_MAX_MS))
    snapshot = await store.execution.describe(ExecutionDescribe(execution_id=created.execution_id))
    connection = await asyncpg.connect(place)
    row = await connection.fetchrow("SELECT * FROM ff.execution")
    await connection.close()
    assert row is not None
    found = snapshot.policy
    retry, timeout, stream = found.retry_policy, found.timeout_policy, found.stream_policy
    backoff = retry.backoff if retry is not None else None
    assert row["max_retries"] == (retry.max_retries if retry is not None else None)
    assert row["retryable_categories"] == (
        list(retry.retryable_categories) or None if retry is not None else None
    )
    assert row["backoff_jitter"] == (backoff.jitter if backoff is not None else None)
    if isinstance(backoff, FixedBackoff):
        assert (row["backoff_kind"], row["backoff_delay_ms"]) == ("fixed", backoff.delay_ms)
    if isinstance(backoff, ExponentialBackoff):
        assert (row["backoff_kind"], row["backoff_delay_ms"]) == ("exponential", backoff.initial_delay_ms)
        assert (row["backoff_max_ms"], row["backoff_multiplier"]) == (
            backoff.max_delay_ms,
            backoff.multiplier,
        )
    assert row["attempt_timeout_ms"] == (timeout.attempt_timeout_ms if timeout is not None else None)
    assert row["relative_deadline_ms"] == (timeout.execution_deadline_ms if timeout is not None else None)
    assert row["frames_maxlen"] == (stream.retention_maxlen if stream is not None else None)
    assert row["frames_ttl_ms"] == (stream.retention_ttl_ms if stream is not None else None)
    for name in ("max_reclaim_count", "reclaim_grace_ms", "max_replay_count", "retention_ms"):
        assert row[name] == getattr(found, name)
    assert row["deadline_at_ms"] == snapshot.deadline_at_ms
    assert row["not_before_ms"] == row["eligible_since_ms"] == snapshot.not_before_ms


async def test_a_new_route_is_made_once_by_whoever_comes_together(place: str) -> None:
    """Processes that use a route for the first time at once make it once, and each one's work is claimed."""
    async with opened(place, 3) as backends:
        created = await asyncio.gather(
            *(backend.execution.create(item()) for backend in backends for _ in range(20))
        )
        (connection, leases) = await asyncio.gather(asyncpg.connect(place), claim(backends[0], max_tasks=60))
        assert {lease.execution_id for lease in leases} == {one.execution_id for one in created}
        assert await connection.fetchval("SELECT count(*) FROM ff.route") == 1
        await connection.close()


async def test_work_is_claimed_in_the_order_of_the_contract(store: PostgresBackend) -> None:
    """Priority first, then age, then id, whatever the order of the batch."""
    results = (await create(store, *(item(priority=number % 3) for number in range(30)))).results
    wanted = sorted(
        (-result.priority, result.created_at_ms, result.execution_id[-36:])
        for result in results
        if isinstance(result, ExecutionCreated)
    )
    leases = await claim(store, max_tasks=30)
    assert [lease.execution_id[-36:] for lease in leases] == [uuid for _, _, uuid in wanted]


async def test_delays_and_deadlines_are_timed(still_node: Node, clock: ManualClock) -> None:
    """What waits for an instant is not claimable, and the timers know when it is due."""
    async with opened(still_node.url, clock=clock) as (backend,):
        now_ms = clock.now_ms()
        results = (
            await create(
                backend,
                item(delay_until_ms=now_ms + 10),
                item(delay_until_ms=now_ms),
                item(deadline_at_ms=now_ms + 20),
                item(delay_until_ms=now_ms + 30, deadline_at_ms=now_ms + 30),
            )
        ).results
        states = [
            (
                await backend.execution.read_info(ExecutionReadInfo(execution_id=result.execution_id))
            ).public_state
            for result in results
            if isinstance(result, ExecutionCreated)
        ]
        assert states == ["delayed", "waiting", "waiting", "delayed"]
        connection = await asyncpg.connect(still_node.url)
        due = await connection.fetch(
            "SELECT due_at_ms - $1 AS due, due_kind FROM ff.agenda ORDER BY seq", now_ms
        )
        await connection.close()
        assert [tuple(row) for row in due] == [
            (10, "delayed"),
            (20, "execution_deadline"),
            (30, "execution_deadline"),
        ]
        assert len(await claim(backend, max_tasks=4)) == 2
