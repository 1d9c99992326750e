"""Transactional enqueue: a task is submitted exactly if the application's own transaction commits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, Final

import asyncpg
import psycopg
import pytest
import sqlalchemy

import flowfabric
from flowfabric import App, Client, ExecutionPolicy, Misuse, RetryPolicy
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.client.errors import SubmitManyFailed
from flowfabric.contract.errors import (
    IdempotencyConflict,
    InvalidInput,
    InvalidTagKey,
    LaneNotAccepting,
)
from flowfabric.contract.execution import (
    ExecutionDescribe,
    ExecutionList,
    ExecutionReadContext,
    ExecutionReadInfo,
)
from flowfabric.contract.ids import ExecutionId, Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.policies import KindDefaults
from flowfabric.contract.states import LaneState
from flowfabric.contract.worker import WorkerRegister
from tests.backends import working
from tests.backends.postgres import work
from tests.backends.postgres.applications import (
    WAYS,
    dialect,
    with_asyncpg,
    with_psycopg,
    with_sqlalchemy_session,
)
from tests.postgres.session import own_database

TABLE: Final = "CREATE TABLE purchase (id integer PRIMARY KEY)"
app: Final = App("shop")


@app.task(lane="parcels", retries=2, priority=7)
async def ship(purchase: int) -> int:
    """Ship a purchase."""
    return purchase


Way = Callable[[str], Any]
every_way: Final = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.removeprefix("with_"))


@pytest.fixture
async def shop(place: str) -> AsyncIterator[PostgresBackend]:
    """A store in the database of an application that has a table of its own."""
    connection = await asyncpg.connect(place)
    await connection.execute(f"DROP TABLE IF EXISTS purchase; {TABLE}")
    try:
        async with work.opened(place) as (backend,):
            yield backend
    finally:
        await connection.execute("DROP TABLE purchase")
        await connection.close()


async def purchases(url: str) -> list[int]:
    """Read what the application has stored."""
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch("SELECT id FROM purchase ORDER BY id")]
    finally:
        await connection.close()


async def listed(backend: PostgresBackend) -> list[ExecutionId]:
    """List every execution, oldest first."""
    page = await backend.execution.list(ExecutionList())
    return [info.execution_id for info in page.executions][::-1]


@every_way
async def test_a_commit_submits(shop: PostgresBackend, place: str, way: Way) -> None:
    """Before the commit nobody sees the execution; after it the change and the execution are there, both."""
    async with way(place) as application:
        await application.buy(1)
        enqueued = await application.enqueue(ship, purchase=1)
        assert not enqueued.duplicate
        assert await listed(shop) == []
        await application.commit()
    assert await listed(shop) == [enqueued.id]
    assert await purchases(place) == [1]
    (lease,) = await working.claim(shop, lanes=(Lane("parcels"),))
    assert (lease.execution_id, lease.kind, lease.priority) == (enqueued.id, "ship", 7)


@every_way
async def test_a_rollback_submits_nothing(shop: PostgresBackend, place: str, way: Way) -> None:
    """A transaction that is rolled back leaves neither change nor execution, and its idempotency key is free."""
    async with way(place) as application:
        await application.buy(1)
        await application.enqueue(ship, purchase=1, idempotency_key="one")
        await application.rollback()
    assert await listed(shop) == []
    assert await purchases(place) == []
    async with way(place) as application:
        enqueued = await application.enqueue(ship, purchase=2, idempotency_key="one")
        await application.commit()
    assert not enqueued.duplicate
    assert await listed(shop) == [enqueued.id]


@every_way
async def test_a_refusal_leaves_the_transaction_as_it_was(
    shop: PostgresBackend, place: str, way: Way
) -> None:
    """A refusal is the typed error that a submit would get, and the application may go on and commit."""
    await shop.lane.set_state(LaneSetState(lane=Lane("closed"), state=LaneState.DISABLED))
    async with way(place) as application:
        await application.buy(1)
        with pytest.raises(LaneNotAccepting) as refused:
            await application.enqueue(ship, purchase=1, lane="closed")
        assert refused.value.details == {"lane": "closed", "state": "disabled"}
        with pytest.raises(InvalidTagKey):
            await application.enqueue(ship, purchase=1, tags={"x": "y"})
        enqueued = await application.enqueue(ship, purchase=1)
        await application.commit()
    assert await purchases(place) == [1]
    assert await listed(shop) == [enqueued.id]


@every_way
async def test_several_at_once(shop: PostgresBackend, place: str, way: Way) -> None:
    """Many are enqueued together, in order; what is refused is told apart from the rest."""
    async with way(place) as application:
        enqueued = await application.enqueue_many(ship, [{"purchase": number} for number in range(200)])
        with pytest.raises(SubmitManyFailed) as failed:
            await application.enqueue_many(
                ship, [{"purchase": number} for number in range(3)], keys=["a", "b", "a"], tags={"a.b": "c"}
            )
        await application.commit()
    (conflict,) = failed.value.exceptions
    assert isinstance(conflict, IdempotencyConflict) and conflict.details["index"] == 2
    kept = [run.id for run in failed.value.runs if run is not None]
    assert await listed(shop) == [*(run.id for run in enqueued), *kept][-50:]
    assert (
        await shop.execution.read_context(ExecutionReadContext(execution_id=enqueued[7].id))
    ).input.data == (b'{"purchase":7}')


@every_way
async def test_every_option_arrives(shop: PostgresBackend, place: str, way: Way) -> None:
    """Options are those of a submit: delay and deadline count from the store's time, arguments may be given apart."""
    before_ms = await shop.now_ms()
    async with way(place) as application:
        enqueued = await application.enqueue(
            "resize",
            namespace="tenant",
            lane="gpu",
            priority=3,
            tags={"app.customer": "acme"},
            policy=ExecutionPolicy(retry_policy=RetryPolicy(max_retries=1)),
            delay="1h",
            deadline=timedelta(hours=2),
            traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
            arguments={"lane": "an argument", "payload": "\u00fc" * 3_000},
        )
        await application.commit()
    snapshot = await shop.execution.describe(ExecutionDescribe(execution_id=enqueued.id))
    info = await shop.execution.read_info(ExecutionReadInfo(execution_id=enqueued.id))
    assert (info.namespace, info.lane, info.kind, info.priority) == ("tenant", "gpu", "resize", 3)
    assert info.public_state == "delayed"
    assert snapshot.tags == {"app.customer": "acme"}
    context = await shop.execution.read_context(ExecutionReadContext(execution_id=enqueued.id))
    assert '"an argument"' in context.input.data.decode()
    hour_ms = 3_600_000
    assert snapshot.not_before_ms is not None and snapshot.deadline_at_ms is not None
    assert before_ms + hour_ms <= snapshot.not_before_ms <= await shop.now_ms() + hour_ms
    assert 0 <= snapshot.deadline_at_ms - snapshot.not_before_ms - hour_ms <= 1


