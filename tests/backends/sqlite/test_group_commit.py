"""One transaction for many callers, which only SQLite has: each operation is still all or nothing by itself."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.backends.sqlite.writer import Transaction, Writer
from flowfabric.contract.errors import ExecutionNotFound, FlowFabricError, IdempotencyConflict, Unavailable
from flowfabric.contract.execution import (
    ExecutionComplete,
    ExecutionCreate,
    ExecutionCreated,
    ExecutionCreateMany,
    ExecutionList,
    ExecutionReadState,
    ItemRefused,
)
from flowfabric.contract.ids import ExecutionId, Kind
from flowfabric.contract.lease import LeaseHistory
from tests.backends.sqlite.store import claim, claiming, create, create_many, opened, settled

INSERT = "INSERT INTO kind_default (namespace, kind, defaults) VALUES (?, 'x', '{}')"
COUNT = "SELECT count(*) FROM kind_default"
UNKNOWN = ExecutionId("{fp:7}:00000000-0000-4000-8000-000000000000")


class Gate:
    """Holds the writer's thread, so that what is submitted meanwhile becomes one group."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._open = threading.Event()
        self._reached = threading.Event()

    async def __aenter__(self) -> None:
        def hold(_: Transaction) -> None:
            self._reached.set()
            assert self._open.wait(30)

        self._held = asyncio.create_task(self._writer.write(hold))
        await asyncio.get_running_loop().run_in_executor(None, self._reached.wait)

    async def __aexit__(self, *_: object) -> None:
        await settled()
        self._open.set()
        await self._held


def inserting(name: str, versions: list[int] | None = None):
    """Build an operation that inserts one row; the rows of one transaction share its instant of creation."""

    def run(transaction: Transaction) -> None:
        transaction.execute(INSERT, (name,))
        if versions is not None:
            versions.append(id(transaction.news))

    return run


async def test_callers_share_a_transaction(tmp_path: Path) -> None:
    """What is queued while the writer is busy is committed as one group."""
    async with opened(tmp_path / "store.db") as store:
        writer = store.writer
        seen: list[int] = []
        async with Gate(writer):
            tasks = [asyncio.create_task(writer.write(inserting(str(n), seen))) for n in range(20)]
        await asyncio.gather(*tasks)
        assert len(seen) == 20 and len(set(seen)) == 1


async def test_a_failing_operation_harms_no_other(tmp_path: Path) -> None:
    """An operation that fails after it wrote leaves nothing, and the others of its group are carried out once."""
    async with opened(tmp_path / "store.db") as store:
        writer = store.writer

        def failing(transaction: Transaction) -> None:
            transaction.execute(INSERT, ("lost",))
            raise ZeroDivisionError

        async with Gate(writer):
            tasks = [asyncio.create_task(writer.write(inserting(str(n)))) for n in range(5)]
            bad = asyncio.create_task(writer.write(failing))
            tasks += [asyncio.create_task(writer.write(inserting(str(n)))) for n in range(5, 10)]
        await asyncio.gather(*tasks)
        with pytest.raises(ZeroDivisionError):
            await bad
        assert await store.readers.read(lambda snapshot: snapshot.first(COUNT)) == (10,)


async def test_a_statement_that_fails_is_typed(tmp_path: Path) -> None:
    """What the driver raises reaches the caller as an error of the contract."""
    async with opened(tmp_path / "store.db") as store:
        with pytest.raises(FlowFabricError):
            await store.writer.write(lambda transaction: transaction.execute("SELECT nonsense"))
        with pytest.raises(FlowFabricError):
            await store.readers.read(lambda snapshot: snapshot.execute("SELECT nonsense"))
        await create(store)


async def test_a_refusal_is_an_answer_within_the_group(tmp_path: Path) -> None:
    """Refused and accepted operations of one group get their own answers."""
    async with opened(tmp_path / "store.db") as store:
        command = ExecutionCreate(kind=Kind("k"), idempotency_key="key")
        other = ExecutionCreate(kind=Kind("other"), idempotency_key="key")
        async with Gate(store.writer):
            tasks = [asyncio.create_task(store.execution.create(each)) for each in (command, other, command)]
        first, conflict, repeated = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, ExecutionCreated)
        assert isinstance(conflict, IdempotencyConflict)
        assert getattr(repeated, "execution_id", None) == first.execution_id


