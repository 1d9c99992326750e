"""`dev --store valkey|postgres` with a server of its own, and processes that are given a store with a password."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from flowfabric.provision.postgres import BINARIES, PostgresServer
from flowfabric.provision.valkey import BINARY, ValkeyServer
from tests.cli.running import APP, Dev, answer, dev, environment, flowfabric
from tests.cli.test_processes import PATIENCE_S, wait_until
from tests.provision.test_processes import is_alive, wait_gone

PASSWORD = "very secret: 100%"


def described(found: Dev) -> dict[str, Any]:
    """Return what a dev wrote about itself."""
    return json.loads((found.folder / ".flowfabric" / "dev.json").read_text(encoding="utf-8"))


@pytest.fixture(params=["valkey", "postgres"])
def beside(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The kind of server that is started for a dev in this folder."""
    yield request.param
    discard(tmp_path)


def discard(folder: Path) -> None:
    """Remove the data of a dev's own Postgres: what root starts may keep it elsewhere."""
    shutil.rmtree((folder / ".flowfabric" / "postgres" / "data").resolve(), ignore_errors=True)


def server_of(found: Dev) -> int:
    """Return the process id of a dev's own server."""
    url = described(found)["store"]
    host, port = urlsplit(url).netloc.rpartition("@")[2].split(":")
    if url.startswith("postgresql"):
        with psycopg.connect(url) as line:
            folder = line.execute("SHOW data_directory").fetchone()
        assert folder is not None
        return int((Path(folder[0]) / "postmaster.pid").read_text().split()[0])
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(b"INFO server\r\n")
        return int(connection.recv(65_536).partition(b"process_id:")[2].split()[0])


def test_dev_on_a_server_of_its_own(tmp_path: Path, beside: str) -> None:
    """It starts one, everybody in the folder finds it, it ends with the dev, and its data is there the next time."""
    with dev(tmp_path, "--store", beside) as first:
        store = described(first)["store"]
        pid = server_of(first)
        assert store.startswith(beside) and "127.0.0.1:" in store and is_alive(pid)
        assert (tmp_path / ".flowfabric" / "dev.json").stat().st_mode & 0o077 == 0
        done = answer("submit", "greet", "-i", '{"name": "x"}', "--wait", cwd=tmp_path)
        assert done["result"] == "greeted x"
        assert "nothing is wrong" in flowfabric("admin", "fsck", cwd=tmp_path).stderr
        second = flowfabric("dev", "app.py", "--store", beside, cwd=tmp_path)
        assert (second.returncode, first.url in second.stderr) == (4, True)
        other = flowfabric("dev", "app.py", cwd=tmp_path)
        assert (other.returncode, f"a dev runs in {tmp_path / '.flowfabric'} already on {beside}" in other.stderr) == (
            4, True,
        )  # fmt: skip
        assert "another folder" in other.stderr
        assert first.stop() == 0
    wait_gone([pid])
    with dev(tmp_path, "--store", beside):
        assert len(answer("list", cwd=tmp_path)["executions"]) == 1


def test_running_tasks_finish_before_the_server_ends(tmp_path: Path, beside: str) -> None:
    """Ctrl-C reaches the dev alone: what runs is finished on a store that is still there."""
    with dev(tmp_path, "--store", beside) as found:
        made = answer("submit", "sleep", "-i", '{"seconds": 1}', cwd=tmp_path)
        wait_until(
            lambda: answer("describe", made["execution_id"], cwd=tmp_path)["public_state"] == "active",
            "its start",
        )
        assert found.stop() == 0
    with dev(tmp_path, "--store", beside):
        assert answer("wait", made["execution_id"], cwd=tmp_path)["result"] == "awake"


def test_a_killed_dev_takes_its_server_along(tmp_path: Path, beside: str) -> None:
    """When the dev is killed its server is, and the next dev finds what the server had acknowledged."""
    with dev(tmp_path, "--store", beside) as found:
        pid = server_of(found)
        answer("submit", "greet", "-i", '{"name": "x"}', "--wait", cwd=tmp_path)
        found.process.send_signal(signal.SIGKILL)
        wait_gone([pid])
    with dev(tmp_path, "--store", beside):
        assert len(answer("list", cwd=tmp_path)["executions"]) == 1


@pytest.mark.parametrize(("beside", "variable"), [("valkey", BINARY), ("postgres", BINARIES)])
def test_no_server_to_start(tmp_path: Path, beside: str, variable: str) -> None:
    """A machine without the server's program is told how to get one."""
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    variables = {variable: str(tmp_path / "missing")}
    done = flowfabric("dev", "app.py", "--store", beside, cwd=tmp_path, variables=variables)
    assert (done.returncode, variable in done.stderr, "give the " in done.stderr) == (2, True, True)


