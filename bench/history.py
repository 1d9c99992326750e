"""What finished executions cost those that run: ten million that are kept, and a million that are being deleted.

They are loaded with SQL: one execution is carried out, and its rows in every table are copied under new keys, so that
what is loaded is as the engine itself would have left it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from bench.drain import Work, claim_command, fill, hold_depth, payload as payload_of, slot_loop
from bench.measure import percentile
from bench.postgres import Connection
from bench.processes import serving
from bench.stores import Place, place
from flowfabric.backends import connect
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ExecutionComplete
from flowfabric.contract.ids import Lane

OLD: Final = Lane("old")
"""What is copied was in a lane of its own, so that no claim can find it by mistake."""
CHUNK: Final = 200_000
TABLES: Final = ("execution", "definition", "result", "event", "agenda")
ID: Final = "md5('old ' || ($1::bigint + made.number))::uuid"
NEW: Final = {
    "seq": "$1::bigint + made.number",
    "id": ID,
    # The definition says whose it is.
    "document": f"overlay(t.document PLACING convert_to(({ID})::text, 'UTF8') FROM position("
    "convert_to((SELECT id::text FROM ff.execution WHERE seq = $3::bigint), 'UTF8') IN t.document))",
}
"""What is not copied but made: the keys."""
SAMPLES: Final = 500
PAUSE_S: Final = 0.004
LOOK_S: Final = 0.5
HOUR_MS: Final = 3_600_000


async def kept(
    store: str, finished: int, waiting: int, claims: int, slots: int, *, checked: bool
) -> dict[str, Any]:
    """Claim and complete with `finished` executions kept; with `checked`, fsck looks at all of them afterwards."""
    async with place(store) as where:
        backend = await connect(where.url)
        loaded_s = await _load(where, backend, finished, {})
        figures = await hold_depth(where, backend, waiting, claims, slots)
        if checked:
            began = time.perf_counter()
            report = await backend.maintenance.fsck()
            if report.findings:
                raise RuntimeError(f"fsck found {report.findings[:3]}")
            figures["fsck_s"] = time.perf_counter() - began
        await backend.close()
    return figures | {"loaded_per_s": finished / loaded_s}


async def retention(store: str, old: int) -> dict[str, Any]:
    """Submit, claim and complete one after the other: before, and while a server deletes `old` executions."""
    async with place(store, pinned=False) as where:
        backend = await connect(where.url)
        past = {"retention_due_at_ms": f"ff.now_ms() - {HOUR_MS}", "due_at_ms": f"ff.now_ms() - {HOUR_MS}"}
        before: list[float] = []
        await _sample(backend, before, SAMPLES)
        await _load(where, backend, old, past)
        async with _connected(where) as connection:
            during: list[float] = []
            began = time.perf_counter()
            async with serving(where.url):
                sampling = asyncio.create_task(_sample(backend, during, None))
                while await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM ff.agenda WHERE due_at_ms < ff.now_ms() - $1)", HOUR_MS // 2
                ):
                    if sampling.done():
                        break
                    await asyncio.sleep(LOOK_S)  # sleeps: another process is looked at again
                took_s = time.perf_counter() - began
                sampling.cancel()
                with suppress(asyncio.CancelledError):
                    await sampling
        await backend.close()
    return {
        "deleted_per_s": old / took_s,
        "before_p50_ms": percentile(before, 0.5),
        "before_p99_ms": percentile(before, 0.99),
        "p50_ms": percentile(during, 0.5),
        "p99_ms": percentile(during, 0.99),
        "longest_ms": max(during),
        "samples": len(during),
    }


async def _sample(backend: Backend, waits_ms: list[float], count: int | None) -> None:
    """Time claims of one execution each, which is there."""
    while count is None or len(waits_ms) < count:
        await fill(backend, 1, 64)
        began = time.perf_counter()
        claimed = (await backend.lease.claim(claim_command(0))).leases
        waits_ms.append((time.perf_counter() - began) * 1_000)
        for lease in claimed:
            await backend.execution.complete(
                ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence)
            )
        await asyncio.sleep(PAUSE_S)  # sleeps: a modest load


@asynccontextmanager
async def _connected(where: Place) -> AsyncIterator[Connection]:
    assert where.postgres is not None, "loading is written for Postgres"
    connection = await where.postgres.connect()
    try:
        yield connection
    finally:
        await connection.close()


async def _load(where: Place, backend: Backend, count: int, given: dict[str, str]) -> float:
    """Carry out one execution and copy it `count` times; columns in `given` get these values. Return the seconds."""
    await fill(backend, 1, 64, OLD)
    await slot_loop(backend, 0, payload_of(64), Work(1), lane=OLD)
    async with _connected(where) as connection:
        began = time.perf_counter()
        await connection.execute("SET synchronous_commit TO off")
        template = await connection.fetchval("SELECT seq FROM ff.execution WHERE lane = $1", OLD)
        first: int = await connection.fetchval("SELECT max(seq) FROM ff.execution") or 0
        # What is created meanwhile gets keys beyond.
        await connection.execute(f"SELECT setval('ff.execution_seq', {first + count + 1})")
        statements = {table: await _copying(connection, table, given) for table in TABLES}
        for start in range(0, count, CHUNK):
            async with connection.transaction():
                for statement in statements.values():
                    await connection.execute(statement, first + start, min(CHUNK, count - start), template)
        for table in TABLES:
            await connection.execute(f"VACUUM (ANALYZE) ff.{table}")
        await connection.execute("CHECKPOINT")
        return time.perf_counter() - began


async def _copying(connection: Connection, table: str, given: dict[str, str]) -> str:
    """Return the statement that copies a table's rows of $3, $2 times, under keys after $1."""
    rows = await connection.fetch(
        "SELECT attname AS name FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped "
        "ORDER BY attnum",
        f"ff.{table}",
    )
    names = [row["name"] for row in rows]
    values = [NEW.get(name) or given.get(name) or f"t.{name}" for name in names]
    return (
        f"INSERT INTO ff.{table} ({', '.join(names)}) SELECT {', '.join(values)} "
        f"FROM ff.{table} AS t CROSS JOIN generate_series(1, $2::bigint) AS made (number) WHERE t.seq = $3::bigint"
    )
