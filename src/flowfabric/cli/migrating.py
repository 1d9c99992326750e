"""`flowfabric migrate`: bring a store's schema up to date on purpose, before the processes that need it start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flowfabric.cli.command import Session, plain

if TYPE_CHECKING:
    from flowfabric.backends.migrations import MigrationReport
    from flowfabric.contract.ids import PartitionCounts

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store, such as postgresql://owner@host/database; one with a password is better in FLOWFABRIC_URL, "
        "which `ps` does not show.",
        show_default=False,
    ),
]
Partitions = Annotated[
    int | None,
    typer.Option(
        min=1, max=65_535, metavar="NUMBER", help="For a new store; fixed for ever.", show_default=False
    ),
]


def add(app: typer.Typer, panel: str) -> None:
    """Add the command."""
    app.command("migrate", rich_help_panel=panel)(plain(migrate))


async def migrate(
    session: Session,
    store: Store = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and change nothing.")] = False,
    grant: Annotated[
        list[str] | None,
        typer.Option(
            "--grant",
            metavar="ROLE",
            help="Let a database role use the store, without any right to change its schema; may be repeated.",
            show_default=False,
        ),
    ] = None,
    flow_partitions: Partitions = None,
    budget_partitions: Partitions = None,
    quota_partitions: Partitions = None,
) -> None:
    """Bring a Postgres store up to date, made when there is none.

    Needs a role that owns the schema or may make it; servers and workers need none such. Stop them before an upgrade
    that has migrations. SQLite and Valkey stores are brought up to date whenever they are opened.
    """
    from flowfabric import backends
    from flowfabric.cli import output, target

    url = target.choose_store(server=None, store=store)
    if plan:
        target.existing_store(url)
    report = await backends.migrate(
        url,
        plan_only=plan,
        partitions=_counts(flow_partitions, budget_partitions, quota_partitions),
        grant=grant or (),
    )
    if session.as_json:
        output.document(report)
        return
    for text in _lines(report):
        output.line(text)
    if plan and (report.steps or report.replaces_functions):
        output.note("next: `flowfabric migrate` without --plan does it")


def _counts(flow: int | None, budget: int | None, quota: int | None) -> PartitionCounts | None:
    from flowfabric.contract.ids import PartitionCounts

    given = {"flow": flow, "budget": budget, "quota": quota}
    asked = {name: count for name, count in given.items() if count is not None}
    return PartitionCounts(**asked) if asked else None


def _lines(report: MigrationReport) -> list[str]:
    if report.when_opened:
        return [f"{report.store}: a store of this kind is brought up to date whenever it is opened"]
    verb = "" if report.done else "would be "
    lines: list[str] = []
    if report.is_new:
        lines.append(f"{verb}made: the store")
    lines += [f"{verb}applied: {step}" for step in report.steps]
    if report.replaces_functions:
        lines.append(f"{verb}replaced: the functions" if not report.is_new else f"{verb}made: its functions")
    lines += [f"{verb}granted to: {role}" for role in report.granted]
    return lines or [f"{report.store} is up to date"]
