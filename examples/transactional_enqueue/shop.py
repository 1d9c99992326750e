"""A shop: orders are rows of its own, and every order that is committed is shipped, once."""

from __future__ import annotations

from typing import Any

import flowfabric
from flowfabric import App, Context

app = App("shop")

TABLES = """\
CREATE TABLE IF NOT EXISTS customer_order (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item text NOT NULL,
    shipment text NOT NULL
)
"""


@app.task(retries=3, backoff="exponential")
async def ship(ctx: Context, order: int, item: str) -> str:
    """Ship what was ordered."""
    await ctx.progress(message=f"packing {item}")
    return f"order {order}: {item} is on its way"


async def place_order(connection: Any, item: str, *, stock: int) -> str:
    """Store an order and enqueue its shipment, in the transaction that is under way; return the shipment's id.

    Raises: `OutOfStock`, after both were written.
    """
    order = await connection.fetchval(
        "INSERT INTO customer_order (item, shipment) VALUES ($1, '') RETURNING id", item
    )
    shipment = await flowfabric.enqueue(
        connection, ship, order=order, item=item, idempotency_key=f"ship order {order}"
    )
    await connection.execute("UPDATE customer_order SET shipment = $2 WHERE id = $1", order, shipment.id)
    if stock < 1:
        raise OutOfStock(item)
    return shipment.id


class OutOfStock(Exception):
    """There is nothing left of what was ordered."""
