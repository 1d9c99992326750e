"""Streams of executions that were attempted many times."""

from __future__ import annotations

import pytest

from flowfabric.contract.stream import StreamRead
from tests.backends.postgres.work import opened
from tests.backends.working import claim, create
from tests.postgres.servers import Node

MANY = """
INSERT INTO ff.attempt (seq, attempt_index, attempt_id, attempt_type, attempt_state, attempt_started_at_ms, worker_id,
    worker_instance, attempt_epoch)
    SELECT e.seq, n, gen_random_uuid(), 'retry', 'ended_failure', 1, 'w', 'w', n + 1
    FROM ff.execution e, generate_series(0, {attempts} - 1) AS n;
UPDATE ff.execution SET attempt_index = {attempts};
INSERT INTO ff.stream (seq, attempt_index, best_effort_cap)
    SELECT e.seq, n, 64 FROM ff.execution e, generate_series(0, {attempts} - 1, {every}) AS n;
INSERT INTO ff.frame (seq, attempt_index, ms, frame_seq, sequence, mode, frame_type, content_type, payload)
    SELECT seq, attempt_index, 1, n, n + 1, 'durable', 'event', 'application/json', 'null'
    FROM ff.stream, generate_series(0, 2) AS n;
ANALYZE;
"""


@pytest.mark.parametrize(("attempts", "every"), [(20, 7), (300, 7), (300, 3), (1_000, 100)])
async def test_a_run_is_read_in_order_whatever_the_plan(node: Node, attempts: int, every: int) -> None:
    """Reading a run page by page shows every marker and every frame, however tables are joined at their size."""
    async with opened(node.url) as (backend,):
        execution_id = await create(backend)
        await claim(backend)
        node.call(MANY.format(attempts=attempts, every=every))
        seen: list[tuple[int, int]] = []
        start = "start"
        while True:
            page = await backend.stream.read(StreamRead(execution_id=execution_id, start=start, limit=50))
            fresh = [(frame.attempt_index, frame.sequence) for frame in page.frames]
            if start != "start":
                assert fresh[0] == seen[-1]
                del fresh[0]
            if not fresh:
                break
            seen += fresh
            start = page.next_cursor
        expected = [
            (attempt, sequence)
            for attempt in range(attempts + 1)
            for sequence in (range(4) if attempt < attempts and attempt % every == 0 else (0,))
        ]
        assert seen == expected
