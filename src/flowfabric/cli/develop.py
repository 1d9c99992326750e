"""`flowfabric dev`: server, engine and worker of an app in one process, on a store of its own, reloaded on change.

The store is a file, or a Valkey or Postgres server that is started beside and ends with this process. While `dev` runs
it holds a lock beside its store and describes itself in a file there, so that the other commands find it and a second
one on the same store is told. A reload starts a new worker; the old one finishes what it runs.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from flowfabric.cli.command import Session, plain
from flowfabric.cli.target import DEV_FILE, DEV_LOCK, FOLDER, file_of, read_running_dev
from flowfabric.contract.errors import Misuse, Refused
from flowfabric.signals import install_signals

if TYPE_CHECKING:
    from flowfabric.cli.source import AppSource
    from flowfabric.cli.watching import Watch
    from flowfabric.contract.backend import Backend
    from flowfabric.provision.loopback import LoopbackServer
    from flowfabric.worker import App, Worker

STORE: Final = f"sqlite:///{FOLDER}/dev.db"
VALKEY: Final = "valkey"
POSTGRES: Final = "postgres"
BESIDE: Final = (VALKEY, POSTGRES)
"""As a store: a server of its own, with its data in the folder of this name in the folder."""
HOST: Final = "127.0.0.1"
PORT: Final = 9090
PORTS_TRIED: Final = 20


def add(app: typer.Typer, panel: str) -> None:
    """Add the command."""
    app.command("dev", rich_help_panel=panel)(plain(dev, stays=True))


async def dev(
    session: Session,
    app: Annotated[str, typer.Argument(metavar="APP", help="A file such as app.py, or module:app.")],
    store: Annotated[
        str,
        typer.Option(
            "--store",
            metavar="URL",
            help="The store; `valkey` or `postgres` starts a server of its own for it.",
        ),
    ] = STORE,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Default: 127.0.0.1:9090, or the next free port.",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, max=10_000, help="Tasks at once.")
    ] = 16,
    capabilities: Annotated[
        list[str] | None,
        typer.Option("--capability", metavar="TOKEN", help="What tasks may require; may be repeated."),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload/--no-reload", help="Reload when the app's files change.")
    ] = True,
    drain_timeout: Annotated[
        str,
        typer.Option("--drain-timeout", metavar="TIME", help="How long running tasks may take to finish."),
    ] = "30s",
    log_level: Annotated[str, typer.Option("--log-level", metavar="debug|info|warning|error")] = "info",
) -> None:
    """Run server, engine and worker of an app in one process, and reload the app when its files change.

    Ctrl-C lets running tasks finish; a second one hands them back at once.
    """
    from flowfabric.cli.serving import configure_logs
    from flowfabric.cli.source import AppSource
    from flowfabric.cli.watching import Watch

    configure_logs(log_level, "auto")
    # The time in compiled files is too coarse to tell two quick saves apart.
    sys.dont_write_bytecode = True
    source = AppSource(app)
    watch = Watch(source.files)
    loaded = source.load()
    watch.add(source.files)
    with holding(store) as folder:
        async with AsyncExitStack() as stack:
            beside = await _start_beside(stack, store, folder)
            backend, url = await _open(stack, store, listen, beside)
            make = functools.partial(
                _worker,
                backend,
                concurrency=concurrency,
                capabilities=capabilities or [],
                drain_timeout=drain_timeout,
            )
            developing = Developing(source, watch, make)
            stack.push_async_callback(developing.stop)
            await developing.start(loaded)
            if folder is not None:
                _describe(folder, url, beside or store, app)
            await _banner(session, backend, url, beside or store, loaded, app)
            await developing.until_stopped(reload=reload)


class Developing:
    """The worker of the app as it was last loaded, and the earlier ones that still finish what they run."""

    def __init__(self, source: AppSource, watch: Watch, make: Callable[[App], Worker]) -> None:
        self._source = source
        self._watch = watch
        self._make = make
        self._worker: Worker | None = None
        self._leaving: dict[asyncio.Task[None], Worker] = {}
        self._asked = asyncio.Event()

    async def start(self, app: App) -> None:
        """Start the first worker; from here on a signal asks to stop."""
        install_signals(self._on_signal)
        worker = self._make(app)
        await worker.start()
        self._worker = worker

    async def until_stopped(self, *, reload: bool) -> None:
        """Reload on change until a signal asks to stop."""
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._asked.wait())]
        if reload:
            tasks.append(asyncio.create_task(self._reload_forever()))
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            await task

    async def stop(self) -> None:
        """Let every worker finish within its drain timeout."""
        if self._worker is not None:
            self._leave(self._worker)
            self._worker = None
        if self._leaving:
            await asyncio.wait(list(self._leaving))

    def _on_signal(self) -> None:
        from flowfabric.cli import output

        if self._asked.is_set():
            output.note("handing running tasks back")
            for worker in list(self._leaving.values()):
                worker.request_stop()
            return
        self._asked.set()
        working = [*self._leaving.values(), *([self._worker] if self._worker is not None else [])]
        running = sum(worker.running for worker in working)
        more = f": {running} running tasks finish first (Ctrl-C again hands them back)" if running else ""
        output.note(f"\nstopping{more}")

    def _leave(self, worker: Worker) -> None:
        leaving = asyncio.create_task(worker.stop())
        self._leaving[leaving] = worker
        leaving.add_done_callback(lambda task: self._leaving.pop(task, None))

    async def _reload_forever(self) -> None:
        from flowfabric.cli import output
        from flowfabric.contract.errors import FlowFabricError

        while True:
            changed = await self._watch.wait_change()
            names = ", ".join(sorted({path.name for path in changed}))
            try:
                app = self._source.load()
                worker = self._make(app)
            except FlowFabricError as error:
                output.note(f"{output.styled('error', 'bold red')}: {error.message}")
                output.note(f"{names} changed and does not load: what was loaded before goes on")
                continue
            finally:
                self._watch.add(self._source.files)
            if self._worker is not None:
                # It claims nothing more from here on, so that what comes next runs the new code.
                self._leave(self._worker)
            self._worker = worker
            await worker.start()
            output.note(f"{names} changed: reloaded  tasks  {'  '.join(app.tasks)}")


# What one `dev` is ------------------------------------------------------------------------------------------------


class AlreadyRunning(Refused):
    """Another `dev` runs on this store."""

    code = "already_running"


@contextmanager
def holding(store: str) -> Generator[Path | None]:
    """Hold the lock beside a store until the block ends; yields its folder, None for a store in memory.

    Raises: `Misuse` when the store is a server; `AlreadyRunning` when another `dev` holds the lock.
    """
    from flowfabric.backends.urls import public_url

    if store.partition(":")[0].lower() in ("http", "https"):
        raise Misuse(
            "dev brings a server of its own",
            next=f"run the app against that one: flowfabric worker APP --server {store}",
        )
    path = Path(FOLDER) / store if store in BESIDE else file_of(store)
    if path is None:
        yield None
        return
    folder = path.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    if folder.name == FOLDER and not (folder / ".gitignore").exists():
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    with (folder / DEV_LOCK).open("a+b") as file:
        if not try_lock(file.fileno()):
            running = read_running_dev(folder)
            which = (
                f" on {public_url(running.store)} at {running.url} (process {running.pid}, {running.app})"
                if running is not None
                else ", or is starting or stopping"
            )
            raise AlreadyRunning(
                f"a dev runs in {folder} already{which}",
                next="use that one: the other commands find it by themselves; or stop it, or give a --store with its "
                "data in another folder, such as sqlite:///other/dev.db",
            )
        try:
            yield folder
        finally:
            (folder / DEV_FILE).unlink(missing_ok=True)


def try_lock(descriptor: int) -> bool:
    """Lock a file for as long as this process lives; return whether nobody else had."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