async def test_items_of_a_batch_have_their_own_outcomes(tmp_path: Path) -> None:
    """A malformed item is refused by itself, the others are created, in the order given."""
    async with opened(tmp_path / "store.db") as store:
        good, bad = ExecutionCreate(kind=Kind("k")), ExecutionCreate(kind=Kind("no spaces"))
        reply = await store.execution.create_many(ExecutionCreateMany(executions=(good, bad) * 300))
        assert [type(item) for item in reply.results] == [ExecutionCreated, ItemRefused] * 300


async def test_a_caller_that_left_before_is_skipped(tmp_path: Path) -> None:
    """An operation whose caller was cancelled before it started is not carried out."""
    async with opened(tmp_path / "store.db") as store:
        async with Gate(store.writer):
            task = asyncio.create_task(create(store))
            await settled()
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await store.execution.list(ExecutionList())).executions == ()


async def test_nobody_is_leased_to_a_caller_that_left(tmp_path: Path) -> None:
    """A lease whose caller was cancelled while it was being given is handed back at once."""
    async with opened(tmp_path / "store.db") as store:
        execution_id = await create(store)
        started, go_on = threading.Event(), threading.Event()

        def slow(_: Transaction) -> None:
            started.set()
            assert go_on.wait(30)

        claiming_task: asyncio.Task[object] | None = None
        async with Gate(store.writer):
            claiming_task = asyncio.create_task(store.lease.claim(claiming()))
            await settled()
            last = asyncio.create_task(store.writer.write(slow))
        await asyncio.get_running_loop().run_in_executor(None, started.wait)
        claiming_task.cancel()
        await asyncio.gather(claiming_task, return_exceptions=True)
        go_on.set()
        await last
        (lease,) = await claim(store, "second")
        assert lease.execution_id == execution_id
        history = await store.lease.history(LeaseHistory(execution_id=execution_id))
        assert [event.name.value for event in history.events] == ["acquired", "released", "reclaimed"]
        assert history.events[1].reason == "caller_gone"


async def test_closing_finishes_what_is_queued(tmp_path: Path) -> None:
    """Operations queued before close are carried out; later ones find the store closed."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        async with Gate(store.writer):
            tasks = [asyncio.create_task(create(store)) for _ in range(10)]
            await settled()
            closing = asyncio.create_task(store.close())
        await closing
        created = await asyncio.gather(*tasks)
        with pytest.raises(Unavailable, match="closed"):
            await create(store)
        with pytest.raises(Unavailable, match="closed"):
            await store.execution.read_state(ExecutionReadState(execution_id=created[0]))
    async with opened(path) as store:
        for execution_id in created:
            await store.execution.read_state(ExecutionReadState(execution_id=execution_id))


async def test_several_loops_use_one_store(tmp_path: Path) -> None:
    """A call from another thread's event loop is served there."""
    async with opened(tmp_path / "store.db") as store:
        await create_many(store, 2)

        def elsewhere() -> int:
            return len(asyncio.run(claim(store, "elsewhere", wait_ms=1_000)))

        there, here = await asyncio.gather(
            asyncio.get_running_loop().run_in_executor(None, elsewhere), claim(store, wait_ms=1_000)
        )
        assert there == len(here) == 1


async def test_a_read_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    """A read is stopped after its patience and answered with Unavailable; the next one is served."""
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"

    def forever(snapshot: Snapshot) -> object:
        return snapshot.first(endless)

    async with opened(tmp_path / "store.db") as store:
        with pytest.raises(Unavailable, match="too long"):
            await store.readers.read(forever, patience_s=0.05)
        await store.ping()


async def test_unknown_executions_are_refused_under_load(tmp_path: Path) -> None:
    """Refusals among hundreds of concurrent operations reach exactly their callers."""
    async with opened(tmp_path / "store.db") as store:
        fence = (await _one(store)).fence

        async def call(number: int) -> bool:
            if number % 3:
                await create(store)
                return False
            try:
                await store.execution.complete(ExecutionComplete(execution_id=UNKNOWN, fence=fence))
            except ExecutionNotFound:
                return True
            return False

        refused = await asyncio.gather(*(call(number) for number in range(300)))
        assert refused == [number % 3 == 0 for number in range(300)]


async def _one(store):
    await create(store)
    (lease,) = await claim(store)
    return lease
