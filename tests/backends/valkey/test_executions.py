"""What is peculiar to executions in Valkey: where payloads are, what a call costs, what a caller does not know."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.backend import ValkeyBackend
from flowfabric.backends.valkey.calling import Again
from flowfabric.backends.valkey.record import INLINE_BYTES_MAX
from flowfabric.backends.valkey.routing import UNKNOWN, keys_of
from flowfabric.contract.errors import ExecutionNotTerminal, IdempotencyConflict, StaleLease
from flowfabric.contract.execution import (
    ExecutionCancel,
    ExecutionComplete,
    ExecutionDescribe,
    ExecutionFail,
    ExecutionPromote,
    ExecutionReadContext,
    ExecutionReadResult,
    ExecutionReplay,
    ExecutionSetTags,
    ResultCompleted,
    RetryScheduled,
)
from flowfabric.contract.ids import ExecutionId, Lane
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import (
    Backoff,
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    RetryPolicy,
)
from flowfabric.contract.states import CancelSource, FailureClass
from flowfabric.rules.transitions import retry_delay_ms
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.wire.servers import Cluster, Server
from tests.backends.valkey.work import opened, store_of
from tests.backends.working import claim, complete, create

LARGE = b"x" * (INLINE_BYTES_MAX + 1)
SMALL = b"x" * INLINE_BYTES_MAX


@pytest.fixture
async def pair(place: str, clock: ManualClock) -> AsyncIterator[list[ValkeyBackend]]:
    """One store, opened by two processes."""
    async with opened(place, 2, clock=clock) as backends:
        yield backends


@pytest.fixture
async def store(single: Server, clock: ManualClock) -> AsyncIterator[ValkeyBackend]:
    """A store on one server."""
    async with opened(single.url, clock=clock) as (backend,):
        yield backend


def payload_keys(server: Server) -> list[bytes]:
    """Return the keys that hold payloads, by name."""
    return sorted(server.call("KEYS", "*}:p:*"))


class Monitor:
    """Sees which functions of executions are called on a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self._lines = self._socket.makefile("rb")
        self._socket.sendall(b"MONITOR\r\n")
        assert self._lines.readline() == b"+OK\r\n"

    def calls(self) -> int:
        """Return how many there were since the last look."""
        marker = secrets.token_hex(8)
        self._server.call("ECHO", marker)
        found = 0
        while marker.encode() not in (line := self._lines.readline()):
            found += b'"FCALL"' in line and b"_execution_" in line
        return found

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def monitor(single: Server) -> Iterator[Monitor]:
    monitor = Monitor(single)
    yield monitor
    monitor.close()


# Payloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"1", SMALL, LARGE, bytes(range(256)) * 4_000])
async def test_payloads_of_any_size_come_back_identical(pair: list[ValkeyBackend], data: bytes) -> None:
    """Input and result are the bytes that were given, in the record or beside it, in every process."""
    one, other = pair
    execution_id = await create(one, input=Payload(data, "application/octet-stream"))
    (lease,) = await claim(other)
    assert lease.input == Payload(data, "application/octet-stream")
    context = await other.execution.read_context(ExecutionReadContext(execution_id=execution_id))
    assert context.input == lease.input
    await complete(other, lease, data)
    result = await one.execution.read_result(ExecutionReadResult(execution_id=execution_id))
    assert type(result) is ResultCompleted
    assert result.result == Payload(data)


async def test_a_large_payload_is_kept_once_and_for_good(store: ValkeyBackend, single: Server) -> None:
    """What does not fit the record is one key without an expiry; what does is no key of its own."""
    await create(store, input=Payload(SMALL))
    assert payload_keys(single) == []
    (lease,) = await claim(store)
    await create(store, input=Payload(LARGE))
    await complete(store, lease, LARGE)
    kept = payload_keys(single)
    assert len(kept) == 2
    assert {single.call("PTTL", key) for key in kept} == {-1}
    assert {single.call("GET", key) for key in kept} == {LARGE}


async def test_what_a_refused_call_has_staged_expires(store: ValkeyBackend, single: Server) -> None:
    """A refused create or completion leaves nothing but a staged payload that expires within a minute."""
    await create(store, idempotency_key="key")
    with pytest.raises(IdempotencyConflict):
        await create(store, idempotency_key="key", input=Payload(LARGE))
    (lease,) = await claim(store)
    stale = ExecutionComplete(
        execution_id=lease.execution_id,
        fence=type(lease.fence)(lease_id=lease.lease_id, lease_epoch=99, attempt_id=lease.attempt_id),
        result=Payload(LARGE),
    )
    with pytest.raises(StaleLease):
        await store.execution.complete(stale)
    staged = payload_keys(single)
    assert len(staged) == 2
    assert all(0 < single.call("PTTL", key) <= 60_000 for key in staged)


async def test_a_result_sent_again_is_not_kept_again(store: ValkeyBackend, single: Server) -> None:
    """A repeated completion answers as before, and what it has staged expires."""
    await create(store)
    (lease,) = await claim(store)
    await complete(store, lease, LARGE)
    (kept,) = payload_keys(single)
    await complete(store, lease, LARGE)
    others = [key for key in payload_keys(single) if key != kept]
    assert single.call("PTTL", kept) == -1
    assert [0 < single.call("PTTL", key) <= 60_000 for key in others] == [True]


