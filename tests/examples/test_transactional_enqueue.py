"""The example of transactional enqueue runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.running import environment
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
