"""The example of transactional enqueue runs."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from tests.cli.running import environment, flowfabric
from tests.docs.pages import ROOT
from tests.postgres.session import own_database

TIMEOUT_S = 100


def example(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example to its end."""
    return subprocess.run(
        [sys.executable, "-m", "examples.transactional_enqueue", *arguments],
        check=False, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


@pytest.mark.parametrize("is_given", [True, False])
def test_the_committed_order_is_shipped_and_the_other_is_not(is_given: bool) -> None:
    """It ships what was committed, and nothing of what was rolled back, on a database given or one of its own."""
    with own_database() as url:
        done = example(url) if is_given else example()
    assert done.returncode == 0, done.stderr
    committed, rolled_back, agree = done.stdout.splitlines()
    assert committed == "committed   order 1: a kettle is on its way"
    assert rolled_back == "rolled back there is no a teapot left"
    assert agree.endswith("True")


def test_a_database_that_cannot_be_reached_is_an_error() -> None:
    """Without a database it says so, and its exit status is that of what cannot be reached."""
    done = example("postgresql://nobody@127.0.0.1:1/nothing")
    assert done.returncode == 3
    assert "127.0.0.1:1" in done.stderr


def test_a_role_without_tables_of_its_own_is_an_error() -> None:
    """A role that may use the store but make no table is told so, without a traceback."""
    with own_database() as url:
        name = "nothing_of_its_own"
        assert flowfabric("migrate", "--store", url).returncode == 0
        with psycopg.connect(url, autocommit=True) as line:
            line.execute(f"DROP ROLE IF EXISTS {name}")
            line.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
            assert flowfabric("migrate", "--store", url, "--grant", name).returncode == 0
            done = example(url.replace(url.partition("://")[2].rpartition("@")[0], f"{name}:x"))
            line.execute(f"DROP OWNED BY {name}")
            line.execute(f"DROP ROLE {name}")
    assert (done.returncode, "permission denied for schema public" in done.stderr) == (3, True), done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_database_shows_how_it_is_used() -> None:
    """It is used with a Postgres URL, or none."""
    assert (example("--help").returncode, example("http://127.0.0.1:9090").returncode) == (0, 2)
