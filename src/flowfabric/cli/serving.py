"""`flowfabric serve` and `flowfabric worker`: the two kinds of processes of a deployment."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import typer

from flowfabric.cli.command import COMMON_OPTIONS, Session, connected, make

Reference = Annotated[
    str,
    typer.Argument(metavar="APP", help="module:app, module, or a file such as app.py.", show_default=False),
]
LEVELS: Final = "debug|info|warning|error"
FORMATS: Final = "auto|text|json"


def add(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    app.command("serve", rich_help_panel=panel)(serve_command())
    app.command("worker", rich_help_panel=panel)(connected(worker, stays=True))


# serve ------------------------------------------------------------------------------------------------------------

SERVE_OPTIONS: Final[dict[str, tuple[str, str, str]]] = {
    # field: (option, metavar, what it says; the variable and its meaning are added from the server's own table)
    "store": ("--store", "URL", "FF_STORE"),
    "listen": ("--listen", "HOST:PORT", "FF_LISTEN_ADDR"),
    "token_file": ("--token-file", "FILE", "FF_API_TOKEN_FILE"),
    "metrics_address": ("--metrics-listen", "HOST:PORT", "FF_METRICS_ADDR"),
    "cors_origins": ("--cors-origins", "LIST", "FF_CORS_ORIGINS"),
    "lanes": ("--lanes", "LIST", "FF_LANES"),
    "stream_operations": ("--stream-operations", "NUMBER", "FF_MAX_CONCURRENT_STREAM_OPS"),
    "retention_ms": ("--retention-ms", "NUMBER", "FF_RETENTION_MS"),
    "require_durability": ("--require-durability", "memory|fsync|replicated", "FF_REQUIRE_DURABILITY"),
    "log_level": ("--log-level", LEVELS, "FF_LOG_LEVEL"),
    "log_format": ("--log-format", FORMATS, "FF_LOG_FORMAT"),
}


def serve_command() -> Callable[..., None]:
    """Make the command `serve`: an option for every setting, described as the server describes it."""
    from flowfabric.server.variables import VARIABLES

    parameters: list[tuple[str, Any, Any]] = []
    for field, (option, metavar, variable) in SERVE_OPTIONS.items():
        known = VARIABLES[variable]
        default = f" Default: {known.default}." if known.default else ""
        help_text = f"{known.meaning}{default} ({variable})"
        parameters.append((field, _text(option, metavar, help_text), None))
    for family in PARTITIONED:
        variable = f"FF_{family.upper()}_PARTITIONS"
        known = VARIABLES[variable]
        help_text = f"{known.meaning} Default: {known.default}. ({variable})"
        parameters.append(
            (f"{family}_partitions", _text(f"--{family}-partitions", "NUMBER", help_text), None)
        )
    engine = Annotated[
        bool | None,
        typer.Option(
            "--engine/--no-engine", help=VARIABLES["FF_ENGINE"].meaning + " (FF_ENGINE)", show_default=False
        ),
    ]
    parameters.append(("engine", engine, None))
    parameters += [(name, annotation, default) for name, (annotation, default) in COMMON_OPTIONS.items()]
    doc = (
        "Run a server for a store until SIGTERM or Ctrl-C.\n\nEvery option has its FF_ variable; the option beats it. "
        "Tokens come from FF_API_TOKEN or a file, never from the command line, which others on the host can read."
    )
    return make("serve", doc, parameters, serve, stays=True)


def _text(option: str, metavar: str, help_text: str) -> Any:
    return Annotated[str | None, typer.Option(option, metavar=metavar, help=help_text, show_default=False)]


PARTITIONED: Final = ("flow", "budget", "quota")


def serve(session: Session, arguments: dict[str, Any]) -> Awaitable[int | None]:
    """Run a server with these options over the environment's variables."""

    async def run() -> None:
        from flowfabric.server import run as server
        from flowfabric.server.settings import ServerSettings

        environ = dict(os.environ)
        for family in PARTITIONED:
            given = arguments[f"{family}_partitions"]
            if given is not None:
                environ[f"FF_{family.upper()}_PARTITIONS"] = given
        overrides = {field: arguments[field] for field in (*SERVE_OPTIONS, "engine")}
        settings = ServerSettings.load(environ, **overrides)
        configure_logs(settings.log_level, settings.log_format)
        await server.serve(settings)

    return run()


