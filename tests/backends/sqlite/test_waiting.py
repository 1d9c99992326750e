"""Waiting inside one process: bells are peculiar to SQLite, which has no server that could wake anybody."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from flowfabric.backends import waiting
from flowfabric.backends.sqlite import backend, lease
from flowfabric.backends.sqlite.backend import SqliteBackend
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.execution import ExecutionReadResult
from flowfabric.contract.ids import Kind, Lane
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.policies import ExecutionPolicy, RoutingRequirements
from flowfabric.contract.states import LaneState
from flowfabric.contract.stream import FrameInput, StreamAppend, StreamTail
from tests.backends.sqlite.store import (
    PATIENCE_S,
    claim,
    complete,
    create,
    create_many,
    opened,
    settled,
    until,
)

WAIT_MS = 30_000


@pytest.fixture(autouse=True)
def bells_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by itself within a test: whoever wakes was woken."""
    monkeypatch.setattr(backend, "POLL_S", 600.0)
    monkeypatch.setattr(lease, "LOOK_AGAIN_S", 600.0)
    monkeypatch.setattr(waiting, "LOOK_AGAIN_S", 600.0)


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path):
    """An empty store."""
    path = tmp_path / "store.db" if request.param == "file" else None
    async with opened(path) as opened_store:
        yield opened_store


async def waiting_claims(store: SqliteBackend, count: int) -> None:
    """Wait until so many claims sleep."""
    await until(lambda: store.bells.claims_sleeping == count)


async def test_a_burst_strands_nothing(store: SqliteBackend) -> None:
    """Each of many waiting workers is woken as long as there is work, however it arrives; none is left lying."""
    count = 200
    waiters = [asyncio.create_task(claim(store, f"w{n}", wait_ms=WAIT_MS)) for n in range(count)]
    await waiting_claims(store, count)
    await create_many(store, count // 2)
    await asyncio.gather(*(create(store) for _ in range(count // 2)))
    async with asyncio.timeout(PATIENCE_S):
        claimed = await asyncio.gather(*waiters)
    assert len({each.execution_id for leases in claimed for each in leases}) == count


async def test_work_behind_work_is_announced(store: SqliteBackend) -> None:
    """A worker that leaves work behind wakes the next, so one announcement starts a chain."""
    waiters = [asyncio.create_task(claim(store, f"w{n}", wait_ms=WAIT_MS)) for n in range(20)]
    await waiting_claims(store, 20)
    await store.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.PAUSED))
    await create_many(store, 20)
    await settled()
    assert not any(waiter.done() for waiter in waiters)
    await store.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.ACTIVE))
    async with asyncio.timeout(PATIENCE_S):
        claimed = await asyncio.gather(*waiters)
    assert [len(leases) for leases in claimed] == [1] * 20


async def test_only_who_fits_is_woken(store: SqliteBackend) -> None:
    """Work wakes a worker with its kind, capabilities, lane and namespace, and nobody else."""
    gpu = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=("cuda",)))
    others = [
        asyncio.create_task(claim(store, "kind", kinds=(Kind("other"),), wait_ms=WAIT_MS)),
        asyncio.create_task(claim(store, "plain", wait_ms=WAIT_MS)),
        asyncio.create_task(
            claim(store, "lane", lanes=(Lane("other"),), capabilities=("cuda",), wait_ms=WAIT_MS)
        ),
        asyncio.create_task(
            claim(store, "space", namespace="other", capabilities=("cuda",), wait_ms=WAIT_MS)
        ),
    ]
    fitting = asyncio.create_task(claim(store, "gpu", capabilities=("cuda", "x"), wait_ms=WAIT_MS))
    await waiting_claims(store, 5)
    execution_id = await create(store, policy=gpu)
    (taken,) = await fitting
    assert taken.execution_id == execution_id
    await settled()
    assert store.bells.claims_sleeping == 4
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    assert store.bells.claims_waiting == 0