async def test_a_call_whose_staged_payload_is_gone_writes_nothing(
    store: ValkeyBackend, single: Server
) -> None:
    """A completion that finds no staged result is to be sent again, with the result; the execution stays active."""
    execution_id = await create(store)
    (lease,) = await claim(store)
    calls, partition = store_of(store).calls, store_of(store).partitions.of(execution_id)
    stored, eligible, *indexes = keys_of(partition, execution_id, await rid_of(store, execution_id))
    before = single.call("DEBUG", "DIGEST-VALUE", stored)
    (answer,) = await calls.call(
        partition,
        "execution_complete",
        (eligible, *indexes, stored, partition.payload("gone")),
        commands=[lease.lease_id, lease.lease_epoch, lease.attempt_id, "", "", "", "", "text/plain", 1, ""],
    )
    assert answer[0] == b"payload_missing"
    assert single.call("DEBUG", "DIGEST-VALUE", stored) == before
    await complete(store, lease, LARGE)


@pytest.mark.parametrize("data", [b"1", LARGE])
async def test_a_replay_removes_the_result(store: ValkeyBackend, single: Server, data: bytes) -> None:
    """After a replay nothing holds the former result, and the input is still there."""
    execution_id = await create(store, input=Payload(LARGE))
    for _ in range(2):
        (lease,) = await claim(store)
        assert lease.input is not None
        assert lease.input.data == LARGE
        await complete(store, lease, data)
        await store.execution.replay(ExecutionReplay(execution_id=execution_id))
        assert len(payload_keys(single)) == 1


# What a call costs ------------------------------------------------------------------------------------------------


async def rid_of(backend: ValkeyBackend, execution_id: ExecutionId) -> str:
    """Return the route's id of an execution."""
    partition = store_of(backend).partitions.of(execution_id)
    with pytest.raises(Again) as caught:
        await store_of(backend).calls.call(
            partition, "execution_promote", keys_of(partition, execution_id, UNKNOWN)
        )
    return caught.value.value


async def test_the_holder_of_a_lease_needs_one_call(store: ValkeyBackend, monitor: Monitor) -> None:
    """Completing is one function call, because the lease says where the execution is indexed."""
    await create(store)
    await create(store)
    (first,) = await claim(store)
    (second,) = await claim(store)
    await complete(store, first)
    monitor.calls()
    await complete(store, second, LARGE)
    assert monitor.calls() == 1


async def test_who_knows_only_the_id_needs_two_calls_once(
    single: Server, monitor: Monitor, clock: ManualClock
) -> None:
    """A process that never saw an execution finds its index with one more call, and remembers it."""
    async with opened(single.url, 2, clock=clock) as (one, other):
        execution_id = await create(one, lane=Lane("a"))
        for calls in (2, 1, 1):
            monitor.calls()
            tags = ExecutionSetTags(execution_id=execution_id, tags={"a.b": "c"})
            await other.execution.set_tags(tags)
            assert monitor.calls() == calls


async def test_one_lane_in_two_namespaces(pair: list[ValkeyBackend], clock: ManualClock) -> None:
    """Where two namespaces share lane and kind, every call finds its execution all the same."""
    one, other = pair
    found: list[ExecutionId] = []
    for namespace in ("a", "b", "a", "b"):
        found.append(await create(one, namespace=namespace, lane=Lane("shared")))
        clock.advance(1)
    for at, execution_id in enumerate(found):
        (lease,) = await claim(one, namespace="ab"[at % 2], lanes=(Lane("shared"),))
        assert lease.execution_id == execution_id
        await complete(other, lease)


# Between processes ------------------------------------------------------------------------------------------------


async def test_who_waits_elsewhere_hears_of_the_end(pair: list[ValkeyBackend]) -> None:
    """A read that waits in one process returns when another process ends the execution."""
    one, other = pair
    execution_id = await create(one)
    waiting = asyncio.create_task(
        one.execution.read_result(ExecutionReadResult(execution_id=execution_id, wait_ms=20_000))
    )
    (lease,) = await claim(other)
    await complete(other, lease, LARGE)
    async with asyncio.timeout(10):
        result = await waiting
    assert type(result) is ResultCompleted
    assert result.result == Payload(LARGE)


async def test_a_read_that_meets_replays_sees_a_whole_result(pair: list[ValkeyBackend]) -> None:
    """While an execution is completed and replayed again and again, readers see a result or none, never half."""
    one, other = pair
    execution_id = await create(one)

    async def run() -> None:
        for turn in range(8):
            (lease,) = await claim(one)
            await complete(one, lease, LARGE + str(turn).encode())
            await one.execution.replay(ExecutionReplay(execution_id=execution_id))

    running = asyncio.create_task(run())
    while not running.done():
        snapshot = await other.execution.describe(ExecutionDescribe(execution_id=execution_id))
        if snapshot.completed_at_ms is not None:
            try:
                found = await other.execution.read_result(ExecutionReadResult(execution_id=execution_id))
            except ExecutionNotTerminal:
                continue
            assert type(found) is ResultCompleted
            assert found.result is not None
            assert found.result.data.startswith(LARGE)
    await running


