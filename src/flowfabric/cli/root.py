"""The tree of commands, put together when the process starts.

The operations of the contract are hung under `admin` only when `admin` or completion asks for them: nothing else needs
the contract before a command runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from flowfabric.cli import (
    admin,
    awaiting,
    develop,
    inspecting,
    lanes,
    migrating,
    scaffold,
    serving,
    submitting,
    workers,
)
from flowfabric.cli.command import Session, plain

NAME: Final = "flowfabric"
COMPLETE_VARIABLE: Final = "_FLOWFABRIC_COMPLETE"
SHELLS: Final = ("bash", "zsh", "fish")

BEGIN: Final = "Begin"
RUN: Final = "Run"
WORK: Final = "Work"
OPERATE: Final = "Operate"
TOOL: Final = "The tool"

EPILOG: Final = (
    "Exit status: 0 done, 1 the work failed, 2 misuse, 3 unreachable, 4 refused. "
    "Ids may be shortened. NO_COLOR is respected."
)


def build(*, operations: bool) -> typer.Typer:
    """Put the commands together, with those for every operation if asked for."""
    app = typer.Typer(
        name=NAME,
        help="Durable execution: submit work, run it, watch it, operate it.",
        epilog=EPILOG,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command("new", rich_help_panel=BEGIN)(plain(scaffold.new))
    develop.add(app, BEGIN)
    serving.add(app, RUN)
    submitting.add(app, WORK)
    awaiting.add(app, WORK)
    inspecting.add(app, WORK)
    lanes.add(app, OPERATE)
    workers.add(app, OPERATE)
    migrating.add(app, OPERATE)
    admin.add(app, OPERATE, operations=operations)
    app.command("completion", rich_help_panel=TOOL)(plain(completion))
    app.command("version", rich_help_panel=TOOL)(plain(version))
    return app


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    completing = COMPLETE_VARIABLE in os.environ
    app = build(operations=completing or "admin" in given)
    command = typer.main.get_command(app)
    if completing:
        from typer.completion import (
            completion_init,  # pyright: ignore[reportPrivateImportUsage] -- what typer's own option calls
        )

        completion_init()
    command.main(args=given, prog_name=NAME, complete_var=COMPLETE_VARIABLE)


async def completion(
    session: Session,
    shell: Annotated[
        str, typer.Argument(help="bash, zsh or fish. Default: the shell in SHELL.", metavar="[SHELL]")
    ] = "",
) -> None:
    """Print the completion script of a shell: `source <(flowfabric completion bash)`."""
    from typer.completion import (
        get_completion_script,  # pyright: ignore[reportPrivateImportUsage] -- what typer's own option calls
    )

    from flowfabric.contract.errors import Misuse

    name = shell or os.path.basename(os.environ.get("SHELL", ""))  # noqa: PTH119 -- a name, no file is touched
    if name not in SHELLS:
        raise Misuse(
            f"no completion for {name!r}" if name else "which shell is this?",
            next=f"name one of {', '.join(SHELLS)}: flowfabric completion bash",
        )
    print(get_completion_script(prog_name=NAME, complete_var=COMPLETE_VARIABLE, shell=name))


async def version(session: Session) -> None:
    """Print the version of FlowFabric, Python and SQLite."""
    import platform
    import sqlite3

    from flowfabric import __version__
    from flowfabric.cli import output

    if session.as_json:
        output.document(
            {"flowfabric": __version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        )
        return
    output.line(
        f"flowfabric {__version__} (Python {platform.python_version()}, SQLite {sqlite3.sqlite_version})"
    )
