"""Real Valkey servers for tests: one alone, and a cluster whose nodes can be killed, failed over and relieved of slots.

    with single_node(folder) as node: ...
    with cluster(folder) as found: ...

Each node has a blocking connection of its own (`call`) that owes nothing to the client under test. Everything listens
on free loopback ports and ends with the test process, however that ends.
"""

from __future__ import annotations

import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from subprocess import run
from typing import Any, Final, Generic, Self, TypeVar

import hiredis

from flowfabric.provision.loopback import HOST, PORTS, Option, is_free
from flowfabric.provision.valkey import ValkeyServer, find_server

SLOTS: Final = 16_384
CALL_TIMEOUT_S: Final = 20.0
WITHIN_S: Final = 30.0
BUS: Final = 10_000
"""What a node's port for the other nodes is above its own."""
NODE_TIMEOUT_MS: Final = 1_000
"""After which the nodes of a cluster agree that one of them is gone."""

CLUSTER_OPTIONS: Final[dict[str, Option]] = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": NODE_TIMEOUT_MS,
    "cluster-replica-validity-factor": 0,
    "cluster-migration-barrier": 99,
    "cluster-allow-replica-migration": "no",
    "repl-diskless-sync-delay": 0,
    "repl-ping-replica-period": 1,
}


@cache
def server_version() -> tuple[int, int, int]:
    """Return the version of the `valkey-server` that the tests start."""
    said = run([find_server(), "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    major, minor, patch = said.partition(" v=")[2].split()[0].split(".")[:3]
    return int(major), int(minor), int(patch)


def eventually(holds: Callable[[], bool], what: str, *, within_s: float = WITHIN_S) -> None:
    """Wait, blocking, until something holds; an unreachable node means that it does not yet."""
    until = time.monotonic() + within_s
    while True:
        with suppress(OSError):
            if holds():
                return
        assert time.monotonic() < until, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)  # sleeps: another process is asked again shortly


class Line:
    """A blocking connection that sends a command and returns its reply; errors are raised as `hiredis.ReplyError`."""

    def __init__(self, port: int, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=timeout_s)
        self._reader = hiredis.Reader(notEnoughData=...)

    def __call__(self, *command: str | int | float | bytes, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        self._socket.settimeout(timeout_s)
        self._socket.sendall(hiredis.pack_command(command))  # pyright: ignore[reportArgumentType]
        while (reply := self._reader.gets()) is ...:
            data = self._socket.recv(65_536)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Node(ValkeyServer):
    """A server to talk to and to do things to."""

    def __init__(self, folder: Path, options: Mapping[str, Option]) -> None:
        super().__init__(folder, options=options)
        self._line: Line | None = None

    @property
    def name(self) -> str:
        """`host:port`."""
        return f"{HOST}:{self.port}"

    @property
    def bus_port(self) -> int:
        """Where the other nodes of a cluster reach it."""
        return self.port + BUS

    @property
    def is_cluster(self) -> bool:
        return self.options.get("cluster-enabled") == "yes"

    def choose_port(self) -> int:
        while True:
            port = super().choose_port()
            if not self.is_cluster or (port + BUS < PORTS.stop and is_free(port + BUS)):
                return port

    def call(self, *command: str | int | float | bytes, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Send a command and return its reply; an error is raised as `hiredis.ReplyError`.

        Raises: `OSError` when it cannot be reached; the next call connects again.
        """
        try:
            if self._line is None:
                self._line = Line(self.port, timeout_s)
            return self._line(*command, timeout_s=timeout_s)
        except OSError:
            self.hang_up()
            raise

    def hang_up(self) -> None:
        """Close the connection of `call`."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def stop(self, *, timeout_s: float = 10.0) -> None:
        self.hang_up()
        super().stop(timeout_s=timeout_s)

    def kill(self) -> None:
        self.hang_up()
        super().kill()

    def send_signal(self, number: int) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def pause(self) -> None:
        """Stop the process in its tracks: it keeps its connections and answers nothing."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self.send_signal(signal.SIGCONT)

    def info(self, section: str = "everything") -> dict[str, str]:
        """Return what INFO says."""
        lines = self.call("INFO", section).decode().splitlines()
        return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}

    def is_primary(self) -> bool:
        """Say whether it takes writes by its own account."""
        return self.info("replication")["role"] == "master"

    def empty(self, *, functions: bool = False) -> None:
        """Remove all data; functions only if asked to."""
        self.call("FLUSHALL")
        if functions:
            self.call("FUNCTION", "FLUSH")


Server = TypeVar("Server", bound=Node)


class Cluster(Generic[Server]):
    """Primaries with replicas of theirs; a node keeps its place in `nodes` whatever role it has."""

    def __init__(self, nodes: Sequence[Server], *, primaries: int) -> None:
        """Make a cluster of nodes that do not run yet: first the primaries, then the replicas in the same order."""
        self.nodes: Final = list(nodes)
        self._primaries: Final = primaries

    @property
    def url(self) -> str:
        """As `backends.connect` takes it: all nodes are seeds, so that any of them may be down."""
        return "valkey+cluster://" + ",".join(node.name for node in self.nodes)

    def start(self) -> None:
        """Start all nodes and make them one cluster that serves every slot."""
        try:
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                list(pool.map(ValkeyServer.start, self.nodes))
            first, *others = self.nodes
            for epoch, node in enumerate(self.nodes, start=1):
                node.call("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            for node in others:
                first.call("CLUSTER", "MEET", HOST, node.port, node.bus_port)
            share = -(-SLOTS // self._primaries)
            for place, node in enumerate(self.nodes[: self._primaries]):
                node.call("CLUSTER", "ADDSLOTSRANGE", place * share, min((place + 1) * share, SLOTS) - 1)
            eventually(self._all_know_all, "all nodes know each other")
            for place, node in enumerate(self.nodes[self._primaries :]):
                node.call("CLUSTER", "REPLICATE", self.identity(self.nodes[place % self._primaries]))
            self.wait_whole()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all nodes at once."""
        for node in self.nodes:
            node.kill()

    # Who is who ---------------------------------------------------------------------------------------------------

    def identity(self, node: Server) -> str:
        """Return a node's id within the cluster."""
        return node.call("CLUSTER", "MYID").decode()

    def running(self) -> list[Server]:
        """Return the nodes whose process is alive."""
        return [node for node in self.nodes if node.is_running]

    def primaries(self) -> list[Server]:
        """Return the running nodes that take writes by their own account."""
        return [node for node in self.running() if node.is_primary()]

    def owner(self, slot: int) -> Server:
        """Return the node that owns a slot by its own account."""
        for node in self.primaries():
            for first, last, (_, port, *_rest), *_ in node.call("CLUSTER", "SLOTS"):
                if first <= slot <= last and port == node.port:
                    return node
        raise AssertionError(f"no running node owns slot {slot}")

    def slot_of(self, key: str) -> int:
        """Return the slot of a key."""
        return self.running()[0].call("CLUSTER", "KEYSLOT", key)

    def replicas_of(self, primary: Server) -> list[Server]:
        """Return the running replicas of a node by their own account."""
        found: list[Server] = []
        for node in self.running():
            state = node.info("replication")
            if state["role"] == "slave" and int(state["master_port"]) == primary.port:
                found.append(node)
        return found

    def wait_whole(self, *, within_s: float = WITHIN_S) -> None:
        """Wait until every running node sees every slot served and every running replica follows its primary."""
        eventually(self.is_whole, "the cluster is whole", within_s=within_s)

    def is_whole(self) -> bool:
        """Say whether all running nodes agree on who serves each slot, and every replica follows its primary."""
        views: set[tuple[tuple[int, int, int], ...]] = set()
        for node in self.running():
            if b"cluster_state:ok" not in node.call("CLUSTER", "INFO"):
                return False
            state = node.info("replication")
            if state["role"] == "slave" and state["master_link_status"] != "up":
                return False
            slots = node.call("CLUSTER", "SLOTS")
            views.add(tuple(sorted((first, last, primary[1]) for first, last, primary, *_ in slots)))
        # All agree on who owns what, and a primary that lost its slots is nobody's owner.
        covered = sum(last - first + 1 for view in views for first, last, _ in view)
        return len(views) == 1 and covered == SLOTS

    def _all_know_all(self) -> bool:
        def known(node: Server) -> int:
            lines = node.call("CLUSTER", "NODES").decode().splitlines()
            return sum("handshake" not in line and "noaddr" not in line for line in lines)

        return all(known(node) == len(self.nodes) for node in self.nodes)

    def empty(self, *, functions: bool = False) -> None:
        """Remove all data; functions only if asked to."""
        for node in self.primaries():
            node.empty(functions=functions)

    # Faults -------------------------------------------------------------------------------------------------------

    def fail_over(self, primary: Server, *, mode: str = "") -> Server:
        """Have a replica take over from its primary, which stays as a replica; return the new primary.

        mode: "" hands over without loss; "FORCE" and "TAKEOVER" do not ask the old primary (nor the others).
        """
        replica = self.replicas_of(primary)[0]

        def took_over() -> bool:
            if replica.is_primary():
                return True
            with suppress(hiredis.ReplyError):
                replica.call("CLUSTER", "FAILOVER", *([mode] if mode else []))
            return False

        eventually(took_over, f"{replica.name} takes over from {primary.name}")
        self.wait_whole()
        return replica

    def kill_primary(self, primary: Server) -> Server:
        """Kill a primary and return the replica that took over by itself; the killed node can be started again."""
        heirs = self.replicas_of(primary)
        primary.kill()

        def heir() -> Server | None:
            return next((node for node in heirs if node.is_primary()), None)

        eventually(lambda: heir() is not None, f"a replica takes over from {primary.name}")
        self.wait_whole()
        found = heir()
        assert found is not None
        return found

    # Moving slots -------------------------------------------------------------------------------------------------

    def begin_move(self, slot: int, target: Server) -> Server:
        """Open a slot for moving key by key and return its owner: absent keys are asked for at the target."""
        source = self.owner(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", self.identity(source))
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", self.identity(target))
        return source

    def move_keys(self, slot: int, source: Server, target: Server, *, count: int) -> int:
        """Move so many keys of an open slot and return how many there were."""
        keys: list[bytes] = source.call("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.call("MIGRATE", HOST, target.port, "", 0, 5_000, "REPLACE", "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, source: Server, target: Server) -> None:
        """Give an open slot to the target: it no longer moves."""
        identity = self.identity(target)
        for node in (target, source, *(node for node in self.primaries() if node not in (source, target))):
            node.call("CLUSTER", "SETSLOT", slot, "NODE", identity)

    def move_slot(self, slot: int, target: Server) -> None:
        """Move a slot the classic way, key by key, with its data."""
        source = self.begin_move(slot, target)
        while self.move_keys(slot, source, target, count=100):
            pass
        self.end_move(slot, source, target)
        self.wait_whole()

    @property
    def can_move_atomically(self) -> bool:
        """Say whether these servers can move slots as a whole."""
        return server_version() >= (9, 0, 0)

    def move_slots_atomically(self, first: int, last: int, target: Server) -> None:
        """Move a range of slots, all of one owner, as a whole: they change hands in one instant."""
        source = self.owner(first)
        source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", self.identity(target))

        def moved() -> bool:
            jobs = source.call("CLUSTER", "GETSLOTMIGRATIONS")
            newest = dict(zip(jobs[0][::2], jobs[0][1::2], strict=True))
            assert newest[b"state"] not in (b"failed", b"cancelled"), newest
            return newest[b"state"] == b"success"

        eventually(moved, f"slots {first} to {last} are moved")
        self.wait_whole()


@contextmanager
def single_node(folder: Path, **options: Option) -> Iterator[Node]:
    """Run one server with its data in a folder, which is removed afterwards: `single_node(f, appendonly="no")`."""
    node = Node(folder, options)
    try:
        node.start()
        yield node
    finally:
        node.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cluster(
    folder: Path, primaries: int = 3, replicas: int = 1, **options: Option
) -> Iterator[Cluster[Node]]:
    """Run a cluster with its data in a folder, which is removed afterwards."""
    found = Cluster(
        [
            Node(folder / f"node-{at}", {**CLUSTER_OPTIONS, **options})
            for at in range(primaries * (1 + replicas))
        ],
        primaries=primaries,
    )
    try:
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)
