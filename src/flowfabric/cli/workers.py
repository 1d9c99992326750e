"""`flowfabric workers`: who is alive and what they can do, and declaring one dead."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from flowfabric.cli.command import Session, connected

NamespaceName = Annotated[str, typer.Option("--namespace", metavar="NAME", help="The tenant.")]


def add(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    group = typer.Typer(help="Look at workers; declare one dead.", no_args_is_help=True)
    group.command("list")(connected(workers_list))
    group.command("mark-dead")(connected(mark_dead))
    app.add_typer(group, name="workers", rich_help_panel=panel)


async def workers_list(session: Session, namespace: NamespaceName = "default") -> None:
    """List the registered worker instances, what they run and how many leases they hold."""
    from flowfabric.cli import output
    from flowfabric.contract.ids import Namespace
    from flowfabric.contract.worker import WorkerInfo, WorkerList

    client = await session.client()
    found: list[WorkerInfo] = []
    cursor: str | None = None
    while True:
        page = await client.stores.worker.list(WorkerList(namespace=Namespace(namespace), cursor=cursor))
        found.extend(page.workers)
        cursor = page.next_cursor
        if cursor is None:
            break
    if session.as_json:
        output.document({"workers": found, "next_cursor": None})
        return
    now_ms = time.time_ns() // 1_000_000
    output.table(
        ("INSTANCE", "WORKER", "STATE", "LEASES", "LANES", "KINDS", "CAPABILITIES", "HEARTBEAT"),
        [
            (
                info.worker_instance,
                info.worker_id,
                "alive" if info.alive else "lapsed",
                str(info.leases),
                ",".join(info.lanes),
                ",".join(info.kinds) or "any",
                ",".join(info.capabilities) or "-",
                output.ago(info.last_heartbeat_at_ms, now_ms),
            )
            for info in found
        ],
        empty="no workers are registered: start one with `flowfabric worker app:app`",
    )


async def mark_dead(
    session: Session,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="As `workers list` shows it.")],
    namespace: NamespaceName = "default",
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Kept in the leases' history.")
    ] = "marked_dead",
) -> None:
    """Declare a worker instance dead: its leases expire at once and others take its work over."""
    from flowfabric.cli import output
    from flowfabric.contract.ids import Namespace, WorkerInstance
    from flowfabric.contract.worker import WorkerMarkDead

    client = await session.client()
    reply = await client.stores.worker.mark_dead(
        WorkerMarkDead(
            worker_instance=WorkerInstance(instance), namespace=Namespace(namespace), reason=reason
        )
    )
    if session.as_json:
        output.document(reply)
        return
    known = "marked dead" if reply.status == "marked" else "was not registered"
    output.line(f"{instance}: {known}; {reply.leases_expired} leases expired")
