"""`dev`, `serve` and `worker` as processes: what they say, how they reload, how they stop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cli.running import APP, Dev, answer, dev, environment, flowfabric

PATIENCE_S = 20.0


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Look until something is so, or fail."""
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.05)  # sleeps: another process is to do something


def log_of(found: Dev) -> str:
    """Return what a dev wrote to standard error."""
    return (found.folder / "dev.log").read_text(encoding="utf-8")


def test_second_dev_on_a_store_is_told(tmp_path: Path) -> None:
    """A second `dev` on the same file is refused and says where the first one is; afterwards it may start."""
    with dev(tmp_path) as first:
        second = flowfabric("dev", "app.py", cwd=tmp_path)
        assert (second.returncode, first.url in second.stderr) == (4, True)
        assert first.stop() == 0
        assert not (tmp_path / ".flowfabric" / "dev.json").exists()
    with dev(tmp_path) as third:
        assert answer("list", cwd=tmp_path)["executions"] == []
        assert third.url


def test_dev_reloads_and_lets_running_attempts_finish(tmp_path: Path) -> None:
    """Saving the app reloads the worker; what runs finishes with the old code, what comes next runs the new."""
    with dev(tmp_path) as found:
        slow = answer("submit", "sleep", "-i", '{"seconds": 4}', cwd=tmp_path)
        flowfabric("tail", slow["execution_id"], "--no-follow", cwd=tmp_path)
        (tmp_path / "app.py").write_text(
            APP.replace("greeted {name}", "saluted {name}").replace("awake", "never"), encoding="utf-8"
        )
        wait_until(lambda: "reloaded" in log_of(found), "the reload")
        new = answer("submit", "greet", "-i", '{"name": "x"}', "--wait", cwd=tmp_path)
        old = answer("wait", slow["execution_id"], cwd=tmp_path)
        assert (new["result"], old["result"], old["attempt_index"]) == ("saluted x", "awake", 0)


def test_dev_survives_an_app_that_does_not_load(tmp_path: Path) -> None:
    """An app saved with a mistake is reported with its place, and what was loaded before goes on."""
    with dev(tmp_path) as found:
        (tmp_path / "app.py").write_text(APP + "\nx = (\n", encoding="utf-8")
        wait_until(lambda: "does not load" in log_of(found), "the report")
        assert "app.py:" in log_of(found)
        assert (
            answer("submit", "greet", "-i", '{"name": "x"}', "--wait", cwd=tmp_path)["result"] == "greeted x"
        )
        (tmp_path / "app.py").write_text(APP.replace("greeted", "met"), encoding="utf-8")
        wait_until(lambda: "reloaded" in log_of(found), "the reload")
        assert answer("submit", "greet", "-i", '{"name": "x"}', "--wait", cwd=tmp_path)["result"] == "met x"


def test_dev_hands_work_back_at_the_second_interrupt(tmp_path: Path) -> None:
    """The first Ctrl-C waits for running attempts, the second hands them back; nothing is lost."""
    with dev(tmp_path) as found:
        made = answer("submit", "sleep", "-i", '{"seconds": 600}', cwd=tmp_path)
        wait_until(
            lambda: answer("describe", made["execution_id"], cwd=tmp_path)["public_state"] == "active",
            "the start",
        )
        found.process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping: 1 running" in log_of(found), "the first interrupt")
        found.process.send_signal(signal.SIGINT)
        assert found.process.wait(PATIENCE_S) == 0
    history = answer(
        "admin", "lease", "history", "--execution-id", made["execution_id"],
        "--store", "sqlite:///.flowfabric/dev.db", cwd=tmp_path,
    )  # fmt: skip
    assert [event["name"] for event in history["events"]][-1] == "released"


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_server_and_workers_as_processes(tmp_path: Path) -> None:
    """`serve` with a token and `worker --processes 2` run work; without the token the server refuses; both drain."""
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    secret = "a-token-for-the-tests"
    token = {"FLOWFABRIC_TOKEN": secret, "FLOWFABRIC_URL": url}
    serving = subprocess.Popen(
        [sys.executable, "-m", "flowfabric", "serve", "--store", "sqlite:///s.db", "--listen", url[7:]],
        cwd=tmp_path, env=environment({"FF_API_TOKEN": secret}), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    working: subprocess.Popen[bytes] | None = None
    try:
        wait_until(
            lambda: flowfabric("admin", "ping", variables=token).returncode == 0,
            "the server",
        )
        working = subprocess.Popen(
            [sys.executable, "-m", "flowfabric", "worker", "app.py", "--processes", "2"],
            cwd=tmp_path, env=environment(token), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(
            lambda: len(answer("workers", "list", variables=token)["workers"]) == 2, "two worker processes"
        )
        refused = flowfabric("list", "--server", url)
        done = answer("submit", "greet", "-i", '{"name": "x"}', "--wait", variables=token)
        assert (refused.returncode, "FLOWFABRIC_TOKEN" in refused.stderr) == (4, True)
        assert done["result"] == "greeted x"
        working.send_signal(signal.SIGTERM)
        assert working.wait(PATIENCE_S) == 0
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(PATIENCE_S) == 0
    finally:
        for process in (working, serving):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def test_port_that_is_taken_is_told(tmp_path: Path) -> None:
    """`serve` on a port that is in use says so and names the option that chooses another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = flowfabric(
            "serve",
            "--store",
            "sqlite:///s.db",
            "--listen",
            f"127.0.0.1:{taken.getsockname()[1]}",
            cwd=tmp_path,
        )
    assert (done.returncode, "--listen" in done.stderr) == (2, True)


def test_banner_says_what_to_try(tmp_path: Path) -> None:
    """`dev` prints the store, the API, the tasks and a command that works as it stands."""
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "flowfabric", "dev", "app.py", "--log-level", "error"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        assert "durability: fsync" in lines[0]
        assert "docs /docs" in lines[1]
        assert "greet  refuse  sleep" in lines[2]
        assert """flowfabric submit greet --input '{"name": "..."}' --tail""" in lines[3]
        described = json.loads((tmp_path / ".flowfabric" / "dev.json").read_text(encoding="utf-8"))
        assert described["url"] in lines[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
