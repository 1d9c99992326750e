"""Real Valkey servers on free loopback ports, alone or as a cluster, and a plain socket to talk to one.

They end with the test process, however that ends.
The socket is blocking and owes nothing to the client under test, so that what it sees is the truth.
"""

from __future__ import annotations

import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import hiredis

from flowfabric.provision.processes import BoundProcess
from flowfabric.provision.valkey import find_server

START_TIMEOUT_S: Final = 10.0
# Below the ports that systems give to outgoing connections, so that one is still free when a server starts again.
_PORTS: Final = range(11_000, 22_000)
_next_port = random.choice(_PORTS)


def free_port() -> int:
    """Return a port that is free, as is the one 10,000 above it (a cluster's bus)."""
    global _next_port  # noqa: PLW0603 - two servers of one run must not be given the same port
    while True:
        _next_port += 1
        if _next_port >= _PORTS.stop:
            _next_port = _PORTS.start
        try:
            for port in (_next_port, _next_port + 10_000):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return _next_port


class Line:
    """A blocking connection that sends a command and returns its reply; errors are raised."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._reader = hiredis.Reader(notEnoughData=...)

    def __call__(self, *command: str | int | bytes) -> Any:
        self._socket.sendall(hiredis.pack_command(command))  # pyright: ignore[reportArgumentType]
        while (reply := self._reader.gets()) is ...:
            data = self._socket.recv(65_536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Server:
    """A `valkey-server` process that can be killed, stopped and started again at the same place."""

    def __init__(self, *options: str) -> None:
        # A socket's path ends at 108 bytes (104 on macOS): pytest's own folders are too deep.
        self.folder: Final = tempfile.mkdtemp(prefix="ff-wire-")
        self.port: Final = free_port()
        self.path: Final = f"{self.folder}/s.sock"
        self._options: Final = options
        self._process: BoundProcess | None = None
        self._line: Line | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [
            find_server(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder),
            *("--unixsocket", self.path, "--enable-debug-command", "yes", "--loglevel", "warning"),
            *self._options,
        ]
        self._process = BoundProcess(command, output=Path(self.folder) / "valkey.log")
        eventually(self._is_up, f"{self.name} answers")

    def kill(self) -> None:
        """Kill the process as a crash would."""
        self.kill_line()
        if self._process is not None:
            self._process.kill()
            self._process = None

    def kill_line(self) -> None:
        """Close the control connection; the next call opens another."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def send_signal(self, number: int) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def call(self, *command: str | int | bytes) -> Any:
        """Send a command on the control connection."""
        if self._line is None:
            self._line = Line(self.port)
        return self._line(*command)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_up(self) -> bool:
        try:
            line = Line(self.port)
        except OSError:
            return False
        try:
            return bool(line("PING"))
        except (hiredis.ReplyError, ConnectionError) as error:
            return any(code in str(error) for code in ("NOAUTH", "LOADING"))
        finally:
            line.close()


class Cluster:
    """Three primaries, each with one replica; at first `nodes` 0-2 are the primaries."""

    def __init__(self, *options: str) -> None:
        self.nodes: Final = [
            Server("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *_QUICK, *options)
            for _ in range(6)
        ]
        third = 16_384 // 3
        for position, node in enumerate(self.nodes):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", position + 1)
            self.nodes[0].call("CLUSTER", "MEET", "127.0.0.1", node.port)
        for position in range(3):
            last = 16_383 if position == 2 else (position + 1) * third - 1
            self.nodes[position].call("CLUSTER", "ADDSLOTSRANGE", position * third, last)
        eventually(lambda: all(self._known(node) == 6 for node in self.nodes), "all nodes know each other")
        for position in range(3):
            identity = self.nodes[position].call("CLUSTER", "MYID")
            self.nodes[position + 3].call("CLUSTER", "REPLICATE", identity)
        eventually(self.is_whole, "the cluster is whole")

    @property
    def url(self) -> str:
        return "valkey+cluster://" + ",".join(node.name for node in self.nodes[:3])

    def is_whole(self) -> bool:
        """Say whether every node sees every slot served and every replica follows its primary."""
        roles = [node.call("INFO", "replication") for node in self.nodes]
        return (
            all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in self.nodes)
            and all(len(self._owners(node)) == 3 for node in self.nodes)
            and sum(b"master_link_status:up" in role for role in roles) == 3
        )

    def owner(self, slot: int) -> Server:
        """Return the server that owns the slot by the account of those that are up."""
        for node in self.nodes:
            try:
                entries = node.call("CLUSTER", "SLOTS")
            except OSError:
                continue
            for first, last, owner, *_ in entries:
                if first <= slot <= last:
                    return next(node for node in self.nodes if node.port == owner[1])
        raise AssertionError(f"nobody owns slot {slot}")

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def begin_move(self, slot: int, source: Server, target: Server) -> None:
        """Open a slot for the classic migration from one primary to another."""
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.call("CLUSTER", "MYID"))
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.call("CLUSTER", "MYID"))

    def move_keys(self, slot: int, source: Server, target: Server, *, count: int) -> int:
        """Move up to `count` keys of a slot that is open; return how many were moved."""
        keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, source: Server, target: Server) -> None:
        """Give a slot whose keys were all moved to its new owner."""
        identity = target.call("CLUSTER", "MYID")
        target.call("CLUSTER", "SETSLOT", slot, "NODE", identity)
        source.call("CLUSTER", "SETSLOT", slot, "NODE", identity)

    def _known(self, node: Server) -> int:
        lines = node.call("CLUSTER", "NODES").decode().splitlines()
        return sum("handshake" not in line for line in lines)

    def _owners(self, node: Server) -> set[int]:
        return {owner[1] for _, _, owner, *_ in node.call("CLUSTER", "SLOTS")}


_QUICK: Final = ("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0")


def eventually(holds: Callable[[], bool], what: str, *, within_s: float = START_TIMEOUT_S) -> None:
    """Wait, blocking, until something holds."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)  # sleeps: another process is asked again shortly
