"""Every named statement fits the schema and the functions: the server plans it, in the usual schema and in another."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest

from flowfabric import backends
from flowfabric.backends import assets
from flowfabric.backends.postgres import functions
from tests.backends.postgres.work import FEW
from tests.postgres import session

FILES: Final = [name for name in assets.names(functions.PACKAGE, "sql/queries") if name.endswith(".sql")]
SCHEMAS: Final = ("ff", "other_one")


@pytest.fixture(params=SCHEMAS)
async def line(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Any, str]]:
    """A connection to a database with stores in two schemas, and one of them."""
    with session.own_database() as url:
        for schema in SCHEMAS:
            await (await backends.connect(f"{url}?schema={schema}", partitions=FEW)).close()
        connection: Any = await asyncpg.connect(url)
        try:
            yield connection, request.param
        finally:
            await connection.close()


async def test_every_statement_can_be_planned(line: tuple[Any, str]) -> None:
    """No named statement has a table, column, function or type that does not exist."""
    connection, schema = line
    wrong: list[str] = []
    for name in FILES:
        for title, statement in functions.statements(f"sql/queries/{name}", schema).items():
            try:
                await connection.prepare(statement)
            except asyncpg.PostgresError as error:
                wrong.append(f"{name}: {title}: {error}")
    assert not wrong, "\n".join(wrong)


async def test_nothing_names_another_schema(line: tuple[Any, str]) -> None:
    """What is stored of functions in a schema names no other schema of ours."""
    connection, schema = line
    other = next(name for name in SCHEMAS if name != schema)
    rows = await connection.fetch(
        "SELECT proname, pg_get_functiondef(oid) AS text FROM pg_proc WHERE pronamespace = $1::regnamespace",
        schema,
    )
    assert len(rows) > 100
    assert not [row["proname"] for row in rows if re.search(rf"\b{other}\.", row["text"])]
