"""The floor for SQLite: what claim and complete write, in a bare loop over the standard library's driver."""

from __future__ import annotations

import sqlite3
from typing import Any

from bench.drain import fill
from bench.stores import SQLITE, place
from flowfabric.backends import assets, connect
from flowfabric.contract.ids import mint_uuid


async def bare(store: str, tasks: int, group: int, size: int) -> dict[str, Any]:
    """Write the rows that claim and complete write, into the same tables, with nothing around the statements.

    The store is filled as for the drain; then a loop commits `group` completions and `group` claims at a time, with
    records and events as large as the real ones.
    """
    assert store == SQLITE
    async with place(store) as where:
        backend = await connect(where.url)
        await fill(backend, tasks, size)
        await backend.close()
        path = where.url.removeprefix("sqlite:///")
        connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        connection.executescript("pragma synchronous=full; pragma wal_autocheckpoint=0;")
        meter = where.meter().start()
        _write_rows(connection, tasks, group, b"x" * size)
        meter.stop()
        connection.close()
    return meter.figures(tasks)


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