def test_dev_on_a_server_that_runs_already(tmp_path: Path) -> None:
    """A store named by its URL is used as it is; the password comes from the environment and is shown nowhere."""
    with ValkeyServer(tmp_path / "server", options={"requirepass": PASSWORD}) as server:
        (tmp_path / "app.py").write_text(APP, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "flowfabric", "dev", "app.py", "--store", server.url, "--listen", "127.0.0.1:0"],
            cwd=tmp_path, env=environment({"FF_PASSWORD": PASSWORD}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert f"store {server.url} (durability" in said
        assert "secret" not in said + out + err


@pytest.mark.parametrize("processes", ["1", "2"])
def test_password_stays_out_of_sight(tmp_path: Path, processes: str) -> None:
    """Server and workers are given the password by the environment; no process list, log or answer shows it."""
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    with ValkeyServer(tmp_path / "server", options={"requirepass": PASSWORD}) as server:
        url = server.url.replace("://", "://:very%20secret%3A%20100%25@")
        store = {"FLOWFABRIC_URL": url}
        with (tmp_path / "log").open("wb") as log:
            working = subprocess.Popen(
                [sys.executable, "-m", "flowfabric", "worker", "app.py", "--processes", processes],
                cwd=tmp_path, env=environment(store), stdout=log, stderr=log,
            )  # fmt: skip
        try:
            wait_until(
                lambda: len(answer("workers", "list", variables=store)["workers"]) == int(processes),
                "the workers",
            )
            done = answer("submit", "greet", "-i", '{"name": "x"}', "--wait", variables=store)
            listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
            ping = flowfabric("admin", "ping", variables=store)
            assert done["result"] == "greeted x"
            assert "flowfabric.worker" in listed or processes == "1"
            assert server.url in ping.stdout
            working.send_signal(signal.SIGTERM)
            assert working.wait(PATIENCE_S) == 0
            worker_lines = "\n".join(line for line in listed.splitlines() if "valkey-server" not in line)
            assert "secret" not in worker_lines + ping.stdout + (tmp_path / "log").read_text()
        finally:
            if working.poll() is None:
                working.kill()
                working.wait()


def test_serve_takes_the_parts_of_a_store(tmp_path: Path) -> None:
    """`serve` opens the store that FF_BACKEND, FF_HOST and their like name, and reports it without the password."""
    with ValkeyServer(tmp_path / "server", options={"requirepass": PASSWORD}) as server:
        variables = {
            "FF_BACKEND": "valkey", "FF_HOST": "127.0.0.1", "FF_PORT": str(server.port), "FF_PASSWORD": PASSWORD,
            "FF_LISTEN_ADDR": "127.0.0.1:0", "FF_LOG_FORMAT": "json",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "flowfabric", "serve"],
            cwd=tmp_path, env=environment(variables), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            lines: list[str] = []
            while not (lines and '"url"' in lines[-1]):
                lines.append(process.stderr.readline())
                assert lines[-1], lines
            started = json.loads(lines[-1])
            assert started["store"] == server.url
            ping = answer("admin", "ping", "--server", started["url"])
            assert ping["family"] == "valkey"
        finally:
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=PATIENCE_S)
        assert "secret" not in "".join(lines) + rest


def test_a_dev_of_its_own_heeds_no_settings_of_another_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own Postgres has a password of its own; one for another store, and the size of the pool, do no harm."""
    monkeypatch.setattr(
        "tests.cli.running.environment",
        lambda more=None: environment(
            {"FF_PASSWORD": PASSWORD, "FF_POSTGRES_POOL_SIZE": "3", **(more or {})}
        ),
    )
    with dev(tmp_path, "--store", "postgres") as found:
        assert found.stop() == 0
    discard(tmp_path)


def test_serve_takes_postgres_and_its_password_apart(tmp_path: Path) -> None:
    """`serve` opens what FF_BACKEND and FF_POSTGRES_URL name; the password may come from a file and shows nowhere."""
    server = PostgresServer(tmp_path / "server")
    try:
        server.start()
        secret = server.folder / "password"
        shown = server.url.replace(f"postgres:{secret.read_text().strip()}@", "")
        variables = {
            "FF_BACKEND": "postgres", "FF_POSTGRES_URL": shown.replace("://", "://postgres@"),
            "FF_PASSWORD_FILE": str(secret), "FF_POSTGRES_POOL_SIZE": "3",
            "FF_LISTEN_ADDR": "127.0.0.1:0", "FF_LOG_FORMAT": "json",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "flowfabric", "serve"],
            cwd=tmp_path, env=environment(variables), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            lines: list[str] = []
            while not (lines and '"url"' in lines[-1]):
                lines.append(process.stderr.readline())
                assert lines[-1], lines
            started = json.loads(lines[-1])
            assert started["store"] == shown
            assert answer("admin", "ping", "--server", started["url"])["family"] == "postgres"
        finally:
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=PATIENCE_S)
        assert secret.read_text().strip() not in "".join(lines) + rest
    finally:
        server.discard()