async def _start_beside(stack: AsyncExitStack, store: str, folder: Path | None) -> str | None:
    """Start the server that the store is to be kept in and return its URL; None when there is none to start."""
    if folder is None or store not in BESIDE:
        return None
    server = _server_of(store, folder / store)
    stack.push_async_callback(asyncio.to_thread, server.stop)
    await asyncio.to_thread(server.start)
    return server.url


def _server_of(store: str, folder: Path) -> LoopbackServer:
    if store == POSTGRES:
        from flowfabric.provision.postgres import PostgresServer

        return PostgresServer(folder)
    from flowfabric.provision.valkey import ValkeyServer

    return ValkeyServer(folder)


async def _open(
    stack: AsyncExitStack, store: str, listen: str | None, beside: str | None
) -> tuple[Backend, str]:
    """Open the store, start its timers and the server; return the store and the server's URL.

    beside: the URL of the server that was started for it, whose credentials and durability nobody's settings name.
    """
    from flowfabric import backends
    from flowfabric.backends.urls import public_url
    from flowfabric.engine.supervisor import Engine
    from flowfabric.server.run import listening
    from flowfabric.server.settings import ServerSettings

    addresses = (
        [listen] if listen is not None else [f"{HOST}:{PORT + number}" for number in range(PORTS_TRIED)]
    )
    named = public_url(beside) if beside is not None else store
    settings = [ServerSettings.load(os.environ, listen=address, store=named) for address in addresses]
    if beside is not None:
        # It runs only as long as this process: nobody else can bring it up to date after an upgrade.
        await backends.migrate(beside, partitions=settings[0].partitions)
    backend = await backends.connect(
        beside or settings[0].store, partitions=settings[0].partitions, retention_ms=settings[0].retention_ms
    )
    stack.push_async_callback(backend.close)
    engine = Engine(backend)
    await engine.start()
    stack.push_async_callback(engine.stop)
    last: Misuse | None = None
    for chosen in settings:
        try:
            server, _ = await stack.enter_async_context(listening(backend, chosen))
        except Misuse as error:
            last = error
            continue
        return backend, server.url
    assert last is not None, "at least one address was tried"
    raise last


