"""The demo on a small folder: its totals are right, also when it kills one of its own workers."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import flowfabric
from examples.code_census import workers
from examples.code_census.app import census_file
from examples.code_census.census import (
    Counts,
    add_up,
    count_file,
    differences,
    fails_first,
    plain_loop,
    source_files,
)
from flowfabric.provision.postgres import BINARIES
from flowfabric.provision.valkey import BINARY
from tests.cli.running import dev, environment
from tests.docs.pages import ROOT

TIMEOUT_S = 110

SOURCE = '''
"""File number {number}."""
import os


class Thing{number}:
    def method(self, a, b, c, d, e, f, g, h, i, j):
        # a comment
        try:
            return os.name
        except:
            return None


def long_one():
{body}
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some hundred source files of some size, one of which does not parse."""
    root = tmp_path / "sources"
    (root / "package").mkdir(parents=True)
    body = "\n".join(f"    x{line} = {line}" for line in range(2_000))
    for number in range(150):
        text = SOURCE.format(number=number, body=body)
        (root / "package" / f"module_{number}.py").write_text(text, encoding="utf-8")
    (root / "broken.py").write_text("def broken(:\n", encoding="utf-8")
    return root


def demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end."""
    return subprocess.run(
        [sys.executable, "-m", "examples.code_census", *map(str, arguments)],
        check=False, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


def test_totals_hold_when_a_worker_is_killed(folder: Path) -> None:
    """The demo kills a worker at work, another takes over, and the totals are those of the plain loop."""
    done = demo(folder, "--lease-ttl", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "with SIGKILL while it held" in done.stdout
    assert "after the kill" in done.stdout
    assert "151 files in" in done.stdout
    assert "the totals are those of the plain loop" in done.stdout
    failing = sum(fails_first(path) for path in source_files(folder, None))
    assert failing > 0
    assert "files failed the first time on purpose" in done.stdout


def test_demo_runs_against_a_server(folder: Path, tmp_path: Path) -> None:
    """The demo does the same over HTTP, with workers that know nothing but the server's URL."""
    place = tmp_path / "server"
    place.mkdir()
    with dev(place) as running:
        done = demo(folder, "--limit", "40", "--no-kill", "--server", running.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 files in" in done.stdout


def test_demo_runs_on_a_valkey_server_of_its_own(folder: Path) -> None:
    """With another backend the demo starts a server for its store, and does and counts the same on it."""
    done = demo(folder, "--backend", "valkey", "--lease-ttl", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "store valkey://127.0.0.1:" in done.stdout
    assert "after the kill" in done.stdout
    assert "the totals are those of the plain loop" in done.stdout


def test_demo_runs_on_a_postgres_server_of_its_own(folder: Path) -> None:
    """On Postgres it does and counts the same."""
    done = demo(folder, "--backend", "postgres", "--lease-ttl", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "store postgresql://127.0.0.1:" in done.stdout
    assert "after the kill" in done.stdout
    assert "the totals are those of the plain loop" in done.stdout


@pytest.mark.parametrize(("backend", "variable"), [("valkey", BINARY), ("postgres", BINARIES)])
def test_demo_says_how_to_get_a_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str, variable: str
) -> None:
    """Without the server's program the demo ends with what to do about it."""
    monkeypatch.setenv(variable, str(folder / "missing"))
    done = demo(folder, "--backend", backend)
    assert done.returncode == 3
    assert variable in done.stderr and "give the " in done.stderr


def test_wrong_use_is_told(tmp_path: Path) -> None:
    """A folder that is none, or too few workers to kill one, is refused before anything starts."""
    assert "is not a folder" in demo(tmp_path / "missing").stderr
    assert "--no-kill" in demo(tmp_path, "--workers", "1").stderr


def test_census_counts_what_is_there(folder: Path) -> None:
    """One file's counts are what is in it; a file that does not parse counts as such."""
    counts = count_file(folder, "package/module_7.py")
    broken = count_file(folder, "broken.py")
    assert (counts.parsed, counts.functions, counts.classes, counts.imports) == (1, 2, 1, 1)
    assert (counts.longest_function, counts.comments) == (2001, 1)
    assert counts.findings == {"bare_except": 1, "long_function": 1, "many_arguments": 1}
    assert (broken.parsed, broken.unparsable, broken.findings) == (0, 1, {"unparsable": 1})


def test_adding_up_is_the_loop(folder: Path) -> None:
    """Adding up single files is the plain loop, and a difference is told by name."""
    paths = source_files(folder, 10)
    total = add_up(count_file(folder, path) for path in paths)
    assert differences(total, plain_loop(folder, paths)) == []
    assert differences(total, total + Counts(lines=1)) == [f"lines: {total.lines} and {total.lines + 1}"]


async def test_a_worker_that_does_not_come_up_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has not registered in time ends the demo with what it wrote, and a stopped one is still ended."""
    monkeypatch.setattr(workers, "START_TIMEOUT_S", 0.0)
    url = f"sqlite:///{tmp_path}/census.db"
    processes = workers.WorkerProcesses(url, concurrency=1, lease_ttl_ms=1_000, log=tmp_path / "log")
    async with flowfabric.connect(url) as client:
        await processes.start("late")
        with pytest.raises(workers.WorkerEnded, match="not every worker has registered"):
            await processes.wait_ready(client)
        (process,) = processes._processes.values()  # pyright: ignore[reportPrivateUsage]
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        await processes.stop()
        assert process.returncode is not None
        assert time.monotonic() - began < workers.STOP_TIMEOUT_S / 2


async def test_the_killed_worker_is_not_missed(folder: Path, tmp_path: Path) -> None:
    """Whoever looks all the time whether the workers are alive does not take the one that is killed for a failure."""
    url = f"sqlite:///{tmp_path}/census.db"
    processes = workers.WorkerProcesses(url, concurrency=4, lease_ttl_ms=1_000, log=tmp_path / "log")

    async def watch() -> None:
        while True:
            processes.check_alive()
            await asyncio.sleep(0)

    async with flowfabric.connect(url) as client:
        try:
            await processes.start("only")
            await processes.wait_ready(client)
            paths = source_files(folder, 100)
            await client.submit_many(census_file, [{"root": str(folder), "path": path} for path in paths])
            watching = asyncio.create_task(watch())
            killed = await processes.kill_one_at_work(client)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            assert killed is not None and watching.cancelled()
        finally:
            await processes.stop()
