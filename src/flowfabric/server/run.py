"""Running a server: open the store, start the engine, listen, and stop in order.

The order of stopping: no new connections and not ready; long waits end; requests in flight finish (15 s); the engine
stops (15 s); the store is closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import uvicorn

from flowfabric.backends import connect
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import FlowFabricError, Misuse
from flowfabric.contract.ids import Lane
from flowfabric.contract.lane import LaneList, LaneSetState
from flowfabric.contract.states import Durability, LaneState
from flowfabric.engine.supervisor import Engine
from flowfabric.server.app import Application, MetricsApplication, create_app
from flowfabric.server.protocol import Connections, Deadlines, protocol_for
from flowfabric.server.settings import ServerSettings
from flowfabric.server.waiting import Load
from flowfabric.signals import install_signals
from flowfabric.telemetry import log, metrics

_LOG: Final = log.get_logger("flowfabric.server")

GRACE_S: Final = 15.0
BACKLOG: Final = 2_048
METRICS_CONNECTIONS: Final = 64
_LEVELS: Final = (Durability.MEMORY, Durability.FSYNC, Durability.REPLICATED)


class _Server(uvicorn.Server):
    """uvicorn, with long waits ended before it waits for requests in flight.

    A signal only asks it to stop; it does not end the process, so that the engine and the store are closed too.
    """

    def __init__(self, config: uvicorn.Config, application: Application | None, *, signals: bool) -> None:
        super().__init__(config)
        self._application = application
        self._signals = signals

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        restore = install_signals(self._stop) if self._signals else None
        try:
            yield
        finally:
            if restore is not None:
                restore()

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._application is not None:
            self._application.drain()
        await super().shutdown(sockets=sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only on sockets that name their protocol; with it answers come 40 ms late.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise Misuse(
            f"cannot listen on {host}:{port}: {error.strerror or error}; is another server running there? "
            "Choose another address with --listen"
        ) from error
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening


def _config(app: Any, protocol: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(GRACE_S),
        backlog=BACKLOG,
    )


async def check_durability(backend: Backend, required: Durability | None) -> None:
    """Refuse a store that promises less than `FF_REQUIRE_DURABILITY` asks.

    Raises: `Misuse`.
    """
    if required is None:
        return
    level = (await backend.capabilities()).durability
    if _LEVELS.index(level) < _LEVELS.index(required):
        raise Misuse(f"FF_REQUIRE_DURABILITY asks for {required.value}, the store promises {level.value}")


async def seed_lanes(backend: Backend, lanes: tuple[str, ...]) -> None:
    """Create the configured lanes that do not exist yet, without touching the state of those that do."""
    if not lanes:
        return
    known: set[str] = set()
    cursor: str | None = None
    while True:
        page = await backend.lane.list(LaneList(cursor=cursor))
        known.update(lane.lane for lane in page.lanes)
        cursor = page.next_cursor
        if cursor is None:
            break
    for lane in lanes:
        if lane not in known:
            await backend.lane.set_state(LaneSetState(lane=Lane(lane), state=LaneState.ACTIVE))


class RunningServer:
    """A server that runs in this process."""

    def __init__(self, application: Application, url: str) -> None:
        self.application = application
        self.url = url


@asynccontextmanager
async def listening(
    backend: Backend,
    settings: ServerSettings,
    *,
    signals: bool = False,
    deadlines: Deadlines | None = None,
) -> AsyncGenerator[tuple[RunningServer, asyncio.Task[None]]]:
    """Serve a store that is already open; yields the server and the task that ends when it stops."""
    application = create_app(backend, settings)
    bound = _bind(settings.host, settings.port)
    host, port = bound.getsockname()[:2]
    connections = Connections(application.load, settings.connections, deadlines)
    server = _Server(_config(application, protocol_for(connections)), application, signals=signals)
    servers = [server]
    serving = asyncio.create_task(server.serve(sockets=[bound]), name="flowfabric-http")
    tasks = [serving]
    try:
        if settings.metrics_address is not None:
            scraper, scraping = _serve_metrics(settings)
            servers.append(scraper)
            tasks.append(scraping)
        while not all(one.started for one in servers) and not any(task.done() for task in tasks):  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        shown = f"[{host}]" if ":" in host else host
        yield RunningServer(application, f"http://{shown}:{port}"), serving
    finally:
        for one in servers:
            one.should_exit = True
        await _ended(tasks)
        bound.close()


def _serve_metrics(settings: ServerSettings) -> tuple[_Server, asyncio.Task[None]]:
    """Serve `/metrics` at its own address."""
    assert settings.metrics_address is not None, "the caller looked"
    bound = _bind(*settings.metrics_address)
    connections = Connections(Load(settings.stream_operations), METRICS_CONNECTIONS)
    server = _Server(_config(MetricsApplication(), protocol_for(connections)), None, signals=False)
    return server, asyncio.create_task(server.serve(sockets=[bound]), name="flowfabric-metrics")


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    """Wait until the servers have stopped, within the grace."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    done, late = await asyncio.wait(tasks, timeout=GRACE_S + 5.0)
    if late or loop.time() - started > GRACE_S:
        metrics.shutdown_timed_out()
        _LOG.warning("requests_overran_shutdown", grace_s=GRACE_S)
    for task in late:
        task.cancel()
    for task in done:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _LOG.error("server_failed", error=type(error).__name__)


@asynccontextmanager
async def running(
    store: Backend | str,
    settings: ServerSettings | None = None,
    *,
    port: int = 0,
    engine: bool = True,
    deadlines: Deadlines | None = None,
) -> AsyncGenerator[str]:
    """Run a server in this process on a free loopback port until the block ends; yields its base URL.

    A store given as a URL is opened and closed with the server.
    """
    chosen = settings if settings is not None else ServerSettings.load({}, listen=f"127.0.0.1:{port}")
    backend = await connect(store) if isinstance(store, str) else store
    timers = Engine(backend)
    try:
        if engine:
            await timers.start()
        async with listening(backend, chosen, deadlines=deadlines) as (server, _):
            yield server.url
    finally:
        await timers.stop(GRACE_S)
        if isinstance(store, str):
            await backend.close()


async def serve(settings: ServerSettings) -> None:
    """Run a server until SIGINT or SIGTERM.

    Raises: `Misuse` for settings that cannot work, and what opening the store raises.
    """
    backend = await connect(
        settings.store, partitions=settings.partitions, retention_ms=settings.retention_ms
    )
    engine = Engine(backend)
    try:
        await check_durability(backend, settings.require_durability)
        await seed_lanes(backend, settings.lanes)
        if settings.engine:
            await engine.start()
        async with listening(backend, settings, signals=True) as (server, serving):
            capabilities = await backend.capabilities()
            _LOG.info(
                "serving",
                url=server.url,
                store=backend.url,
                durability=capabilities.durability.value,
                docs="/docs",
            )
            if not settings.tokens:
                _LOG.warning(
                    "no_token", message="every local user can read and change everything: set FF_API_TOKEN"
                )
            await asyncio.wait((serving,))
    finally:
        await engine.stop(GRACE_S)
        try:
            await asyncio.wait_for(backend.close(), GRACE_S)
        except (TimeoutError, FlowFabricError):
            metrics.shutdown_timed_out()
            _LOG.warning("store_close_overran", grace_s=GRACE_S)