def _worker(
    backend: Backend, app: App, *, concurrency: int, capabilities: list[str], drain_timeout: str
) -> Worker:
    from flowfabric.worker import Worker

    return Worker(
        backend, app, concurrency=concurrency, capabilities=capabilities, drain_timeout=drain_timeout
    )


def _describe(folder: Path, url: str, store: str, app: str) -> None:
    """Write what other commands need to find this process; the lock says whether it still runs."""
    path = file_of(store)
    document = {
        "pid": os.getpid(),
        "url": url,
        "store": store if path is None else f"sqlite:///{path.absolute()}",
        "app": app,
    }
    partial = folder / f"{DEV_FILE}.{os.getpid()}"
    # The store's URL may hold a password.
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(folder / DEV_FILE)


async def _banner(session: Session, backend: Backend, url: str, store: str, app: App, reference: str) -> None:
    from flowfabric import __version__
    from flowfabric.backends.urls import public_url
    from flowfabric.cli import output

    store = public_url(store)
    capabilities = await backend.capabilities()
    tasks = list(app.tasks)
    if session.as_json:
        output.document({"url": url, "store": store, "durability": capabilities.durability, "tasks": tasks})
        return
    example = example_input(app.tasks[tasks[0]].function, Path(reference.partition(":")[0]).name)
    try_it = f"flowfabric submit {tasks[0]} --input '{example}' --tail"
    version = ".".join(__version__.split(".")[:2])
    output.line(
        f"  FlowFabric {version}  engine + server + worker  store {store} (durability: {capabilities.durability})"
    )
    for label, text in (("API", f"{url}   docs /docs"), ("tasks", "  ".join(tasks)), ("try", try_it)):
        output.line(f"  {output.styled(f'{label:<9}', 'bold', sys.stdout)}  {text}")


def example_input(function: Callable[..., Any], file_name: str) -> str:
    """Make up an input that fits a function's required arguments, as JSON."""
    simple: dict[str, Any] = {
        "int": 1,
        "float": 1.0,
        "bool": True,
        "list": [],
        "dict": {},
        "tuple": [],
        "set": [],
    }
    example: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        annotation = str(getattr(parameter.annotation, "__name__", parameter.annotation))
        is_variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if (
            annotation in ("Context", "SyncContext")
            or parameter.default is not parameter.empty
            or is_variable
        ):
            continue
        is_path = any(word in parameter.name.lower() for word in ("path", "file"))
        text = file_name if is_path and file_name.endswith(".py") else "..."
        example[parameter.name] = simple.get(annotation.partition("[")[0], text)
    return json.dumps(example, ensure_ascii=False)
