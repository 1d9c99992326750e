"""Running a worker as a process: open the store or the server's URL, load the app, work until told to stop.

`run_worker` is what the command line calls; with several processes, or to reload on changes, it supervises children
that each run `python -m flowfabric.worker`. A worker that opens a store itself runs the store's timers too.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from flowfabric import backends
from flowfabric.client.endpoint import is_server_url
from flowfabric.contract import ids, limits
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import FlowFabricError, Misuse, Refused, Unavailable
from flowfabric.engine.supervisor import Engine
from flowfabric.telemetry import log
from flowfabric.worker.app import App
from flowfabric.worker.heartbeat import StoresFactory
from flowfabric.worker.loading import load_app
from flowfabric.worker.runtime import CONCURRENCY_DEFAULT, DRAIN_DEFAULT_S, Worker

_LOG: Final = log.get_logger("flowfabric.worker")

URL_VARIABLE: Final = "FLOWFABRIC_URL"
TOKEN_VARIABLE: Final = "FLOWFABRIC_TOKEN"  # noqa: S105 -- the variable's name
ENGINE_GRACE_S: Final = 5.0

DONE, MISUSE, UNREACHABLE, REFUSED = 0, 2, 3, 4
"""Exit codes."""


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a worker process is told."""

    app: str
    """`module:app`, `module`, `app.py` or `app.py:app`."""
    url: str
    """A store's or a server's."""
    token: str | None = None
    worker_id: str | None = None
    namespace: str = ids.DEFAULT_NAMESPACE
    lanes: tuple[str, ...] = ()
    """Empty: the tasks' own, and `default`."""
    capabilities: tuple[str, ...] = ()
    concurrency: int = CONCURRENCY_DEFAULT
    processes: int = 1
    lease_ttl_s: float = limits.LEASE_TTL_DEFAULT_MS / 1_000
    drain_timeout_s: float = DRAIN_DEFAULT_S
    timers: bool = True
    """Run the store's timers, when the URL is a store's."""
    reload: bool = False
    """Start afresh when a Python file in the app's folder changes; running attempts finish."""
    log_level: log.Level = "info"
    log_format: log.Format = "auto"


class Opened(msgspec.Struct, frozen=True):
    """Stores, and how the renewal thread gets its own."""

    stores: Stores
    factory: StoresFactory | None


@asynccontextmanager
async def open_stores(url: str, *, token: str | None = None, timers: bool = True) -> AsyncGenerator[Opened]:
    """Open a store by its URL, with its timers running, or prepare to talk to a server.

    Raises: Misuse for a URL that is neither, and what opening a store raises.
    """
    if is_server_url(url):
        # Imported here because the HTTP machinery takes longer to import than everything else, and stores need none.
        from flowfabric.client.http import HttpStores  # noqa: PLC0415

        async def another() -> Stores:
            return HttpStores(url, token=token)

        server = HttpStores(url, token=token)
        try:
            yield Opened(server, another)
        finally:
            await server.close()
        return
    if token is not None:
        raise Misuse("a token goes with a server's URL: a store that is opened directly needs none")
    backend = await backends.connect(url)
    engine = Engine(backend) if timers else None
    try:
        if engine is not None:
            await engine.start()
        # The renewal thread asks the store itself for one that takes calls from its event loop.
        yield Opened(backend, None)
    finally:
        if engine is not None:
            await engine.stop(ENGINE_GRACE_S)
        await backend.close()


async def work(
    settings: WorkerSettings, app: App, *, started: Callable[[Worker], None] | None = None
) -> None:
    """Run one worker in this event loop until SIGTERM or SIGINT, then drain it."""
    async with open_stores(settings.url, token=settings.token, timers=settings.timers) as opened:
        worker = Worker(
            opened.stores,
            app,
            worker_id=settings.worker_id,
            namespace=settings.namespace,
            lanes=settings.lanes or None,
            concurrency=settings.concurrency,
            capabilities=settings.capabilities,
            lease_ttl=settings.lease_ttl_s,
            drain_timeout=settings.drain_timeout_s,
            stores_factory=opened.factory,
        )
        if started is not None:
            started(worker)
        await worker.run(handle_signals=True)


def run_worker(settings: WorkerSettings) -> int:
    """Run a worker, or supervise several, until SIGTERM or SIGINT; return the exit code.

    Errors are written to standard error: 2 for misuse, 3 when the store cannot be opened, 4 when it refuses.
    """
    log.configure(settings.log_level, settings.log_format)
    if settings.processes > 1 or settings.reload:
        from flowfabric.worker.processes import supervise  # noqa: PLC0415 -- only a parent needs it

        return _exit_code(lambda: run_loop(supervise(settings)))
    return _exit_code(lambda: _run_one(settings, supervised=False))


def run_supervised(settings: WorkerSettings) -> int:
    """Run one worker as a supervisor's child: it drains when the supervisor goes away."""
    log.configure(settings.log_level, settings.log_format)
    return _exit_code(lambda: _run_one(settings, supervised=True))


def run_loop(main: Any) -> Any:
    """Run a coroutine, on uvloop where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 -- optional
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _run_one(settings: WorkerSettings, *, supervised: bool) -> int:
    app = load_app(settings.app)
    run_loop(work(settings, app, started=_watch_parent if supervised else None))
    return DONE


def _watch_parent(worker: Worker) -> None:
    """Drain when standard input ends, which is when the supervisor is gone, however it went."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        try:
            while os.read(0, 1024):
                pass
        except OSError:
            pass
        try:
            loop.call_soon_threadsafe(worker.request_stop)
        except RuntimeError:  # the loop is closed: the worker has stopped
            return

    threading.Thread(target=watch, name="flowfabric-parent", daemon=True).start()


def _exit_code(run: Callable[[], int | None]) -> int:
    try:
        return run() or DONE
    except KeyboardInterrupt:
        return DONE
    except Misuse as error:
        return _say(error, MISUSE)
    except Unavailable as error:
        return _say(error, UNREACHABLE)
    except Refused as error:
        return _say(error, REFUSED)


def _say(error: FlowFabricError, code: int) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    return code
