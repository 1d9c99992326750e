"""Draining and filling an SQLite store in one process, and the bare loop it is compared with."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import Stopwatch, rate_row
from flowfabric.backends import connect
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import Kind, Lane, WorkerId, WorkerInstance, mint_uuid
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload

LANE = Lane("bench")
KIND = Kind("bench")


def payload(size: int) -> Payload:
    """Return a JSON string payload of exactly `size` bytes."""
    return Payload(b'"' + b"x" * (size - 2) + b'"')


async def fill(backend: Backend, count: int, size: int) -> None:
    """Create `count` executions in batches of 1,000."""
    body = payload(size)
    for start in range(0, count, 1_000):
        chunk = min(1_000, count - start)
        await backend.execution.create_many(
            ExecutionCreateMany(
                executions=tuple(ExecutionCreate(kind=KIND, lane=LANE, input=body) for _ in range(chunk))
            )
        )


def claim_command(slot: int, most: int = 1, wait_ms: int = 0) -> LeaseClaim:
    """Build a claim."""
    return LeaseClaim(
        worker_id=WorkerId("bench"),
        worker_instance=WorkerInstance(f"bench-{slot}"),
        lanes=(LANE,),
        kinds=(KIND,),
        max_tasks=most,
        wait_ms=wait_ms,
        claim_id=mint_uuid(),  # pyright: ignore[reportArgumentType]
    )


async def slot_loop(backend: Backend, slot: int, result: Payload, limit: int | None = None) -> int:
    """Claim and complete until nothing is left (or `limit` are done): each completion goes out with the next claim."""
    done = 0
    leases = (await backend.lease.claim(claim_command(slot))).leases
    while leases:
        lease: Lease = leases[0]
        completing = backend.execution.complete(
            ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=result)
        )
        done += 1
        if limit is not None and done >= limit:
            await completing
            break
        _, claimed = await asyncio.gather(completing, backend.lease.claim(claim_command(slot)))
        leases = claimed.leases
    return done


async def drain(tasks: int, slots: int, size: int) -> dict[str, Any]:
    """Pre-submit, then claim and complete everything with `slots` concurrent slots."""
    with tempfile.TemporaryDirectory() as folder:
        backend = await connect(f"sqlite:///{folder}/bench.db")
        await fill(backend, tasks, size)
        result = payload(size)
        watch = Stopwatch().start()
        done = await asyncio.gather(*(slot_loop(backend, slot, result) for slot in range(slots)))
        watch.stop()
        await backend.close()
    if sum(done) != tasks:
        raise RuntimeError(f"drained {sum(done)} of {tasks}")
    return rate_row(tasks, watch)


_BARE_SCHEMA = """
create table execution(seq integer primary key, uuid text unique, state text, ready integer, since integer,
    due integer, holder text, record text);
create index ready on execution(ready, since, uuid) where ready is not null;
create index due on execution(due) where due is not null;
create index holder on execution(holder) where holder is not null;
create table definition(seq integer primary key, definition text, input blob);
create table result(seq integer primary key, data blob);
create table event(id integer primary key autoincrement, seq integer, body text);
create index event_seq on event(seq, id);
"""


def bare(tasks: int, group: int, size: int) -> dict[str, Any]:
    """Write the rows that claim and complete write, in transactions of `group` of each, with no logic around them."""
    body = b"x" * size
    record = "r" * 900
    event = "e" * 260
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "bare.db", isolation_level=None)
        connection.executescript("pragma journal_mode=wal; pragma synchronous=full;" + _BARE_SCHEMA)
        connection.execute("begin")
        connection.executemany(
            "insert into execution(uuid, state, ready, since, record) values (?, 'waiting', 0, ?, ?)",
            ((mint_uuid(), number, record) for number in range(tasks)),
        )
        connection.executemany(
            "insert into definition(definition, input) values (?, ?)", ((record, body) for _ in range(tasks))
        )
        connection.execute("commit")
        watch = Stopwatch().start()
        held: list[int] = []
        left = tasks
        while left or held:
            connection.execute("begin immediate")
            for seq in held:
                connection.execute("select record from execution where seq = ?", (seq,)).fetchone()
                connection.execute(
                    "update execution set state = 'completed', holder = null, due = ?, record = ? where seq = ?",
                    (seq, record, seq),
                )
                connection.execute("insert into result(seq, data) values (?, ?)", (seq, body))
                connection.execute("insert into event(seq, body) values (?, ?)", (seq, event))
            held = []
            for seq, _ in connection.execute(
                "select e.seq, d.input from execution e join definition d on d.seq = e.seq where ready = 0 "
                "order by ready, since, uuid limit ?",
                (min(group, left),),
            ).fetchall():
                connection.execute(
                    "update execution set state = 'active', ready = null, holder = 'w', due = ?, record = ? "
                    "where seq = ?",
                    (seq, record, seq),
                )
                connection.execute("insert into event(seq, body) values (?, ?)", (seq, event))
                held.append(seq)
            left -= len(held)
            connection.execute("commit")
        watch.stop()
        connection.close()
    return rate_row(tasks, watch)


async def create_many(tasks: int, size: int) -> dict[str, Any]:
    """Create executions in batches of 1,000."""
    with tempfile.TemporaryDirectory() as folder:
        backend = await connect(f"sqlite:///{folder}/bench.db")
        await fill(backend, 1_000, size)
        watch = Stopwatch().start()
        await fill(backend, tasks, size)
        watch.stop()
        await backend.close()
    return rate_row(tasks, watch)


async def create_single(tasks: int, callers: int, size: int) -> dict[str, Any]:
    """Create executions one by one from concurrent callers."""
    body = payload(size)
    left = tasks

    with tempfile.TemporaryDirectory() as folder:
        backend = await connect(f"sqlite:///{folder}/bench.db")
        await fill(backend, 1_000, size)

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await backend.execution.create(ExecutionCreate(kind=KIND, lane=LANE, input=body))

        watch = Stopwatch().start()
        await asyncio.gather(*(caller() for _ in range(callers)))
        watch.stop()
        await backend.close()
    return rate_row(tasks, watch)


async def flat(waiting: int, claims: int, slots: int) -> dict[str, Any]:
    """Claim and complete with `waiting` executions in the queue; the depth is held by creating as many."""
    with tempfile.TemporaryDirectory() as folder:
        backend = await connect(f"sqlite:///{folder}/bench.db")
        await fill(backend, waiting + slots, 64)
        result = payload(64)
        # One round warms caches; the second is measured.
        for measured in (False, True):
            watch = Stopwatch().start()
            await asyncio.gather(
                *(slot_loop(backend, slot, result, limit=claims // slots) for slot in range(slots))
            )
            watch.stop()
            if not measured:
                await fill(backend, claims, 64)
        await backend.close()
    return rate_row(claims // slots * slots, watch)
