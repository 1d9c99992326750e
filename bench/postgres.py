"""A real Postgres server for benchmarks: one of its own, as durable as Postgres is by default.

It differs from what `initdb` leaves behind in size alone: more shared buffers, connections for a crowd, and room for
write-ahead log, so that a checkpoint that falls into one round and not into another is not all that the figures show.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import asyncpg
from asyncpg import Connection

from bench.servers import on_core
from flowfabric.contract.errors import Misuse
from flowfabric.provision.loopback import Option
from flowfabric.provision.postgres import LOG, PostgresServer, find_binaries, version_of

OPTIONS: Final[Mapping[str, Option]] = {
    "shared_buffers": "1GB",
    "max_connections": 500,
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "log_parameter_max_length": 0,
}
RELOAD_S: Final = 10.0
_STATEMENT: Final = re.compile(rb" LOG:  (?:execute|statement)[ :]")


@cache
def binaries() -> Path | None:
    """Return the folder of the programs to measure; None when there is no Postgres here."""
    try:
        return find_binaries()
    except Misuse:
        return None


def described() -> dict[str, str]:
    """Say what figures are taken on: the version, and what of its settings makes them."""
    found = binaries()
    if found is None:
        return {"postgres": "none"}
    major, minor = version_of(found)
    return {"postgres": f"{major}.{minor}"}


SETTINGS: Final = "postgres: fsync=on, synchronous_commit=on, full_page_writes=on; " + ", ".join(
    f"{name}={OPTIONS[name]}" for name in ("shared_buffers", "max_wal_size", "checkpoint_timeout")
)
"""What is said under the table."""


class Postgres(PostgresServer):
    """A server that runs, with a folder of its own."""

    def __init__(self, *, core: int | None = None) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="ff-bench-")), binaries=binaries(), options=OPTIONS)
        try:
            with on_core(core):
                self.start()
        except BaseException:
            self.drop()
            raise

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes, those that have ended among them (Linux)."""
        return _ticks(self.pid, with_ended=True) + sum(_ticks(child) for child in self.processes())

    def processes(self) -> list[int]:
        """Return the ids of its processes beside the first one: of connections and of what runs by itself."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(child) for child in path.read_text(encoding="ascii").split()]

    async def connect(self) -> Connection:
        """Open a connection of the benchmark's own."""
        return await asyncpg.connect(self.url)

    def drop(self) -> None:
        """End it and remove its folder."""
        self.discard()

    def reload(self, **settings: str) -> None:
        """Change settings while it runs, and wait until it has heard of them."""
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        (self.data / "postgresql.auto.conf").write_text(lines, encoding="utf-8")
        before = self.log_size()
        os.kill(self.pid, signal.SIGHUP)
        deadline = time.monotonic() + RELOAD_S
        while b"reloading configuration files" not in self.logged_since(before):
            if time.monotonic() > deadline:
                raise RuntimeError("the server does not read its settings again")
            time.sleep(0.01)  # sleeps: another process is asked again shortly

    def log_size(self) -> int:
        """Return how much it has written to its log."""
        return (self.folder / LOG).stat().st_size

    def logged_since(self, offset: int) -> bytes:
        """Return what it wrote to its log since it was so large."""
        with (self.folder / LOG).open("rb") as file:
            file.seek(offset)
            return file.read()


class StatementCounter:
    """Counts the statements that clients send, by the server's log, between its making and `stop`."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        server.reload(log_statement="all")
        self._from = server.log_size()

    def stop(self) -> int:
        """Stop counting; return how many there were."""
        self._server.reload()
        return len(_STATEMENT.findall(self._server.logged_since(self._from)))


def _ticks(pid: int, *, with_ended: bool = False) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = text.rsplit(")", 1)[1].split()
    last = 15 if with_ended else 13
    return sum(int(field) for field in fields[11:last]) / os.sysconf("SC_CLK_TCK")
