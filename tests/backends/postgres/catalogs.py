"""What a schema consists of, so that two can be compared."""

from __future__ import annotations

from typing import Any

from tests.postgres.servers import Node

QUESTIONS = (
    """
    SELECT 'table', c.relname, c.relkind, c.reloptions::text, c.relpersistence FROM pg_class AS c
    WHERE c.relnamespace = 'ff'::regnamespace AND c.relkind IN ('r', 'p', 'S', 'v', 'm')
    """,
    """
    SELECT 'column', c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attidentity, a.attstorage, a.attcollation::regcollation::text, pg_get_expr(d.adbin, d.adrelid)
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'ff'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
    """,
    """
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'ff'::regnamespace
    """,
    """
    SELECT 'trigger', c.relname, t.tgname, pg_get_triggerdef(t.oid) FROM pg_trigger AS t
    JOIN pg_class AS c ON c.oid = t.tgrelid WHERE c.relnamespace = 'ff'::regnamespace AND NOT t.tgisinternal
    """,
    "SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'ff'",
    """
    SELECT 'sequence', sequencename, data_type::text, start_value, increment_by, cache_size, cycle FROM pg_sequences
    WHERE schemaname = 'ff'
    """,
)


def catalog_of(node: Node, database: str) -> list[tuple[Any, ...]]:
    """Return everything in schema `ff` of a database but its functions."""
    rows = [row for question in QUESTIONS for row in node.call(question, database=database)]
    return sorted(rows, key=repr)


def functions_of(node: Node, database: str) -> dict[str, str]:
    """Return the definitions of the functions in schema `ff`, by their signature."""
    return dict(
        node.call(
            "SELECT oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc "
            "WHERE pronamespace = 'ff'::regnamespace",
            database=database,
        )
    )
