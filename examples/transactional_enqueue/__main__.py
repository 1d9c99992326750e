"""`python -m examples.transactional_enqueue [URL]`: two orders, one of which is rolled back.

URL is a Postgres database to use, by a role that may make tables in it; without one a server is started for this run,
from whatever Postgres is installed.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg  # pyright: ignore[reportMissingTypeStubs] -- it comes without

import flowfabric
from examples.transactional_enqueue.shop import TABLES, OutOfStock, app, place_order, ship
from flowfabric import FlowFabricError
from flowfabric.provision import postgres
from flowfabric.worker import Worker


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Any]:
    """Open a connection of the application's own."""
    driver: Any = asyncpg
    connection = await driver.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def run(url: str) -> None:
    """Place two orders and run the worker that ships them."""
    async with (
        flowfabric.connect(url) as client,
        Worker(client.stores, app),
        connected(url) as database,
    ):
        await database.execute(TABLES)

        async with database.transaction():
            shipment = await place_order(database, "a kettle", stock=3)
        print("committed  ", await client.run(shipment, ship).result(timeout=30))

        try:
            async with database.transaction():
                await place_order(database, "a teapot", stock=0)
        except OutOfStock as refused:
            print("rolled back", f"there is no {refused} left")

        known = {row["shipment"] for row in await database.fetch("SELECT shipment FROM customer_order")}
        kinds = [info.execution_id async for info in client.list(kind=ship.name)]
        print("orders and shipments agree:", known == set(kinds))


def main() -> int:
    """Run the example; return the exit status."""
    given = sys.argv[1:]
    if given and not given[0].startswith(("postgresql://", "postgres://")):
        print(__doc__)
        return 0 if given[0] in ("-h", "--help") else 2
    with ExitStack() as stack:
        if given:
            url = given[0]
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(postgres.running(folder / "postgres")).url
        try:
            asyncio.run(run(url))
        except (FlowFabricError, asyncpg.PostgresError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
