"""A server process of one's own on a free loopback port: started, stopped, killed and started again with its data.

What the servers of all stores have in common; how one is found, prepared, asked and told to end is its own module's.
What must stay true: it keeps the port it was first given, its data stays in the folder it was given, and when it does
not come up, the end of its log is told.
"""

from __future__ import annotations

import random
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final, Self

from flowfabric.contract.errors import Unavailable
from flowfabric.provision.processes import BoundProcess

HOST: Final = "127.0.0.1"
PORTS: Final = range(11_000, 32_000)
"""Below the ports that systems give to outgoing connections, so that one is still free when a server starts again."""
PORTS_TRIED: Final = 50
STARTS_TRIED: Final = 5
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
LOG_LINES_SHOWN: Final = 6
PORT_TAKEN: Final = "already in use"
"""What every server's log says when it cannot have its port."""

Option = str | int | tuple[str | int, ...]


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


class LoopbackServer(ABC):
    """One server process with its folder and its port."""

    program: ClassVar[str]
    log_name: ClassVar[str]
    """Of the file in its folder that takes what it writes."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """Lets it write what it holds and end."""
    lingers: ClassVar[tuple[str, ...]] = ()
    """What its log says when something of a killed one is still there for a moment: it is started again."""

    def __init__(self, folder: Path, *, port: int | None, options: Mapping[str, Option]) -> None:
        self.folder: Final = folder
        self.options: Final[dict[str, Option]] = dict(options)
        self._fixed = port
        self._port = port
        self._process: BoundProcess | None = None

    # Each server's own --------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def url(self) -> str:
        """As `backends.connect` takes it."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line."""

    @abstractmethod
    def serves(self) -> bool:
        """Say whether it, and not somebody else at this port, answers and has its data loaded."""

    def prepare(self) -> None:
        """Make what has to be there before it starts. Its folder and its port are."""
        return

    def launch(self) -> BoundProcess:
        """Start the process."""
        return BoundProcess(self.command(), output=self.folder / self.log_name)

    # What it is ---------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._port is not None, "it was never started"
        return self._port

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Say whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    # Starting and ending ------------------------------------------------------------------------------------------

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it and wait until it serves, its data loaded. Does nothing when it runs.

        Raises: `Unavailable` with the end of its log when it ends instead or takes too long.
        """
        if self.is_running:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        until = time.monotonic() + timeout_s
        ports_left = STARTS_TRIED
        while True:
            if self._port is None:
                self._port = self.choose_port()
                ports_left -= 1
            self.prepare()
            written = self._log_size()
            self._process = self.launch()
            try:
                self._wait_until_it_serves(until, timeout_s, written)
            except Unavailable:
                self.kill()
                said = self._log_since(written)
                if self._fixed is None and ports_left and PORT_TAKEN in said:
                    self._port = None
                    continue
                if any(words in said for words in self.lingers) and time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                raise
            self._fixed = self._port
            return

    def choose_port(self) -> int:
        """Return a port for the first start."""
        return free_port()

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Let it write what it holds and end; kill it if that takes longer."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate(timeout_s, self.stop_signal)
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

    def _wait_until_it_serves(self, until: float, timeout_s: float, written: int) -> None:
        assert self._process is not None
        while time.monotonic() < until:
            status = self._process.poll()
            if status is not None:
                raise Unavailable(
                    f"{self.program} ended with status {status} at its start{self._why(written)}"
                )
            if self.serves():
                return
            time.sleep(0.01)
        raise Unavailable(f"{self.program} does not serve after {timeout_s:g} s{self._why(written)}")

    def _log_size(self) -> int:
        log = self.folder / self.log_name
        return log.stat().st_size if log.exists() else 0

    def _log_since(self, start: int) -> str:
        with (self.folder / self.log_name).open("rb") as file:
            file.seek(start)
            return file.read(65_536).decode("utf-8", "replace")

    def _why(self, written: int) -> str:
        lines = self._log_since(written).splitlines()[-LOG_LINES_SHOWN:]
        return ":\n" + "\n".join(lines) if lines else f"; nothing is in {self.folder / self.log_name}"
