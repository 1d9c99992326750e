"""A store with functions of a test's own, which can be held up at a gate while they run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg

from flowfabric.backends.postgres.store import Store, open_store
from tests.postgres.servers import Node
from tests.postgres.session import own_database, shared_node
from tests.proxy import until

GATE = 42

FUNCTIONS = """
CREATE TABLE ff.t_done (n bigserial PRIMARY KEY, value text);
CREATE SEQUENCE ff.t_tries;
CREATE TABLE ff.t_rows (id integer PRIMARY KEY, n integer NOT NULL);
INSERT INTO ff.t_rows VALUES (1, 0), (2, 0);

CREATE FUNCTION ff.t_echo(p_keys text[], p_values text[]) RETURNS TABLE (
    at integer, code text, message text, details jsonb, value text, statement bigint
) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(42);
    IF 'bad' = ANY(p_values) THEN
        PERFORM 1 / 0;
    END IF;
    INSERT INTO ff.t_done (value) SELECT v FROM unnest(p_values) WITH ORDINALITY AS u (v, o) ORDER BY o;
    RETURN QUERY SELECT o::integer, CASE WHEN left(v, 3) = 'no ' THEN substr(v, 4) END, NULL::text,
        CASE WHEN left(v, 3) = 'no ' THEN '{"a": 1}'::jsonb END, v, pg_current_xact_id()::text::bigint
    FROM unnest(p_values) WITH ORDINALITY AS u (v, o), generate_series(1, CASE WHEN v = 'two' THEN 2 ELSE 1 END)
    WHERE v <> 'none';
END $$;

CREATE FUNCTION ff.t_cold(p_value text, OUT code text, OUT message text, OUT details jsonb, OUT value jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(42);
    INSERT INTO ff.t_done (value) VALUES (p_value);
    value := jsonb_build_array(p_value);
END $$;

CREATE FUNCTION ff.t_refuse(p_code text, OUT code text, OUT message text, OUT details jsonb, OUT value jsonb)
LANGUAGE sql AS $$ SELECT p_code, 'because', '{"a": 1, "b": ["c"], "d": null}'::jsonb, NULL::jsonb $$;

CREATE FUNCTION ff.t_fail(p_times integer, p_state text, OUT code text, OUT message text, OUT details jsonb,
    OUT value jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    v_try bigint := nextval('ff.t_tries');
BEGIN
    INSERT INTO ff.t_done (value) VALUES (v_try::text);
    IF v_try <= p_times THEN
        RAISE EXCEPTION 'provoked' USING ERRCODE = p_state;
    END IF;
    value := jsonb_build_array(v_try);
END $$;

CREATE FUNCTION ff.t_both(p_first integer, p_second integer, OUT code text, OUT message text, OUT details jsonb,
    OUT value jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ff.t_rows SET n = n + 1 WHERE id = p_first;
    PERFORM pg_sleep(0.2);
    UPDATE ff.t_rows SET n = n + 1 WHERE id = p_second;
END $$;
"""


class Gated:
    """A store, and what tests do behind its back."""

    def __init__(self, store: Store, node: Node, name: str) -> None:
        self.store = store
        self.calls = store.calls
        self.node = node
        self.name = name

    def call(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self.node.call(statement, *values, database=self.name)

    def done(self) -> list[str]:
        """Return what was carried out, in order."""
        return [value for (value,) in self.call("SELECT value FROM ff.t_done ORDER BY n")]

    def waiting(self) -> list[int]:
        """Return the processes that are held up at the gate or by a row."""
        rows = self.call(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'", self.name
        )
        return [pid for (pid,) in rows]

    async def until_waiting(self, count: int) -> list[int]:
        await until(lambda: len(self.waiting()) == count, f"{count} statements are held up")
        return self.waiting()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Hold up every function at the gate while in the block."""
        with self.transaction() as line:
            line.execute("SELECT pg_advisory_xact_lock(42)")
            yield

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Keep a transaction open while in the block, then commit it."""
        line = psycopg.connect(self.node.url_of(self.name))
        try:
            with line:
                yield line
        finally:
            line.close()


@asynccontextmanager
async def gated(node: Node, url: str, options: str = "") -> AsyncIterator[Gated]:
    """Open a store and add the functions to it."""
    name = url.rpartition("/")[2]
    store = await open_store(url + options)
    try:
        node.call(FUNCTIONS, database=name)
        yield Gated(store, node, name)
    finally:
        await store.close()


@asynccontextmanager
async def own_gated(options: str = "") -> AsyncIterator[Gated]:
    """Make a database on the session's server for one test."""
    with own_database() as url:
        async with gated(shared_node(), url, options) as found:
            yield found