async def test_published_defaults_hold(shop: PostgresBackend, place: str) -> None:
    """What a worker has published about a kind fills what is not given, also what it published a moment ago."""
    for lane, priority in (("first", 5), ("second", 6)):
        defaults = KindDefaults(kind=Kind("resize"), lane=Lane(lane), priority=priority)
        await shop.worker.register(
            WorkerRegister(
                worker_id=WorkerId("w"),
                worker_instance=WorkerInstance("w"),
                lanes=(Lane(lane),),
                defaults=(defaults,),
            )
        )
        async with with_asyncpg(place) as application:
            enqueued = await application.enqueue("resize")
            await application.commit()
        info = await shop.execution.read_info(ExecutionReadInfo(execution_id=enqueued.id))
        assert (info.lane, info.priority) == (lane, priority)


async def test_defaults_that_change_in_between_are_asked_for_again(shop: PostgresBackend, place: str) -> None:
    """When a worker publishes other defaults between the two statements, the create is worked out again."""
    register = WorkerRegister(
        worker_id=WorkerId("w"),
        worker_instance=WorkerInstance("w"),
        lanes=(Lane("late"),),
        defaults=(KindDefaults(kind=Kind("resize"), lane=Lane("late")),),
    )

    statements: list[str] = []

    class Watched(asyncpg.Connection):
        """A connection; a worker registers after its first statement."""

        async def fetch(self, statement: str, *given: Any, **options: Any) -> Any:
            found = await super().fetch(statement, *given, **options)
            statements.append(statement)
            if len(statements) == 1:
                await shop.worker.register(register)
            return found

    connection = await asyncpg.connect(place, connection_class=Watched)
    async with connection.transaction():
        enqueued = await flowfabric.enqueue(connection, "resize")
    await connection.close()
    assert len(statements) == 4
    info = await shop.execution.read_info(ExecutionReadInfo(execution_id=enqueued.id))
    assert info.lane == "late"


