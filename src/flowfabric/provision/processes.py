"""Processes that end with this one: when it ends, when it crashes, when it is killed with SIGKILL.

A guard, one small shell per process, holds the other end of a pipe. What is started writes its own id into that pipe
before it becomes what it is to be; when the pipe's last writer is gone, the guard kills every process that has not
been taken off the list. Linux could tie a child to its parent by itself, but to the parent's *thread*, and other
systems not at all.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

SHELL: Final = "/bin/sh"
GUARD: Final = """
trap '' HUP INT TERM
pids=
while read -r sign pid; do
    rest=
    for known in $pids; do [ "$known" = "$pid" ] || rest="$rest $known"; done
    if [ "$sign" = + ]; then pids="$rest $pid"; else pids=$rest; fi
done
[ -z "$pids" ] || kill -KILL $pids
"""
"""Reads `+ pid` and `- pid`, one a line."""

ENLIST: Final = 'echo "+ $$" >&0 && exec "$@" </dev/null'
"""Standard input is the guard's pipe, opened for writing."""


class User(NamedTuple):
    """Who a process runs as: whoever starts it, or, if that is root, somebody else."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None
    folder: str | None = None
    """Where it starts: this process may be where another user cannot be."""

    @classmethod
    def other(cls, uid: int, gid: int) -> User:
        """Return somebody else."""
        return cls(uid, gid, (), "/")


class _Guard:
    """The guard of this process."""

    def __init__(self) -> None:
        self.owner: Final = os.getpid()
        reader, self.pipe = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- a command of our own
                (SHELL, "-c", GUARD),
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(reader)
        atexit.register(self._close)

    def _close(self) -> None:
        if self.owner == os.getpid():
            os.close(self.pipe)
            self._process.wait()


_lock = threading.Lock()
_guard: _Guard | None = None


def _the_guard() -> _Guard:
    global _guard  # noqa: PLW0603 -- there is one for the whole process
    with _lock:
        # A process that was forked needs one of its own.
        if _guard is None or _guard.owner != os.getpid():
            _guard = _Guard()
        return _guard


class BoundProcess:
    """A process in a session of its own, so that Ctrl-C does not reach it, which ends when this one does."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: Path,
        environment: Mapping[str, str] | None = None,
        user: User = User(),  # noqa: B008 -- it never changes
    ) -> None:
        """Start it; what it writes is appended to a file."""
        self._guard = _the_guard()
        self._listed = True
        with output.open("ab") as file:
            self._process = subprocess.Popen(  # noqa: S603 -- what the caller wants to run
                (SHELL, "-c", ENLIST, SHELL, *command),
                stdin=self._guard.pipe,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
                user=user.uid,
                group=user.gid,
                extra_groups=user.groups,
                cwd=user.folder,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._note(self._process.poll())

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it and wait until it is gone."""
        if self.poll() is None:
            self._process.kill()
            self._note(self._process.wait())

    def terminate(self, timeout_s: float, number: int = signal.SIGTERM) -> None:
        """Ask it to end, wait so long, then kill it."""
        if self.poll() is not None:
            return
        self._process.send_signal(number)
        try:
            self._note(self._process.wait(timeout_s))
        except subprocess.TimeoutExpired:
            self.kill()

    def _note(self, status: int | None) -> int | None:
        """Take it off the guard's list when it has ended: its id may soon be another's."""
        if status is not None and self._listed:
            self._listed = False
            os.write(self._guard.pipe, f"- {self.pid}\n".encode())
        return status
