"""Processes bound to the one that starts them: they end with it, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowfabric.provision.processes import BoundProcess

PATIENCE_S = 20
SLEEPER = ("sleep", "1000")
PARENT = """
import os, sys, time
from pathlib import Path
from flowfabric.provision.processes import BoundProcess

started = [BoundProcess(("sleep", "1000"), output=Path(sys.argv[1])) for _ in range(3)]
started[0].kill()
print(*(process.pid for process in started[1:]), flush=True)
{then}
"""


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and waits for its parent does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


def wait_gone(pids: list[int]) -> None:
    until = time.monotonic() + PATIENCE_S
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < until, f"still alive: {alive}"
        time.sleep(0.02)  # sleeps: another process is asked again shortly


@pytest.mark.parametrize(
    "then",
    [
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 15); time.sleep(60)",
        "os._exit(0)",
        "raise SystemExit(3)",
        "raise ValueError",
        "",
    ],
)
def test_they_end_with_the_process_that_started_them(then: str, tmp_path: Path) -> None:
    """Whether it returns, exits, raises or is killed: nothing it started outlives it."""
    parent = subprocess.run(
        [sys.executable, "-c", PARENT.format(then=then), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    pids = [int(word) for word in parent.stdout.split()]
    assert len(pids) == 2
    wait_gone(pids)


def test_a_forked_process_takes_nothing_of_its_parents_along(tmp_path: Path) -> None:
    """A process that is forked and starts something of its own ends that with itself, and nothing else."""
    ours = BoundProcess(SLEEPER, output=tmp_path / "out")
    code = PARENT.format(
        then="""
if (child := os.fork()) == 0:
    print(BoundProcess(("sleep", "1000"), output=Path(sys.argv[1])).pid, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(*(process.poll() for process in started[1:]), flush=True)
"""
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[2] == "None None"
    wait_gone([int(word) for word in (*lines[0].split(), lines[1])])
    assert ours.poll() is None
    ours.kill()


def test_how_it_ended(tmp_path: Path) -> None:
    """The exit status is told, negative for a signal; ending what has ended does nothing."""
    quick = BoundProcess(("sh", "-c", "echo out; echo err >&2; exit 7"), output=tmp_path / "out")
    until = time.monotonic() + PATIENCE_S
    while quick.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)  # sleeps: another process is asked again shortly
    assert quick.poll() == 7
    assert sorted((tmp_path / "out").read_text().split()) == ["err", "out"]
    quick.kill()
    quick.terminate(1)
    quick.send_signal(signal.SIGTERM)
    slow = BoundProcess(SLEEPER, output=tmp_path / "out")
    assert slow.poll() is None
    slow.terminate(PATIENCE_S)
    assert slow.poll() == -signal.SIGTERM


def test_one_that_will_not_end_is_killed(tmp_path: Path) -> None:
    """What does not end within its time when asked to is killed."""
    deaf = BoundProcess(
        (
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(99)",
        ),
        output=tmp_path / "out",
    )
    until = time.monotonic() + PATIENCE_S
    while not (tmp_path / "out").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)  # sleeps: another process is asked again shortly
    deaf.terminate(0.05)
    assert deaf.poll() == -signal.SIGKILL


def test_ctrl_c_does_not_reach_it(tmp_path: Path) -> None:
    """It is in a session of its own: a signal to the terminal's processes is its starter's to handle."""
    bound = BoundProcess(SLEEPER, output=tmp_path / "out")
    assert os.getsid(bound.pid) == bound.pid != os.getsid(0)
    bound.kill()