async def test_the_same_again_is_a_duplicate(shop: PostgresBackend, place: str) -> None:
    """A key or id used before answers with the earlier run, or a conflict, as a submit does."""
    client = Client(shop)
    run = await client.submit(ship, purchase=1, idempotency_key="one")
    async with with_psycopg(place) as application:
        again = await application.enqueue(ship, purchase=1, idempotency_key="one")
        assert (again.id, again.duplicate) == (run.id, True)
        with pytest.raises(IdempotencyConflict):
            await application.enqueue(ship, purchase=2, idempotency_key="one")
        fresh = await application.enqueue(ship, purchase=3, idempotency_key="three")
        twice = await application.enqueue(ship, purchase=3, idempotency_key="three")
        assert (twice.id, twice.duplicate) == (fresh.id, True)
        await application.commit()
    assert (await client.submit(ship, purchase=3, idempotency_key="three")).duplicate


async def test_a_waiting_worker_gets_it_at_the_commit(shop: PostgresBackend, place: str) -> None:
    """A claim that waits is woken by the commit, not before, and not only when it looks again."""
    async with with_asyncpg(place) as application:
        waiting = working.waiting(shop, lanes=(Lane("parcels"),))
        await work.asleep(shop, count=1)
        enqueued = await application.enqueue(ship, purchase=1)
        other = await working.create(shop)
        assert (await working.claim(shop))[0].execution_id == other
        assert not waiting.done()
        await application.commit()
        (lease,) = await working.served(waiting)
    assert lease.execution_id == enqueued.id


async def test_a_long_transaction_keeps_nobody_from_sleeping(shop: PostgresBackend, place: str) -> None:
    """While a transaction with something enqueued stays open, claims begin to wait and are woken as ever."""
    async with with_asyncpg(place) as application:
        await application.enqueue(ship, purchase=1)
        waiting = working.waiting(shop, lanes=(Lane("parcels"), Lane("default")))
        await work.asleep(shop, count=1)
        created = await working.create(shop)
        (lease,) = await working.served(waiting)
        assert lease.execution_id == created
        await application.rollback()


async def test_a_rollback_takes_a_new_route_back(shop: PostgresBackend, place: str) -> None:
    """A route that is new is registered by the transaction, and is gone when that is rolled back."""
    async with with_asyncpg(place) as application:
        await application.enqueue("never", lane="new")
        await application.rollback()
    connection = await asyncpg.connect(place)
    try:
        assert await connection.fetchval("SELECT count(*) FROM ff.route WHERE lane = 'new'") == 0
    finally:
        await connection.close()
    async with with_asyncpg(place) as application:
        enqueued = await application.enqueue("never", lane="new")
        await application.commit()
    (lease,) = await working.claim(shop, lanes=(Lane("new"),))
    assert lease.execution_id == enqueued.id


