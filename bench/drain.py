"""Draining and filling an SQLite store in one process, and the bare loop it is compared with."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import Stopwatch, rate_row
from flowfabric.backends import assets, connect
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


async def bare(tasks: int, group: int, size: int) -> dict[str, Any]:
    """Write the rows that claim and complete write, into the same tables, with nothing around the statements.

    The store is filled as for `drain`; then a loop over the standard library's sqlite3 commits `group` completions and
    `group` claims at a time, with records and events as large as the real ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        backend = await connect(f"sqlite:///{folder}/bench.db")
        await fill(backend, tasks, size)
        await backend.close()
        connection = sqlite3.connect(Path(folder) / "bench.db", isolation_level=None, cached_statements=256)
        connection.executescript("pragma synchronous=full; pragma wal_autocheckpoint=0;")
        watch = Stopwatch().start()
        _write_rows(connection, tasks, group, b"x" * size)
        watch.stop()
        connection.close()
    return rate_row(tasks, watch)


def _write_rows(connection: sqlite3.Connection, tasks: int, group: int, body: bytes) -> None:
    apply = assets.named("flowfabric.backends.sqlite", "sql/apply.sql")
    best = assets.named("flowfabric.backends.sqlite", "sql/claim.sql")["best"]
    load = assets.named("flowfabric.backends.sqlite", "sql/rows.sql")["load_seq"]
    update, event, result = apply["update_execution"], apply["insert_event"], apply["insert_result"]
    (route,) = connection.execute("select id from route").fetchone()
    active, ended, happened = b"a" * 760, b"e" * 1_040, b"h" * 300
    held: list[int] = []
    left, event_id = tasks, 0
    while left or held:
        connection.execute("begin immediate")
        for seq in held:
            connection.execute(load, (seq,)).fetchone()
            event_id += 2
            connection.execute(
                update, ("completed", None, 1, 2_000_000 + seq, "retention", None, None, None, ended, seq)
            )
            connection.execute(result, (seq, "application/json", body))
            connection.execute(event, (event_id, seq, happened))
        rows = connection.execute(best, (route, min(group, left))).fetchall() if left else []
        held = [row[0] for row in rows]
        for seq in held:
            event_id += 2
            columns = (
                "active",
                None,
                1,
                1_000_000 + seq,
                "lease_expiry",
                "default bench-1",
                mint_uuid(),
                None,
                active,
            )
            connection.execute(update, (*columns, seq))
            connection.execute(event, (event_id + 1, seq, happened))
        left -= len(held)
        connection.execute("commit")


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
