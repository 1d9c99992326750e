"""The processes under fire: started, killed with SIGKILL, started again at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.faults.witness import FOLDER_VARIABLE

ROOT: Final = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Find a port of the loopback address that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Target:
    """One process that is started again whenever it was killed."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name = name
        self.kills = 0
        self._arguments = [sys.executable, "-m", *arguments]
        self._log_path = folder / f"{name}.log"
        self._environment = {
            **os.environ,
            FOLDER_VARIABLE: str(folder / "witness"),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; its output goes to a file of its own."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Kill the process without warning and wait until it is gone; one that ended by itself is a failure."""
        assert self._process is not None
        ended = self._process.poll()
        assert ended is None, f"{self.name} ended by itself with {ended}:\n{self.log()}"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.kills += 1

    def stop(self) -> None:
        """Kill the process if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """Return the end of what the process wrote."""
        return self._log_path.read_text(errors="replace")[-4_000:] if self._log_path.exists() else ""


def targets(folder: Path, store_url: str, port: int) -> dict[str, Target]:
    """Describe the server, a worker on the store itself, and two workers that know nothing but the server's URL."""
    (folder / "witness").mkdir()
    url = f"http://127.0.0.1:{port}"
    quiet = ["--log-level", "warning"]
    sdk = ["flowfabric.worker", "tests.faults.app:app", "--lease-ttl", "0.3", "--concurrency", "4", *quiet]
    holder = ["tests.faults.holder"]
    witness = str(folder / "witness")
    server = ["flowfabric", "serve", "--store", store_url, "--listen", f"127.0.0.1:{port}", *quiet]
    return {
        "server": Target("server", server, folder),
        "holder": Target("holder", [*holder, store_url, witness], folder),
        "remote": Target("remote", [*holder, url, witness], folder),
        "sdk": Target("sdk", [*sdk, "--url", url], folder),
    }
