"""Errors: their exit status, that they say what to do, and that no traceback is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.cli.running import environment, flowfabric
from tests.postgres.session import own_database

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("list", "--server", NOWHERE), 3, "flowfabric serve"),
        (("list", "--store", "sqlite:///missing.db"), 2, "there is no store at"),
        (("list", "--server", "sqlite:///x.db"), 2, "--store sqlite:///x.db"),
        (("list", "--store", "http://127.0.0.1:9090"), 2, "--server http"),
        (("list", "--server", NOWHERE, "--store", "sqlite:///x.db"), 2, "not both"),
        (("list", "--store", "nonsense://x"), 2, "sqlite:///file.db"),
        (("list", "--store", "postgresql://127.0.0.1:9/x"), 3, "the store's server runs"),
        (("serve", "--store", "postgresql://127.0.0.1:9/x"), 3, "the store's server runs"),
        (("submit", "k", "--input", "{", "--server", NOWHERE), 2, "is not JSON"),
        (("submit", "k", "--input", "@missing.json", "--server", NOWHERE), 2, "missing.json"),
        (("submit", "k", "--tag", "novalue", "--server", NOWHERE), 2, "--tag novalue=VALUE"),
        (("submit", "k", "--policy", '{"isolation_level": "x"}', "--server", NOWHERE), 2, "isolation_level"),
        (("list", "--state", "sleepy", "--server", NOWHERE), 2, "waiting, delayed"),
        (("describe", "zz", "--server", NOWHERE), 2, "not an execution id"),
        (("worker", "missing.py", "--store", "sqlite:///x.db"), 2, "there is no file missing.py"),
        (("dev", "missing.py"), 2, "there is no file missing.py"),
        (("serve", "--listen", "0.0.0.0:9090"), 2, "FF_API_TOKEN"),
        (("serve", "--retention-ms", "soon"), 2, "retention_ms"),
        (("admin", "fsck"), 2, "--store"),
        (("completion", "tcsh"), 2, "bash, zsh, fish"),
        (("new", ".."), 2, "not an empty folder"),
        (("lisst",), 2, "list"),
        (("list", "--limit", "0"), 2, "limit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_error_has_its_status_and_a_next_step(
    arguments: tuple[str, ...], status: int, says: str, tmp_path: Path
) -> None:
    """A mistake exits with the status of its kind and says what to do, never with a traceback."""
    done = flowfabric(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_error_is_json_when_asked(tmp_path: Path) -> None:
    """With --json an error is one JSON document on standard error, with code, message and next step."""
    done = flowfabric("list", "--server", NOWHERE, "--json", cwd=tmp_path)
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["code"], error["retryable"]) == (3, "unavailable", True)
    assert error["next"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """--debug shows where an error arose."""
    assert "Traceback" in flowfabric("list", "--server", NOWHERE, "--debug", cwd=tmp_path).stderr


def test_a_variable_that_would_not_act_is_refused(tmp_path: Path) -> None:
    """`serve` refuses a published variable that no longer acts or is planned, by name and with the reason."""
    retired = flowfabric("serve", cwd=tmp_path, variables={"FF_UNBLOCK_INTERVAL_S": "5"})
    planned = flowfabric("serve", cwd=tmp_path, variables={"FF_SENTRY_DSN": "x"})
    assert (retired.returncode, planned.returncode) == (2, 2)
    assert "FF_UNBLOCK_INTERVAL_S no longer acts" in retired.stderr
    assert "planned" in planned.stderr


def test_a_token_never_shows_in_an_error(tmp_path: Path) -> None:
    """A URL with credentials in it is refused without repeating them."""
    done = flowfabric("list", "--server", "http://user:topsecret@127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 2
    assert "topsecret" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [("list",), ("admin", "fsck"), ("admin", "ping")], ids=" ".join)
def test_only_looking_makes_no_store(command: tuple[str, ...]) -> None:
    """A command that only looks refuses a database without a store, and leaves it as it is; a migration makes one."""
    with own_database() as url:
        done = flowfabric(*command, "--store", url)
        with psycopg.connect(url) as line:
            schemas = line.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'ff'").fetchall()
        assert (done.returncode, schemas) == (2, [])
        assert "there is no store at" in done.stderr and "flowfabric migrate" in done.stderr
        assert flowfabric("migrate", "--store", url).returncode == 0
        assert flowfabric(*command, "--store", url).returncode == 0


def test_interrupt_before_a_command_runs(tmp_path: Path) -> None:
    """Ctrl-C while the program is still being loaded ends it with status 130 and without a traceback."""
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'flowfabric.cli.root':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from flowfabric.cli import main\n"
        "main(['version'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A full disk behind the output is named, not taken for a bug."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flowfabric", "version"], check=False, stdout=full, stderr=subprocess.PIPE,
            text=True, cwd=tmp_path, env=environment(),
        )  # fmt: skip
    assert (done.returncode, "cannot write" in done.stderr, "make room" in done.stderr) == (3, True, True)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_outputs_may_be_closed(tmp_path: Path, closed: str) -> None:
    """A process that is started with its outputs closed does what it was told and exits with its status."""
    for arguments, status in ((("version",), 0), (("list", "--store", "sqlite:///none.db"), 2)):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" -m flowfabric "$@" {closed}', sys.executable, *arguments],
            check=False, capture_output=True, text=True, cwd=tmp_path, env=environment(),
        )  # fmt: skip
        assert (done.returncode, "internal" in done.stderr) == (status, False)


def test_a_backup_needs_a_folder(tmp_path: Path) -> None:
    """A backup into a folder that is missing says so before the store is opened."""
    done = flowfabric("admin", "backup", "missing/copy.db", "--store", "sqlite:///x.db", cwd=tmp_path)
    assert (done.returncode, "missing is no folder" in done.stderr) == (2, True)
