"""Wake-ups across processes: one datagram socket per open store, in a folder beside the file.

After a commit, one datagram goes to every other socket in the folder. Datagrams only wake: they may be lost, repeated
or come from anybody on this host, and a slow poll of the data version covers what was lost. Unix sockets where they
exist, loopback UDP with a file naming the port elsewhere. Sockets of processes that died are removed by whoever finds
nobody listening.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flowfabric.backends.sqlite.news import EVERYTHING

_PATH_BYTES_MAX: Final = 100
_LISTING_SETTLED_NS: Final = 100_000_000
"""A listing made this soon after the folder changed may have missed a change within the same clock tick."""
_RECEIVE_MAX: Final = 256
_BUFFER_BYTES: Final = 65_536
_UNIX: Final = ".sock"
_UDP: Final = ".port"
_NOBODY: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK, errno.EPROTOTYPE})


def folder_of(path: Path) -> Path:
    """Return the folder of a store's sockets: beside the file, or under the temporary folder if paths get too long."""
    real = path.resolve()
    beside = real.with_name(real.name + "-wake")
    if len(os.fsencode(beside)) + 32 <= _PATH_BYTES_MAX:
        return beside
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:12]
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"flowfabric-{user}-{digest}"


class Post:
    """This store's socket, and the way to the others."""

    def __init__(self, path: Path, receive: Callable[[bytes], None]) -> None:
        self._folder = folder_of(path)
        self._receive = receive
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._entry: Path | None = None
        self._peers: list[Path] = []
        self._ports: dict[Path, int] = {}
        self._seen_ns = -1
        self._listed_ns = 0
        self._behind: set[Path] = set()
        self._senders: dict[str, socket.socket] = {}

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind the socket and receive on `loop`. Without a usable folder the store works, woken by the slow poll."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._socket, self._entry = self._bind()
        except OSError:
            return
        self._socket.setblocking(False)
        self._loop = loop
        try:
            loop.add_reader(self._socket.fileno(), self._readable)
        except RuntimeError:
            # This loop watches no sockets (it says that it lacks the method): a thread does it.
            self._loop = None
            self._socket.setblocking(True)
            self._thread = threading.Thread(target=self._receive_forever, name="flowfabric-wake", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Remove the socket, and the folder if it was the last."""
        if self._socket is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
        if self._entry is not None:
            self._entry.unlink(missing_ok=True)
        bound, self._socket = self._socket, None
        if self._thread is not None:
            with contextlib.suppress(OSError):
                bound.shutdown(socket.SHUT_RDWR)
        bound.close()
        for sender in self._senders.values():
            sender.close()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _bind(self) -> tuple[socket.socket, Path]:
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        if hasattr(socket, "AF_UNIX"):
            entry = self._folder / (name + _UNIX)
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                bound.bind(os.fspath(entry))
            except OSError:
                bound.close()
            else:
                return bound, entry
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            bound.bind(("127.0.0.1", 0))
            entry = self._folder / (name + _UDP)
            entry.write_text(str(bound.getsockname()[1]), encoding="ascii")
        except OSError:
            bound.close()
            raise
        return bound, entry

    # Receiving ----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        bound = self._socket
        if bound is None:
            return
        for _ in range(_RECEIVE_MAX):
            try:
                data = bound.recv(_BUFFER_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                return
            self._receive(data)

    def _receive_forever(self) -> None:
        while (bound := self._socket) is not None:
            try:
                data = bound.recv(_BUFFER_BYTES)
            except OSError:
                return
            self._receive(data)

    # Sending ------------------------------------------------------------------------------------------------------

    def has_peers(self) -> bool:
        """Say whether anybody else has the store open."""
        if self._socket is None:
            return False
        try:
            changed_ns = self._folder.stat().st_mtime_ns
        except OSError:
            self._seen_ns = -1
            return False
        if changed_ns != self._seen_ns or self._listed_ns - changed_ns < _LISTING_SETTLED_NS:
            self._list(changed_ns)
        return bool(self._peers)

    def _list(self, changed_ns: int) -> None:
        try:
            entries = [Path(entry.path) for entry in os.scandir(self._folder)]
        except OSError:
            entries = []
        own = self._entry
        self._peers = [entry for entry in entries if entry != own and entry.suffix in (_UNIX, _UDP)]
        self._ports = {entry: port for entry in self._peers if (port := _port(entry))}
        self._seen_ns = changed_ns
        self._listed_ns = time.time_ns()

    def send(self, data: bytes) -> None:
        """Send a datagram to every peer, without waiting; a peer that missed one is told to look at everything."""
        if self._socket is None:
            return
        for peer in self._peers:
            message = EVERYTHING if peer in self._behind else data
            try:
                if peer.suffix == _UNIX:
                    self._sender(_UNIX).sendto(message, os.fspath(peer))
                elif peer in self._ports:
                    self._sender(_UDP).sendto(message, ("127.0.0.1", self._ports[peer]))
                self._behind.discard(peer)
            except OSError as error:
                if error.errno in _NOBODY:
                    with contextlib.suppress(OSError):
                        peer.unlink(missing_ok=True)
                    self._behind.discard(peer)
                    self._seen_ns = -1
                else:
                    self._behind.add(peer)

    def _sender(self, kind: str) -> socket.socket:
        sender = self._senders.get(kind)
        if sender is None:
            family = socket.AF_UNIX if kind == _UNIX else socket.AF_INET
            sender = socket.socket(family, socket.SOCK_DGRAM)
            sender.setblocking(False)
            self._senders[kind] = sender
        return sender


def _port(entry: Path) -> int | None:
    """Read the port of a UDP peer; the file of a process that is gone is removed."""
    if entry.suffix != _UDP:
        return None
    try:
        os.kill(int(entry.name.partition("-")[0]), 0)
        return int(entry.read_text(encoding="ascii"))
    except (ProcessLookupError, ValueError):
        with contextlib.suppress(OSError):
            entry.unlink(missing_ok=True)
    except OSError:
        pass
    return None