async def test_codecs_of_the_application_do_no_harm(shop: PostgresBackend, place: str) -> None:
    """An application may have its own codecs for JSON and UUIDs, and its own record class."""
    import json

    connection = await asyncpg.connect(place)
    try:
        for kind in ("json", "jsonb"):
            await connection.set_type_codec(kind, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        await connection.set_type_codec("uuid", encoder=str, decoder=str, schema="pg_catalog")
        await shop.lane.set_state(LaneSetState(lane=Lane("closed"), state=LaneState.DISABLED))
        async with connection.transaction():
            enqueued = await flowfabric.enqueue(connection, ship, purchase=1, tags={"a.b": "c"})
            with pytest.raises(LaneNotAccepting):
                await flowfabric.enqueue(connection, ship, purchase=1, lane="closed")
    finally:
        await connection.close()
    assert await listed(shop) == [enqueued.id]


async def test_without_a_transaction_it_is_misuse(shop: PostgresBackend, place: str) -> None:
    """A connection that would commit by itself is refused, since nothing would be transactional about it."""
    connection = await asyncpg.connect(place)
    with pytest.raises(Misuse, match="no transaction is under way"):
        await flowfabric.enqueue(connection, ship, purchase=1)
    await connection.close()
    with psycopg.connect(place, autocommit=True) as blocking:
        with pytest.raises(Misuse, match="no transaction is under way"):
            flowfabric.enqueue_sync(blocking, ship, purchase=1)
        with blocking.transaction():
            enqueued = flowfabric.enqueue_sync(blocking, ship, purchase=1)
    engine = sqlalchemy.create_engine(dialect(place, "psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as bare, pytest.raises(Misuse, match="no transaction is under way"):
        flowfabric.enqueue_sync(bare, ship, purchase=1)
    engine.dispose()
    assert await listed(shop) == [enqueued.id]


async def test_the_wrong_function_for_a_connection_is_misuse(shop: PostgresBackend, place: str) -> None:
    """A connection that blocks is not awaited, one that is awaited does not block, and others are no connections."""
    with psycopg.connect(place) as blocking, pytest.raises(Misuse, match="enqueue_sync"):
        await flowfabric.enqueue(blocking, ship, purchase=1)
    connection = await asyncpg.connect(place)
    async with connection.transaction():
        with pytest.raises(Misuse, match="await"):
            flowfabric.enqueue_sync(connection, ship, purchase=1)
        with pytest.raises(Misuse, match="schema"):
            await flowfabric.enqueue(connection, ship, purchase=1, schema='ff"; DROP')
    await connection.close()
    for other in (object(), place, sqlalchemy.create_engine("sqlite://")):
        with pytest.raises(Misuse, match="cannot enqueue"):
            flowfabric.enqueue_sync(other, ship, purchase=1)
    with sqlalchemy.create_engine("sqlite://").connect() as elsewhere, pytest.raises(Misuse, match="sqlite"):
        flowfabric.enqueue_sync(elsewhere, ship, purchase=1)


async def test_a_database_without_a_store_is_misuse() -> None:
    """Enqueueing where there is no store says what is missing."""
    with own_database() as url, psycopg.connect(url) as connection:
        with pytest.raises(Misuse, match="flowfabric migrate") as missing:
            flowfabric.enqueue_sync(connection, ship, purchase=1)
        assert isinstance(missing.value.__cause__, psycopg.Error)


async def test_malformed_input_is_refused_before_anything_is_sent(shop: PostgresBackend, place: str) -> None:
    """What no store would take is refused as a submit refuses it."""
    async with with_asyncpg(place) as application:
        with pytest.raises(InvalidInput):
            await application.enqueue("no spaces", namespace="in here")
        with pytest.raises(InvalidInput):
            await application.enqueue(
                ship, purchase=1, execution_id="{fp:15}:00000000-0000-0000-0000-00000000000"
            )
        with pytest.raises(Misuse):
            await application.enqueue(ship, purchase=1, delay="soon")
        with pytest.raises(Misuse):
            await application.enqueue("x", arguments={"a": object()})
        with pytest.raises(Misuse):
            await application.enqueue_many(ship, [{"purchase": 1}], keys=[])
        await application.commit()
    assert await listed(shop) == []


async def test_a_role_needs_only_the_two_functions(shop: PostgresBackend, place: str) -> None:
    """A role that may use the schema and call two functions enqueues; without them it is told what is missing."""
    admin = await asyncpg.connect(place)
    await admin.execute("DROP ROLE IF EXISTS clerk")
    await admin.execute("CREATE ROLE clerk LOGIN")
    try:
        connection = await asyncpg.connect(place)
        async with connection.transaction():
            await connection.execute("SET LOCAL ROLE clerk")
            with pytest.raises(Misuse, match="GRANT USAGE ON SCHEMA ff"):
                await flowfabric.enqueue(connection, ship, purchase=1)
        await admin.execute("GRANT USAGE ON SCHEMA ff TO clerk")
        await admin.execute("GRANT EXECUTE ON FUNCTION ff.enqueue_outline, ff.enqueue_create TO clerk")
        async with connection.transaction():
            await connection.execute("SET LOCAL ROLE clerk")
            enqueued = await flowfabric.enqueue(connection, ship, purchase=1)
        await connection.close()
        assert await listed(shop) == [enqueued.id]
    finally:
        await admin.execute("DROP OWNED BY clerk")
        await admin.execute("DROP ROLE clerk")
        await admin.close()


async def test_a_savepoint_takes_it_back(shop: PostgresBackend, place: str) -> None:
    """What was enqueued inside a savepoint goes with it."""
    connection = await asyncpg.connect(place)
    async with connection.transaction():
        kept = await flowfabric.enqueue(connection, ship, purchase=1)
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await flowfabric.enqueue(connection, ship, purchase=2)
                raise ZeroDivisionError
    await connection.close()
    assert await listed(shop) == [kept.id]


async def test_it_is_a_run_after_the_commit(shop: PostgresBackend, place: str) -> None:
    """The client finds what was enqueued by its id, and its result as the task's own type."""
    async with with_sqlalchemy_session(place) as application:
        enqueued = await application.enqueue(ship, purchase=4)
        await application.commit()
    (lease,) = await working.claim(shop, lanes=(Lane("parcels"),))
    await working.complete(shop, lease, b"4")
    assert await Client(shop).run(enqueued.id, ship).result(timeout=30) == 4