# The same everywhere ----------------------------------------------------------------------------------------------


def backoffs() -> Sequence[Backoff]:
    """Return policies of every shape, some of them extreme."""
    chosen = random.Random("backoffs")
    found: list[Backoff] = [
        FixedBackoff(delay_ms=0),
        FixedBackoff(delay_ms=1, jitter=True),
        FixedBackoff(delay_ms=31_622_400_000, jitter=True),
        ExponentialBackoff(initial_delay_ms=0, jitter=True),
        ExponentialBackoff(initial_delay_ms=1, max_delay_ms=31_622_400_000, multiplier=1_000.0, jitter=True),
        ExponentialBackoff(initial_delay_ms=7, max_delay_ms=3, multiplier=1.0),
    ]
    for _ in range(14):
        found.append(
            ExponentialBackoff(
                initial_delay_ms=chosen.randrange(5_000),
                max_delay_ms=chosen.randrange(1_000_000),
                multiplier=round(chosen.uniform(1.0, 4.0), 3),
                jitter=True,
            )
        )
    return found


async def test_retries_wait_as_long_as_on_every_other_backend(
    store: ValkeyBackend, clock: ManualClock
) -> None:
    """How long each retry waits, jitter included, follows from policy, id and count alone."""
    for backoff in backoffs():
        retry = RetryPolicy(max_retries=6, backoff=backoff)
        execution_id = await create(store, policy=ExecutionPolicy(retry_policy=retry))
        for count in range(6):
            (lease,) = await claim(store)
            answer = await store.execution.fail(
                ExecutionFail(execution_id=execution_id, fence=lease.fence, message="once more")
            )
            assert type(answer) is RetryScheduled
            assert answer.delay_until_ms - clock.now_ms() == retry_delay_ms(backoff, execution_id, count)
            clock.set(answer.delay_until_ms)
            await store.execution.promote(ExecutionPromote(execution_id=execution_id))
        cancel = ExecutionCancel(execution_id=execution_id, source=CancelSource.OPERATOR_OVERRIDE)
        await store.execution.cancel(cancel)


@pytest.mark.parametrize(
    ("listed", "category", "retried"),
    [
        ((), "", False),
        (("",), "", True),
        (("a", "b"), "", False),
        (("a", "b"), "b", True),
        (("ab",), "a", False),
        (("a\u00fc", "%a+"), "%a+", True),
    ],
)
async def test_categories_are_compared_as_they_are(
    store: ValkeyBackend, listed: tuple[str, ...], category: str, retried: bool
) -> None:
    """A failure is retried for its category exactly when that text is listed."""
    retry = RetryPolicy(max_retries=1, backoff=FixedBackoff(delay_ms=5), retryable_categories=listed)
    execution_id = await create(store, policy=ExecutionPolicy(retry_policy=retry))
    (lease,) = await claim(store)
    answer = await store.execution.fail(
        ExecutionFail(
            execution_id=execution_id,
            fence=lease.fence,
            failure_class=FailureClass.PERMANENT,
            category=category,
        )
    )
    assert (type(answer) is RetryScheduled) is retried


async def test_the_lineage_keeps_the_latest_replays(store: ValkeyBackend, clock: ManualClock) -> None:
    """Of more replays than are kept the latest remain, each with its instants, attempt and actor."""
    execution_id = await create(store, policy=ExecutionPolicy(max_replay_count=100))
    for turn in range(12):
        cancel = ExecutionCancel(execution_id=execution_id, source=CancelSource.OPERATOR_OVERRIDE)
        if turn % 2:
            await claim(store)
        await store.execution.cancel(cancel)
        clock.advance(1)
        await store.execution.replay(ExecutionReplay(execution_id=execution_id, actor=f"actor {turn}"))
    seen = await store.execution.describe(ExecutionDescribe(execution_id=execution_id))
    assert seen.replay_count == 12
    assert [replay.actor for replay in seen.replays] == [f"actor {turn}" for turn in range(2, 12)]
    assert [replay.last_attempt_index for replay in seen.replays] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert all(replay.replayed_at_ms == replay.completed_at_ms + 1 for replay in seen.replays)


async def test_everything_of_an_execution_is_in_its_partition(cluster: Cluster, clock: ManualClock) -> None:
    """On a cluster every key that names an execution has the tag of the partition in its id."""
    async with opened(cluster.url, clock=clock, partitions=FEW) as (backend,):
        found = [await create(backend, input=Payload(LARGE), idempotency_key=f"key {n}") for n in range(20)]
        for _ in found:
            (lease,) = await claim(backend)
            await complete(backend, lease, LARGE)
    kept = {key.decode().replace("x:", "") for node in cluster.nodes for key in node.call("KEYS", "*}:x:*")}
    assert kept == set(found)
