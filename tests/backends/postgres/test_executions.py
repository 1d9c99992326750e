"""The life of an execution in tables: many commands in one statement, and rows that agree with what is said of them.

What the operations mean is tested for every backend; here is what only Postgres could get wrong: batches whose members
have different fates, the arithmetic of retries in SQL, refusals that must not write, plans that outlive the data for
which they were made, and removing what has many rows.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import asyncpg
import msgspec
import pytest

from flowfabric.backends import connect
from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres.record import place_of
from flowfabric.contract import limits
from flowfabric.contract.errors import ExecutionNotFound, LeaseExpired, StaleLease
from flowfabric.contract.execution import ExecutionComplete
from flowfabric.contract.holding import complete_digest
from flowfabric.contract.ids import AttemptId, LeaseId
from flowfabric.contract.lease import Lease
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import Fence, Payload
from flowfabric.contract.policies import Backoff, ExponentialBackoff, FixedBackoff
from flowfabric.contract.states import CancelSource, PublicState
from flowfabric.rules.transitions import retry_delay_ms
from tests.backends.postgres.work import FEW
from tests.conformance.world import TTL_MS, UNKNOWN, World, command, frame, policy, retrying

COMPLETE: Final = """
SELECT at, code, details, completed_at_ms
    FROM ff.execution_complete($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
UUID: Final = UNKNOWN[-36:]
TABLES: Final = (
    "execution",
    "agenda",
    "ready",
    "definition",
    "result",
    "attempt",
    "event",
    "stream",
    "frame",
)


@pytest.fixture
async def world(place: str, clock: ManualClock) -> AsyncIterator[World]:
    """A store; after the test every stored invariant must hold."""
    backend = await connect(place, clock=clock, partitions=FEW)
    found = World(backend, clock)
    yield found
    report = await backend.maintenance.fsck()
    await backend.close()
    assert not report.findings


@pytest.fixture
async def raw(world: World, place: str) -> AsyncIterator[Any]:
    """A connection of the test's own, set as servers are by default."""
    connection = await asyncpg.connect(place)
    yield connection
    await connection.close()


async def complete_all(
    raw: Any, commands: Sequence[ExecutionComplete]
) -> list[tuple[str | None, int | None]]:
    """Complete with one statement; return code and instant of each."""
    columns: list[list[Any]] = [[] for _ in range(11)]
    for given in commands:
        fence = given.fence or Fence()
        result = given.result
        values = (
            *place_of(given.execution_id),
            *(fence.lease_id, fence.lease_epoch, fence.attempt_id, fence.lane, fence.route),
            *(complete_digest(given), None),
            *((result.content_type, result.data) if result is not None else (None, None)),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    rows = await raw.fetch(COMPLETE, *columns)
    assert sorted(row["at"] for row in rows) == list(range(1, len(commands) + 1))
    return [(row["code"], row["completed_at_ms"]) for row in sorted(rows, key=lambda row: row["at"])]


def completing(lease: Lease, **fields: Any) -> ExecutionComplete:
    found = command("execution.complete", lease, **fields)
    assert isinstance(found, ExecutionComplete)
    return found


async def leases(world: World, count: int, **fields: Any) -> list[Lease]:
    """Create and claim some executions."""
    for _ in range(count):
        await world.create(**fields)
    return list(await world.claim(max_tasks=count))


async def version_of(raw: Any, execution_id: str) -> Any:
    """Return what changes whenever an execution's row is written."""
    return await raw.fetchval("SELECT xmin::text FROM ff.execution WHERE id = $1", execution_id[-36:])


async def rows_left(raw: Any) -> dict[str, int]:
    """Count what is in each table that has anything."""
    counts = {name: await raw.fetchval(f"SELECT count(*) FROM ff.{name}") for name in TABLES}
    return {name: count for name, count in counts.items() if count}


# Many commands, one statement ----------------------------------------------------------------------------------------


async def test_each_command_of_a_statement_has_its_own_fate(world: World, raw: Any) -> None:
    """Completions of one statement are answered or refused one by one, whatever becomes of the others."""
    late = await world.leased(lease_ttl_ms=1_000)
    world.clock.advance(1_000)
    good, plain, again, stale, other, unfenced = await leases(world, 6)
    first = (await world.execution.complete(again, result=Payload(b"1"))).completed_at_ms
    await world.execution.complete(other, result=Payload(b"1"))
    world.clock.advance(5)
    now_ms = world.now_ms
    partition, text = place_of(good.execution_id)
    fence = msgspec.structs.replace(stale.fence, lease_epoch=9)
    # The pool writes a test's clock before its next call; the test's own connection calls none.
    await world.describe(good.execution_id)
    answers = await complete_all(
        raw,
        [
            completing(good, result=Payload(b"2")),
            completing(late),
            completing(again, result=Payload(b"1")),
            completing(stale, fence=fence),
            completing(other, result=Payload(b"2")),
            completing(unfenced, fence=None, source=CancelSource.OPERATOR_OVERRIDE),
            completing(good, execution_id=UNKNOWN),
            completing(good, execution_id=f"{{fp:{(partition + 1) % FEW.flow}}}:{text}"),
            completing(plain),
        ],
    )
    assert answers == [
        (None, now_ms),
        ("lease_expired", None),
        (None, first),
        ("stale_lease", None),
        ("execution_not_active", None),
        (None, now_ms),
        ("execution_not_found", None),
        ("execution_not_found", None),
        (None, now_ms),
    ]
    assert (await world.execution.read_result(good.execution_id)).result == Payload(b"2")
    assert (await world.execution.read_result(plain.execution_id)).result is None
    assert await world.events(late.execution_id) == ["acquired", "expired"]
    assert await world.state(stale.execution_id) is PublicState.ACTIVE


async def test_both_ways_of_completing_leave_the_same(world: World, raw: Any) -> None:
    """What completes all at once and what completes step by step leave rows that differ in nothing but names."""
    one, two = await leases(world, 2, policy=retrying(), tags={"a.b": "c"})
    for lease in (one, two):
        await world.execution.progress(lease, percent=50.0, message="half")
    await complete_all(raw, [completing(one, result=Payload(b"1"))])
    unfenced = completing(two, fence=None, result=Payload(b"1"), source=CancelSource.OPERATOR_OVERRIDE)
    await complete_all(raw, [unfenced])
    named = ("seq", "id", "partition", "attempt_id", "claim_id", "answers")
    rows = [
        dict(await raw.fetchrow("SELECT * FROM ff.execution WHERE id = $1", lease.execution_id[-36:]))
        for lease in (one, two)
    ]
    differing = {name for name in rows[0] if rows[0][name] != rows[1][name]}
    assert differing <= set(named)
    agenda = await raw.fetch("SELECT due_at_ms, due_kind, holder, claim_id, lost_at_ms FROM ff.agenda")
    assert agenda[0] == agenda[1]
    events = await raw.fetch(
        "SELECT n, at_ms, name, reason, lease_epoch, attempt_index, worker_instance, outcome, actor FROM ff.event "
        "WHERE name = 'released'"
    )
    assert events[0] == events[1]


async def test_completing_makes_up_for_a_lost_entry(world: World, raw: Any) -> None:
    """An execution whose entry in the agenda has gone gets one when it ends, or retention would never see it."""
    held = await leases(world, 2)
    await raw.execute("DELETE FROM ff.agenda WHERE id = $1", held[0].execution_id[-36:])
    await complete_all(raw, [completing(lease) for lease in held])
    entries = await raw.fetch("SELECT due_at_ms, due_kind, holder FROM ff.agenda")
    assert len(entries) == 2
    assert entries[0] == entries[1]
    assert entries[0]["due_kind"] == "retention"


async def test_one_execution_twice_in_a_statement(world: World, raw: Any) -> None:
    """A statement that names an execution twice carries out one command; the other is its repetition."""
    (lease,) = await leases(world, 1)
    answers = await complete_all(raw, [completing(lease), completing(lease)])
    assert answers[0] == answers[1]
    assert answers[0][0] is None
    assert await world.events(lease.execution_id) == ["acquired", "released"]


async def test_racing_completions_have_one_answer(world: World) -> None:
    """However many completions come together and over however many connections, each execution ends once."""
    held = await leases(world, 20)
    answers = await asyncio.gather(
        *(world.execution.complete(lease, result=Payload(b"1")) for lease in held for _ in range(5))
    )
    assert len({(answer.execution_id, answer.completed_at_ms) for answer in answers}) == 20
    for lease in held:
        assert await world.events(lease.execution_id) == ["acquired", "released"]


async def test_the_history_stays_bounded(world: World, raw: Any) -> None:
    """Every way of adding to a history that is full removes its oldest entry."""
    for way in ("statement", "steps", "pause"):
        lease = await world.leased()
        seq = await raw.fetchval("SELECT seq FROM ff.execution WHERE id = $1", lease.execution_id[-36:])
        await raw.execute(
            "INSERT INTO ff.event (seq, n, at_ms, name, lease_epoch) "
            "SELECT $1, n, $2, 'renewed', 1 FROM generate_series(2, $3) AS n",
            seq,
            world.now_ms,
            limits.HISTORY_KEPT,
        )
        await raw.execute(
            "UPDATE ff.execution SET history_count = $2 WHERE seq = $1", seq, limits.HISTORY_KEPT
        )
        if way == "statement":
            await complete_all(raw, [completing(lease)])
        elif way == "steps":
            await world.execution.cancel(lease, source=CancelSource.OPERATOR_OVERRIDE, reason="r")
        else:
            await world.execution.delay(lease, delay_until_ms=world.now_ms + 1_000_000)
        kept = await raw.fetchrow("SELECT min(n), max(n), count(*) FROM ff.event WHERE seq = $1", seq)
        assert tuple(kept) == (2, limits.HISTORY_KEPT + 1, limits.HISTORY_KEPT), way


# What is refused, and what is the same -------------------------------------------------------------------------------


async def test_a_refusal_writes_nothing(world: World, raw: Any) -> None:
    """A refused call leaves the row as it was, to the version; only an expiry that nobody recorded yet is written."""
    (lease,) = await leases(world, 1)
    before = await version_of(raw, lease.execution_id)
    stale = msgspec.structs.replace(lease.fence, lease_epoch=9)
    for name, fields in (
        ("complete", {}),
        ("fail", {"failure_class": "transient", "category": "c", "message": "m"}),
        ("delay", {"delay_until_ms": world.now_ms + 1}),
        ("wait_children", {}),
        ("progress", {"percent": 1.0}),
        ("cancel", {"reason": "r"}),
    ):
        with pytest.raises(StaleLease):
            await world.call(f"execution.{name}", lease, fence=stale, **fields)
    assert (await world.execution.progress(lease)).percent is None
    assert await version_of(raw, lease.execution_id) == before
    world.clock.advance(TTL_MS)
    with pytest.raises(LeaseExpired):
        await world.execution.complete(lease)
    after = await version_of(raw, lease.execution_id)
    assert after != before
    with pytest.raises(LeaseExpired):
        await world.execution.complete(lease)
    assert await version_of(raw, lease.execution_id) == after


async def test_another_partition_is_another_id(world: World) -> None:
    """The uuid of an execution with another partition in the id names nothing, whatever is asked."""
    (lease,) = await leases(world, 1)
    partition, text = place_of(lease.execution_id)
    wrong = f"{{fp:{(partition + 1) % FEW.flow}}}:{text}"
    asked = {
        "set_tags": {"tags": {"a.b": "c"}},
        "change_priority": {"priority": 1},
        "block": {"reason": "paused_by_operator"},
        "fail": {"failure_class": "transient", "category": "c", "message": "m"},
        "cancel": {"reason": "r"},
        "delay": {"delay_until_ms": 1},
        "progress": {"percent": 1.0},
        "expire": {"reason": "attempt_timeout"},
    }
    for name, operation in OPERATIONS.items():
        concept, _, verb = name.partition(".")
        if (
            concept != "execution"
            or "execution_id" not in operation.command.__struct_fields__
            or verb == "create"
        ):
            continue
        fenced = "fence" in operation.command.__struct_fields__
        given = {"fence": lease.fence} if fenced else {}
        with pytest.raises(ExecutionNotFound) as refusal:
            await world.call(name, wrong, **given, **asked.get(verb, {}))
        assert refusal.value.details == {"execution_id": wrong}, name


async def test_eight_answers_are_kept(world: World, raw: Any) -> None:
    """An attempt remembers its latest eight answers, of which a repetition still gets its own."""
    lease = await world.leased()
    held: list[Lease] = []
    for _ in range(10):
        held.append(lease)
        await world.execution.wait_children(lease)
        lease = await world.claim_one()
    answers = await raw.fetchval("SELECT answers FROM ff.execution WHERE id = $1", lease.execution_id[-36:])
    assert len(answers) == 8 * 5
    assert (await world.execution.wait_children(held[2])).public_state is PublicState.RESUMABLE
    with pytest.raises(StaleLease):
        await world.execution.wait_children(held[1])


# Arithmetic -----------------------------------------------------------------------------------------------------------


def backoffs(seed: int, count: int) -> list[tuple[Backoff, int, str, int]]:
    """Make policies with the partition, uuid and count of retries they are asked about; the extremes among them."""
    dice = random.Random(seed)
    made: list[tuple[Backoff, int, str, int]] = []
    for _ in range(count):
        jitter = dice.random() < 0.7
        delay_ms = dice.choice((0, 1, 10, 1_000, dice.randrange(10**7)))
        backoff: Backoff = FixedBackoff(delay_ms=delay_ms, jitter=jitter)
        if dice.random() < 0.7:
            backoff = ExponentialBackoff(
                initial_delay_ms=delay_ms,
                max_delay_ms=dice.choice((0, 1, 1_000, 60_000, dice.randrange(10**10))),
                multiplier=dice.choice(
                    (1.0, 1.0000001, 1.1, 1.5, 2.0, 3.7, 100.0, 1_000.0, 1 + 3 * dice.random())
                ),
                jitter=jitter,
            )
        retries = dice.choice((0, 1, 2, 3, 10, 100, 500, 1_999, 2_000, 2_001, dice.randrange(3_000)))
        made.append((backoff, dice.randrange(65_536), str(uuid.UUID(int=dice.getrandbits(128))), retries))
    return made


async def test_delays_before_retries_are_the_same_numbers(raw: Any) -> None:
    """The wait before a retry is, to the millisecond, the one that every other backend works out."""
    asked = backoffs(seed=4, count=2_000)
    rows: list[dict[str, Any]] = []
    for backoff, partition, text, retries in asked:
        row: dict[str, Any] = {"partition": partition, "id": text, "retry_count": retries}
        row["backoff_jitter"] = backoff.jitter
        match backoff:
            case FixedBackoff():
                row |= {"backoff_kind": "fixed", "backoff_delay_ms": backoff.delay_ms}
            case ExponentialBackoff():
                row |= {"backoff_kind": "exponential", "backoff_delay_ms": backoff.initial_delay_ms}
                row |= {"backoff_max_ms": backoff.max_delay_ms, "backoff_multiplier": backoff.multiplier}
        rows.append(row)
    found = await raw.fetch(
        "SELECT ff._retry_delay(jsonb_populate_record(NULL::ff.execution, r.row)) AS delay_ms "
        "FROM jsonb_array_elements($1::jsonb) WITH ORDINALITY AS r (row, at) ORDER BY r.at",
        msgspec.json.encode(rows).decode(),
    )
    expected = [
        retry_delay_ms(backoff, f"{{fp:{partition}}}:{text}", retries)
        for backoff, partition, text, retries in asked
    ]
    assert [row["delay_ms"] for row in found] == expected


# Plans ----------------------------------------------------------------------------------------------------------------


async def test_plans_made_for_an_empty_store_are_fit_for_a_full_one(world: World, raw: Any) -> None:
    """A connection that has planned its statements while there was nothing does not read whole tables later."""
    await raw.execute("VACUUM ANALYZE")
    fence = Fence(lease_id=LeaseId(UUID), lease_epoch=1, attempt_id=AttemptId(UUID))
    for _ in range(8):
        # This one first: plans of what functions share are made by whoever comes first.
        await raw.fetch("SELECT ff.execution_progress(0, $1, NULL, NULL, NULL, NULL, NULL, 1, NULL)", UUID)
    for _ in range(8):
        await complete_all(raw, [ExecutionComplete(execution_id=UNKNOWN, fence=fence)])
        await raw.fetch("SELECT ff.execution_trim(ARRAY[0], ARRAY[$1::uuid])", UUID)
    await world.execution.create_many(
        executions=tuple(command("execution.create", kind="k") for _ in range(1_000))
    )
    done = await world.completed(policy=policy(retention_ms=0), priority=9)
    held = [await world.leased(priority=9) for _ in range(2)]
    async with raw.transaction():
        await complete_all(raw, [completing(held[0], result=Payload(b"1"))])
        await raw.fetch(
            "SELECT ff.execution_progress($1, $2, NULL, NULL, NULL, NULL, NULL, 1, NULL)",
            *place_of(held[1].execution_id),
        )
        partition, text = place_of(done.execution_id)
        trimmed = await raw.fetchval(
            "SELECT status FROM ff.execution_trim(ARRAY[$1::integer], ARRAY[$2::uuid])", partition, text
        )
        assert trimmed == "deleted"
        read = await raw.fetch(
            "SELECT relname FROM pg_stat_xact_user_tables WHERE schemaname = 'ff' AND seq_tup_read > 100"
        )
    assert not read


# Removing -------------------------------------------------------------------------------------------------------------


async def test_many_are_removed_together(world: World, raw: Any) -> None:
    """Removing finished executions leaves no row of them behind in any table."""
    held = await leases(world, 30, policy=retrying(retention_ms=1_000))
    for lease in held[:10]:
        await world.stream.append(lease, frames=(frame(1),))
    await asyncio.gather(*(world.execution.complete(lease, result=Payload(b"1")) for lease in held[:20]))
    await asyncio.gather(
        *(
            world.execution.cancel(lease.execution_id, source=CancelSource.OPERATOR_OVERRIDE, reason="r")
            for lease in held[20:]
        )
    )
    world.clock.advance(1_000)
    answers = await asyncio.gather(*(world.execution.trim(lease.execution_id) for lease in held))
    assert {answer.status for answer in answers} == {"deleted"}
    assert await rows_left(raw) == {}


async def test_very_many_frames_go_in_parts(world: World, raw: Any) -> None:
    """What has very many frames is removed a bounded part at a time, and everything agrees in between."""
    lease = await world.leased(policy=policy(retention_ms=1_000))
    await world.stream.append(lease, frames=(frame(1),))
    seq = await raw.fetchval("SELECT seq FROM ff.execution WHERE id = $1", lease.execution_id[-36:])
    count = 45_000
    await raw.execute(
        "INSERT INTO ff.frame (seq, attempt_index, ms, frame_seq, sequence, mode, frame_type, content_type, payload) "
        "SELECT seq, attempt_index, ms + n, 0, sequence + n, mode, frame_type, content_type, payload "
        "FROM ff.frame, generate_series(1, $2 - 1) AS n WHERE seq = $1",
        seq,
        count,
    )
    await raw.execute(
        "UPDATE ff.stream SET frame_count = $2, last_sequence = $2, last_ms = last_ms + $2 - 1, last_seq = 0, "
        "durable_kept = $2 WHERE seq = $1",
        seq,
        count,
    )
    await world.execution.complete(lease)
    world.clock.advance(1_000)
    await world.describe(lease.execution_id)
    partition, text = place_of(lease.execution_id)
    trim = "SELECT status FROM ff.execution_trim(ARRAY[$1::integer], ARRAY[$2::uuid])"
    assert await raw.fetchval(trim, partition, text) == "more"
    assert 0 < await raw.fetchval("SELECT count(*) FROM ff.frame") < count
    assert not (await world.backend.maintenance.fsck()).findings
    assert (await world.execution.trim(lease.execution_id)).status == "deleted"
    assert await rows_left(raw) == {}