async def test_a_cancelled_waiter_leaves_the_work(store: SqliteBackend) -> None:
    """A worker that leaves in the moment it is woken leaves the work to the next, who is woken at once."""
    for _ in range(20):
        first = asyncio.create_task(claim(store, "first", wait_ms=WAIT_MS))
        await waiting_claims(store, 1)
        second = asyncio.create_task(claim(store, "second", wait_ms=WAIT_MS))
        await waiting_claims(store, 2)
        creating = asyncio.create_task(create(store))
        while store.bells.claims_sleeping == 2:  # noqa: ASYNC110 (the moment itself is wanted)
            await asyncio.sleep(0)
        first.cancel()
        (outcome,) = await asyncio.gather(first, return_exceptions=True)
        if isinstance(outcome, tuple):
            second.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(creating, second, return_exceptions=True)
        assert isinstance(outcome, tuple) or second.result()[0].execution_id == creating.result()


async def test_a_wait_that_is_over_answers_nothing(store: SqliteBackend) -> None:
    """A claim answers empty when its wait is over and nothing came."""
    started = time.monotonic()
    assert await claim(store, wait_ms=50) == ()
    assert 0.04 < time.monotonic() - started < 5


async def test_closing_ends_every_wait() -> None:
    """Claims, tails and results that wait when the store is closed end with Unavailable."""
    async with opened(None) as store:
        await create(store)
        (taken,) = await claim(store)
        await store.timers.read_due(1)
        waits = [
            asyncio.create_task(claim(store, "w", wait_ms=WAIT_MS)),
            asyncio.create_task(
                store.stream.tail(StreamTail(execution_id=taken.execution_id, after="0:0-1", wait_ms=WAIT_MS))
            ),
            asyncio.create_task(
                store.execution.read_result(
                    ExecutionReadResult(execution_id=taken.execution_id, wait_ms=WAIT_MS)
                )
            ),
            asyncio.create_task(store.timers.wait_change(None, 30.0)),
        ]
        await until(lambda: store.bells.waiting == 4)
        await store.close()
        async with asyncio.timeout(PATIENCE_S):
            ends = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(end) for end in ends] == [Unavailable] * 4


async def test_many_tails_see_a_frame_and_the_end(store: SqliteBackend) -> None:
    """Every tail on an execution wakes for a frame, and again for the end; waiting ones hold no reader.

    Acceptance: waiting-tails-hold-no-reader
    """
    execution_id = await create(store)
    (taken,) = await claim(store)

    async def tail(after: str):
        return await store.stream.tail(StreamTail(execution_id=execution_id, after=after, wait_ms=WAIT_MS))

    async def all_of(after: str):
        tails = [asyncio.create_task(tail(after)) for _ in range(60)]
        await until(lambda: store.bells.waiting == 60)
        return tails

    tails = await all_of("0:0-1")
    await store.stream.append(
        StreamAppend(
            execution_id=execution_id, attempt_index=0, fence=taken.fence, frames=(FrameInput(sequence=1),)
        )
    )
    async with asyncio.timeout(PATIENCE_S):
        pages = await asyncio.gather(*tails)
    assert {len(page.frames) for page in pages} == {1}
    tails = await all_of(pages[0].next_cursor)
    await complete(store, taken)
    async with asyncio.timeout(PATIENCE_S):
        pages = await asyncio.gather(*tails)
    assert all(page.closed_at_ms is not None and not page.frames for page in pages)


async def test_a_result_is_answered_when_it_exists(store: SqliteBackend) -> None:
    """Whoever waits for the end gets it as soon as it is there."""
    execution_id = await create(store)
    (taken,) = await claim(store)
    waits = [
        asyncio.create_task(
            store.execution.read_result(ExecutionReadResult(execution_id=execution_id, wait_ms=WAIT_MS))
        )
        for _ in range(10)
    ]
    await settled()
    await complete(store, taken, b"42")
    async with asyncio.timeout(PATIENCE_S):
        results = await asyncio.gather(*waits)
    assert {result.result.data for result in results} == {b"42"}  # type: ignore[union-attr]
