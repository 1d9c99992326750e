"""`flowfabric admin`: maintenance of a store, and every operation of the contract by its name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from flowfabric.cli.command import Session, connected, plain

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store, such as sqlite:///work.db. Default: FLOWFABRIC_URL if it names a store, else that of the "
        "`dev` that runs here.",
        show_default=False,
    ),
]


def add(app: typer.Typer, panel: str, *, operations: bool) -> None:
    """Add the commands; those for every operation only when asked for."""
    group = typer.Typer(
        help="Check and back up a store; carry out any operation by its name.", no_args_is_help=True
    )
    group.command("fsck", rich_help_panel="The store")(plain(fsck))
    group.command("backup", rich_help_panel="The store")(plain(backup))
    group.command("ping", rich_help_panel="The store")(connected(ping))
    if operations:
        from flowfabric.cli import generic

        generic.add(group)
    app.add_typer(group, name="admin", rich_help_panel=panel)


async def fsck(
    session: Session,
    store: Store = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild index entries that disagree with their record.")
    ] = False,
) -> int:
    """Check every stored invariant. Exits with 1 when something is wrong and was not repaired.

    It may run while the store is in use. What the findings' names mean is in docs/reference/invariants.md.
    """
    from flowfabric import backends
    from flowfabric.cli import output, target

    url = await target.require_store(target.choose_store(server=None, store=store))
    backend = await backends.connect(url)
    try:
        report = await backend.maintenance.fsck(repair=repair, progress=_progress("checked"))
    finally:
        await backend.close()
    open_findings = [finding for finding in report.findings if not finding.repaired]
    if session.as_json:
        output.document(report)
        return 1 if open_findings else 0
    output.table(
        ("INVARIANT", "SUBJECT", "FINDING", "REPAIRED"),
        [
            (finding.invariant, finding.subject, finding.message, "yes" if finding.repaired else "no")
            for finding in report.findings
        ],
        empty="nothing is wrong",
    )
    output.line(
        f"checked {report.executions} executions, {report.attempts} attempts, {report.frames} frames: "
        f"{len(report.findings)} findings, {len(report.findings) - len(open_findings)} repaired"
    )
    if open_findings:
        step = (
            "some cannot be repaired: restore a backup, or report them"
            if repair
            else "`--repair` rebuilds index entries"
        )
        output.note(f"next: {step}")
    return 1 if open_findings else 0


async def backup(
    session: Session,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The new file; it must not exist.")],
    store: Store = None,
) -> None:
    """Copy a store to a new file while it is in use. The copy is one consistent state."""
    from flowfabric import backends
    from flowfabric.cli import output, target
    from flowfabric.contract.errors import Misuse

    if destination.exists():
        raise Misuse(f"{destination} exists already", next="name a file that does not exist")
    if not destination.parent.is_dir():
        raise Misuse(
            f"{destination.parent} is no folder", next="make it first, or name a file in another folder"
        )
    url = await target.require_store(target.choose_store(server=None, store=store))
    backend = await backends.connect(url)
    try:
        report = await backend.maintenance.backup(destination, progress=_progress("copied"))
    finally:
        await backend.close()
    if session.as_json:
        output.document(report)
        return
    output.line(f"{report.path}: {report.bytes} bytes in {output.duration(report.elapsed_ms)}")


async def ping(session: Session) -> None:
    """Reach the server or store and show what it is."""
    from flowfabric.backends.urls import public_url
    from flowfabric.cli import output

    client = await session.client()
    await client.ping()
    found = await client.stores.capabilities()
    if session.as_json:
        output.document(found)
        return
    output.fields(
        [
            ("url", public_url(session.target.url)),
            ("store", f"{found.family} {found.version}"),
            ("flowfabric", found.flowfabric),
            ("durability", found.durability.value),
            ("partitions", str(found.partitions.flow)),
        ]
    )


def _progress(verb: str) -> Callable[[int, int], None] | None:
    """Show progress on one line of a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\r{verb} {done} of {total}", end=end, file=sys.stderr, flush=True)

    return show
