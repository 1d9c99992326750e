"""The floor for Postgres: what claim and complete write, in a bare loop over the same driver.

Two connections, as the store uses them: one takes `group` executions with one statement while the other ends the
`group` taken before. The statements write the same columns of the same tables, and read what a worker gets; nothing is
looked up, locked for others' sake, decided, checked or announced.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg

from bench.drain import fill
from bench.stores import POSTGRES, place
from flowfabric.backends import connect
from flowfabric.backends.vectors import NUMBERS
from flowfabric.contract.ids import mint_uuid
from flowfabric.contract.states import ENDED, LEASED, AttemptState, TerminalOutcome

TAKE: Final = """
WITH best AS MATERIALIZED (
    SELECT seq, id, rank, eligible_since_ms, lease_id, attempt_id
    FROM (
        SELECT *, row_number() OVER (ORDER BY rank, eligible_since_ms, id) AS n
        FROM (
            SELECT * FROM ff.ready WHERE route_id = $1 ORDER BY rank, eligible_since_ms, id LIMIT $2
        ) AS first
    ) AS ready
    JOIN unnest($3::uuid[], $4::uuid[]) WITH ORDINALITY AS fresh (lease_id, attempt_id, n) USING (n)
), gone AS (
    DELETE FROM ff.ready AS ready USING best
    WHERE ready.route_id = $1 AND ready.rank = best.rank AND ready.eligible_since_ms = best.eligible_since_ms
        AND ready.id = best.id
), changed AS (
    UPDATE ff.execution AS e SET
        vector = $5, last_mutation_at_ms = $6, history_count = 1, lease_epoch = 1, total_attempt_count = 1,
        lease_id = best.lease_id, claim_id = best.lease_id, acquired_at_ms = $6, ttl_ms = 30000,
        expires_at_ms = $6::bigint + 30000, worker_id = 'bench', worker_instance = 'bench-1',
        attempt_id = best.attempt_id, attempt_index = 0, attempt_type = 'initial', attempt_state = 'started',
        attempt_started_at_ms = $6, attempt_epoch = 1, started_at_ms = $6
    FROM best
    WHERE e.seq = best.seq
), timed AS (
    INSERT INTO ff.agenda (seq, due_at_ms, due_kind, holder, claim_id, id)
    SELECT seq, $6::bigint + 30000, 'lease_expiry', 'default bench-1', lease_id, id FROM best
), noted AS (
    INSERT INTO ff.event (seq, n, at_ms, name, lease_id, lease_epoch, attempt_id, attempt_index, worker_instance)
    SELECT seq, 1, $6, 'acquired', lease_id, 1, attempt_id, 0, 'bench-1' FROM best
)
SELECT best.seq, best.id, best.lease_id, best.attempt_id, d.document, d.input_type, d.input
FROM best JOIN ff.definition AS d ON d.seq = best.seq
"""

END: Final = """
WITH held AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::uuid[], $4::text[], $5::bytea[])
        AS given (seq, lease_id, attempt_id, digest, data)
), changed AS (
    UPDATE ff.execution AS e SET
        vector = $6, last_mutation_at_ms = $7, completed_at_ms = $7, retention_due_at_ms = $7::bigint + 86400000,
        history_count = 2, attempt_state = 'ended_success', attempt_ended_at_ms = $7, timeout_at_ms = NULL,
        stream_closed_at_ms = $7, stream_closed_reason = 'attempt_success', has_result = true, lease_id = NULL,
        claim_id = NULL, acquired_at_ms = NULL, renewed_at_ms = NULL, ttl_ms = NULL, expires_at_ms = NULL,
        answers = ARRAY['execution.complete', held.lease_id::text, '1', held.digest, '[' || $7::bigint || ']']
    FROM held
    WHERE e.seq = held.seq
), stored AS (
    INSERT INTO ff.result (seq, content_type, data) SELECT seq, 'application/json', data FROM held
), timed AS (
    UPDATE ff.agenda AS a SET due_at_ms = $7::bigint + 86400000, due_kind = 'retention', holder = NULL, claim_id = NULL
    FROM held
    WHERE a.seq = held.seq
), noted AS (
    INSERT INTO ff.event (seq, n, at_ms, name, reason, lease_id, lease_epoch, attempt_id, attempt_index,
        worker_instance, outcome)
    SELECT seq, 2, $7, 'released', 'completed', lease_id, 1, attempt_id, 0, 'bench-1', 'success' FROM held
)
SELECT count(*) FROM held
"""

_INDEXED: Final = (
    "SET enable_seqscan TO off; SET enable_hashjoin TO off; SET enable_mergejoin TO off; SET jit TO off"
)
"""The tables were empty a moment ago, and no statistics say otherwise yet."""


async def bare(store: str, tasks: int, group: int, size: int) -> dict[str, Any]:
    """Take and end everything, `group` at a time."""
    assert store == POSTGRES
    async with place(store) as where:
        backend = await connect(where.url)
        await fill(backend, tasks, size)
        await backend.close()
        assert where.postgres is not None
        taking, ending = await where.postgres.connect(), await where.postgres.connect()
        for connection in (taking, ending):
            await connection.execute(_INDEXED)
        meter = where.meter().start()
        done = await _loop(taking, ending, tasks, group, b"x" * size)
        meter.stop()
        await taking.close()
        await ending.close()
    if done != tasks:
        raise RuntimeError(f"{done} of {tasks} were found")
    return meter.figures(tasks)


async def _loop(taking: Any, ending: Any, tasks: int, group: int, body: bytes) -> int:
    route = await taking.fetchval("SELECT id FROM ff.route")
    now_ms = await taking.fetchval("SELECT ff.now_ms()")
    take, end = await taking.prepare(TAKE), await ending.prepare(END)
    leased = NUMBERS[LEASED]
    ended = NUMBERS[ENDED[TerminalOutcome.SUCCESS, AttemptState.ATTEMPT_TERMINAL]]

    async def next_ones(count: int) -> list[asyncpg.Record]:
        if not count:
            return []
        fresh = [[mint_uuid() for _ in range(count)] for _ in range(2)]
        return await take.fetch(route, count, *fresh, leased, now_ms)

    async def end_these(held: list[asyncpg.Record]) -> None:
        if held:
            ids = ([row[column] for row in held] for column in ("seq", "lease_id", "attempt_id"))
            await end.fetch(*ids, ["d" * 64] * len(held), [body] * len(held), ended, now_ms)

    held: list[asyncpg.Record] = []
    left, done = tasks, 0
    while left or held:
        found, _ = await asyncio.gather(next_ones(min(group, left)), end_these(held))
        done += len(held)
        held = found
        left = left - len(found) if found else 0
    return done