# worker -----------------------------------------------------------------------------------------------------------


Processes = Annotated[int, typer.Option("--processes", "-p", min=1, max=256, help="How many processes.")]
Concurrency = Annotated[
    int, typer.Option("--concurrency", "-c", min=1, max=10_000, help="Tasks at once in each process.")
]
Lanes = Annotated[
    list[str] | None,
    typer.Option(
        "--lane",
        metavar="NAME",
        help="Where to look for work; may be repeated. Default: the tasks' lanes and `default`.",
    ),
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option("--capability", metavar="TOKEN", help="What tasks may require; may be repeated."),
]
NamespaceName = Annotated[str, typer.Option("--namespace", metavar="NAME", help="The tenant.")]
WorkerName = Annotated[
    str | None,
    typer.Option(
        "--worker-id", metavar="NAME", help="Default: the app's name and this host.", show_default=False
    ),
]
LeaseTtl = Annotated[
    str, typer.Option("--lease-ttl", metavar="TIME", help="Out of reach so long, others take its work over.")
]
DrainTimeout = Annotated[
    str, typer.Option("--drain-timeout", metavar="TIME", help="How long running tasks may take to finish.")
]
Timers = Annotated[
    bool, typer.Option("--engine/--no-engine", help="Run the store's timers; only with --store.")
]
Reload = Annotated[bool, typer.Option("--reload", help="Start afresh when the app's files change.")]
LogLevel = Annotated[str, typer.Option("--log-level", metavar=LEVELS)]
LogFormat = Annotated[str, typer.Option("--log-format", metavar=FORMATS)]


async def worker(  # noqa: PLR0913, PLR0917 -- options, each given by name on the command line
    session: Session,
    app: Reference,
    processes: Processes = 1,
    concurrency: Concurrency = 16,
    lanes: Lanes = None,
    capabilities: Capabilities = None,
    namespace: NamespaceName = "default",
    worker_id: WorkerName = None,
    lease_ttl: LeaseTtl = "30s",
    drain_timeout: DrainTimeout = "30s",
    timers: Timers = True,
    reload: Reload = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "auto",
) -> int | None:
    """Run an app's tasks against a server or a store, until SIGTERM or Ctrl-C, then drain.

    The first signal lets running tasks finish within the drain timeout and hands the others back; a second one hands
    them back at once. It needs nothing but the URL of a server (and its token) or of a store.
    """
    from flowfabric.client.durations import milliseconds
    from flowfabric.worker.entry import WorkerSettings, work
    from flowfabric.worker.loading import load_app

    level, style = configure_logs(log_level, log_format)
    chosen = session.target
    settings = WorkerSettings(
        app=app,
        url=chosen.url,
        token=(chosen.token or os.environ.get("FLOWFABRIC_TOKEN") or None) if chosen.is_server else None,
        worker_id=worker_id,
        namespace=namespace,
        lanes=tuple(lanes or ()),
        capabilities=tuple(capabilities or ()),
        concurrency=concurrency,
        processes=processes,
        lease_ttl_s=milliseconds(lease_ttl, "--lease-ttl") / 1_000,
        drain_timeout_s=milliseconds(drain_timeout, "--drain-timeout") / 1_000,
        timers=timers,
        reload=reload,
        log_level=level,
        log_format=style,
    )
    loaded = load_app(app)
    if processes > 1 or reload:
        from flowfabric.worker.processes import supervise

        return await supervise(settings)
    await work(settings, loaded)
    return None


def configure_logs(level: str, style: str) -> tuple[Any, Any]:
    """Set up this process's logs and return level and format.

    Raises: `Misuse` for a level or format there is not.
    """
    from flowfabric.contract.errors import Misuse
    from flowfabric.telemetry import log

    if level not in LEVELS.split("|"):
        raise Misuse(f"{level!r} is no log level", next=f"one of {LEVELS}")
    if style not in FORMATS.split("|"):
        raise Misuse(f"{style!r} is no log format", next=f"one of {FORMATS}")
    chosen_level: Any = level
    chosen_style: Any = style
    log.configure(chosen_level, chosen_style)
    return chosen_level, chosen_style
