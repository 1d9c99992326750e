"""What a scenario measures on: an empty store of one kind, and meters for it.

A place is SQLite in a folder of its own, one Valkey server, a cluster, or one Postgres server; it is gone when the
scenario is. A meter
counts between `start` and `stop`, any number of times: wall time, this process's CPU, the store's CPU where the store
has processes of its own, and the commands it got.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from bench.measure import own_cpu_s
from bench.postgres import Postgres, StatementCounter, binaries
from bench.servers import Build, Cluster, Counter, Valkey, best_build, cores

SQLITE: Final = "sqlite"
VALKEY: Final = "valkey"
CLUSTER: Final = "valkey-cluster"
POSTGRES: Final = "postgres"
STORES: Final = (SQLITE, VALKEY, CLUSTER, POSTGRES)
VALKEYS: Final = frozenset({VALKEY, CLUSTER})


class Counting(Protocol):
    """Counts the commands that clients send."""

    def stop(self) -> int:
        """Stop counting; return how many there were."""
        ...


@dataclass
class Place:
    """An empty store."""

    store: str
    url: str
    nodes: Sequence[Valkey] = ()
    build: Build | None = None
    postgres: Postgres | None = None

    @property
    def has_server(self) -> bool:
        """Whether the store has processes of its own."""
        return bool(self.nodes) or self.postgres is not None

    def meter(self) -> Meter:
        """Return a meter at zero."""
        return Meter(self)

    def cpu_s(self) -> float:
        """Return the CPU seconds the store's processes have used; 0 when it has none."""
        if self.postgres is not None:
            return self.postgres.cpu_s()
        return sum(node.cpu_s() for node in self.nodes)

    def counter(self) -> Counting:
        """Begin to count the commands that clients send; it slows the store down a little."""
        return StatementCounter(self.postgres) if self.postgres is not None else Counter(self.nodes)

    def commands(self) -> int | None:
        """Return how many commands were executed, those inside functions included; None when that is not known."""
        return sum(node.commands() for node in self.nodes) if self.nodes else None


@dataclass
class Meter:
    """Sums over every stretch between `start` and `stop`."""

    place: Place
    wall_s: float = 0.0
    cpu_s: float = 0.0
    server_s: float = 0.0
    _from: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0), repr=False)

    def start(self) -> Meter:
        """Begin a stretch."""
        server = self.place.cpu_s()
        self._from = (time.perf_counter(), own_cpu_s(), server)
        return self

    def stop(self) -> Meter:
        """End a stretch."""
        wall, cpu = time.perf_counter(), own_cpu_s()
        self.wall_s += wall - self._from[0]
        self.cpu_s += cpu - self._from[1]
        self.server_s += self.place.cpu_s() - self._from[2]
        return self

    def figures(self, tasks: int, **more: Any) -> dict[str, Any]:
        """Return tasks per second and CPU microseconds per task of this process (`cpu_us`) and of the store."""
        found: dict[str, Any] = {"per_s": tasks / self.wall_s, "cpu_us": self.cpu_s / tasks * 1e6, **more}
        if self.place.has_server:
            found["server_us"] = self.server_s / tasks * 1e6
        return found


@asynccontextmanager
async def place(store: str, *, pinned: bool = True) -> AsyncIterator[Place]:
    """Make an empty store. `pinned`: servers on the last core and this process on the first."""
    if store == SQLITE:
        with tempfile.TemporaryDirectory() as folder:
            yield Place(store, f"sqlite:///{folder}/bench.db")
        return
    if store == POSTGRES:
        server = Postgres(core=_separate(pinned=pinned))
        try:
            yield Place(store, server.url, postgres=server)
        finally:
            server.drop()
        return
    build = best_build()
    if build is None:
        raise RuntimeError("no valkey-server was found")
    core = _separate(pinned=pinned)
    cluster = Cluster(build, core=core) if store == CLUSTER else None
    nodes = cluster.nodes if cluster is not None else [Valkey(build, core=core)]
    try:
        yield Place(store, _url(nodes, is_cluster=cluster is not None), nodes, build)
    finally:
        for node in nodes:
            node.drop()


def _url(nodes: Sequence[Valkey], *, is_cluster: bool) -> str:
    if is_cluster:
        return "valkey+cluster://" + ",".join(node.name for node in nodes)
    return f"valkey://{nodes[0].name}/0"


def _separate(*, pinned: bool) -> int | None:
    """Move this process to the first core; return the one for the servers, None when they may go anywhere."""
    found = cores()
    if not pinned or len(found) < 2:
        return None
    os.sched_setaffinity(0, {found[0]})
    return found[-1]


def startable() -> list[str]:
    """Return the stores that can be measured on this machine."""
    return [
        store
        for store in STORES
        if store == SQLITE
        or (store in VALKEYS and best_build() is not None)
        or (store == POSTGRES and binaries() is not None)
    ]
