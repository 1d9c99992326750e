"""Statements that the server gives up, for deadlocks, serialization and locks, and a server that hangs.

Whatever was rolled back is done again until the caller's deadline; what is not is said to be so, and nothing is done
twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flowfabric import backends
from flowfabric.contract.errors import OutcomeUnknown, Unavailable
from flowfabric.contract.execution import ExecutionCreate, ExecutionReadState
from flowfabric.contract.ids import Kind, Lane
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.states import LaneState, PublicState
from flowfabric.provision.postgres import LOG
from tests.faults.judging import judge
from tests.faults.load import FEW, loading
from tests.faults.scenes import KILLS, SEED, blocking
from tests.postgres import servers
from tests.postgres.servers import Node

CREATE = ExecutionCreate(kind=Kind("k"), lane=Lane("l"))
FAILING = (
    "CREATE SEQUENCE public.failures",
    """CREATE FUNCTION public.fail_now_and_then() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF random() < 0.02 THEN
        -- What a sequence has given out is not undone.
        PERFORM nextval('public.failures');
        RAISE EXCEPTION 'now and then' USING ERRCODE = CASE WHEN random() < 0.5 THEN '40001' ELSE '40P01' END;
    END IF;
    RETURN NEW;
END
$$""",
    "CREATE TRIGGER now_and_then BEFORE INSERT OR UPDATE ON ff.{table} "
    "FOR EACH ROW EXECUTE FUNCTION public.fail_now_and_then()",
)


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Node]:
    """A server that looks for deadlocks at once."""
    with servers.single_node(tmp_path / "server", deadlock_timeout="10ms") as node:
        yield node


@contextlib.contextmanager
def locked(node: Node, statement: str) -> Iterator[None]:
    """Hold the locks of a statement."""
    with psycopg.connect(node.url) as line:
        line.execute(statement.encode())
        yield
        line.rollback()


@pytest.mark.parametrize("table", ["execution", "event"])
async def test_rolled_back_statements_are_done_again(server: Node, table: str) -> None:
    """Serialization failures and deadlocks anywhere in a statement are never seen by callers, and cost no more."""
    async with loading(server.url) as load:
        await load.progress()
        for statement in FAILING:
            server.call(statement.format(table=table))
        while server.one("SELECT last_value FROM public.failures") < KILLS:
            await load.progress(8)
        server.call(f"DROP TRIGGER now_and_then ON ff.{table}")
        await load.progress()
        seen = await load.finish()
        assert not load.unavailable, "a caller saw that something was rolled back"
        await judge(load.backend, seen)


async def test_others_lock_rows_in_another_order(hasty: Node) -> None:
    """An application that locks our rows in an order of its own makes deadlocks, which no caller sees."""
    chance = random.Random(SEED)
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    done = asyncio.Event()

    def meddle() -> None:
        with psycopg.connect(hasty.url) as line:
            while not done.is_set():
                with contextlib.suppress(psycopg.errors.DeadlockDetected):
                    for order in ("DESC", "ASC") if chance.random() < 0.5 else ("ASC", "DESC"):
                        query = f"SELECT FROM ff.execution WHERE vector < 10 ORDER BY id {order} LIMIT 30 FOR UPDATE"
                        line.execute(query.encode())
                    line.execute(b"SELECT pg_sleep(0.01)")
                line.rollback()

    async with loading(hasty.url) as load:
        await load.progress()
        meddling = asyncio.create_task(blocking(meddle))
        try:
            await load.progress(8 * KILLS, within_s=60)
            async with asyncio.timeout(60):
                while "deadlock detected" not in (hasty.folder / LOG).read_text("utf-8"):
                    await load.progress(within_s=60)
        finally:
            done.set()
            await meddling
        await load.progress()
        await judge(load.backend, await load.finish())


async def test_a_lock_that_is_not_let_go(server: Node) -> None:
    """A call that waits for what somebody holds is told in time that nothing was executed."""
    backend = await backends.connect(server.url, partitions=FEW)
    try:
        created = await backend.execution.create(CREATE)
        pause = LaneSetState(lane=Lane("l"), state=LaneState.PAUSED)
        with locked(server, "LOCK TABLE ff.lane IN SHARE ROW EXCLUSIVE MODE"):
            with pytest.raises(Unavailable, match="nothing was executed") as caught:
                await backend.lane.set_state(pause)
            assert not isinstance(caught.value, OutcomeUnknown)
            state = await backend.execution.read_state(ExecutionReadState(execution_id=created.execution_id))
            assert state.public_state is PublicState.WAITING
        assert (await backend.lane.set_state(pause)).previous is LaneState.ACTIVE
    finally:
        await backend.close()


async def test_a_server_that_hangs(server: Node) -> None:
    """While the server answers nobody callers wait; leases that ran out meanwhile go to others, and nothing is lost."""
    async with loading(server.url) as load:
        for pause_s in (0.3, 1.5):
            await load.progress()
            await blocking(server.pause)
            await asyncio.sleep(
                pause_s
            )  # sleeps: as long as the server hangs; the second is longer than leases live
            await blocking(server.resume)
        await load.progress()
        await judge(load.backend, await load.finish())


async def test_tables_that_are_locked_for_a_while(server: Node) -> None:
    """What an operator's statement locks for a second holds calls up that long and harms none."""
    async with loading(server.url) as load:
        for table in ("execution", "ready", "event", "definition"):
            await load.progress()
            with locked(server, f"LOCK TABLE ff.{table} IN ACCESS EXCLUSIVE MODE"):
                await asyncio.sleep(0.5)  # sleeps: as long as the lock is held
        await load.progress()
        seen = await load.finish()
        assert not load.unavailable, "a caller was told, though there was time"
        await judge(load.backend, seen)
