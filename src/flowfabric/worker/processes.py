"""Several worker processes under one parent: started, restarted when they crash, told to drain, reloaded on changes.

Children get signals from the parent only (each has a session of its own, so Ctrl-C in a terminal is one signal, not
two) and drain by themselves when the parent is gone, because their standard input ends then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from flowfabric.backends.urls import has_credentials
from flowfabric.contract.errors import Misuse
from flowfabric.signals import install_signals
from flowfabric.telemetry import log
from flowfabric.worker.entry import DONE, MISUSE, REFUSED, TOKEN_VARIABLE, URL_VARIABLE, WorkerSettings
from flowfabric.worker.loading import watched_files

_LOG: Final = log.get_logger("flowfabric.worker")

PROCESSES_MAX: Final = 256
RESTART_FIRST_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0
LOOK_EVERY_S: Final = 1.0
KILL_GRACE_S: Final = 30.0
"""How long after its drain timeout a child may take before it is killed."""

HOPELESS: Final = frozenset({MISUSE, REFUSED})
"""Exit codes that a restart cannot change."""


async def supervise(settings: WorkerSettings) -> int:
    """Run `settings.processes` workers until told to stop; return the exit code."""
    if not 1 <= settings.processes <= PROCESSES_MAX:
        raise Misuse(f"processes must be 1 to {PROCESSES_MAX}, not {settings.processes}")
    supervisor = _Supervisor(settings)
    restore = install_signals(supervisor.on_signal)
    try:
        return await supervisor.run()
    finally:
        restore()


class _Supervisor:
    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._children: set[asyncio.subprocess.Process] = set()
        self._stopping = asyncio.Event()
        self._signals = 0
        self._exit_code = DONE
        self._generation = 0
        self._reloaded = asyncio.Event()

    def on_signal(self) -> None:
        """Pass a signal on: the first drains, the second hurries, the third kills."""
        self._signals += 1
        self._stopping.set()
        for child in tuple(self._children):
            if child.returncode is None:
                child.send_signal(signal.SIGKILL if self._signals > 2 else signal.SIGTERM)

    async def run(self) -> int:
        keepers = [
            asyncio.create_task(self._keep(number), name=f"flowfabric-process-{number}")
            for number in range(self._settings.processes)
        ]
        watcher = asyncio.create_task(self._watch_files()) if self._settings.reload else None
        try:
            await asyncio.gather(*keepers)
            leftover = [asyncio.ensure_future(self._reap(child)) for child in tuple(self._children)]
            if leftover:
                await asyncio.wait(leftover)
        finally:
            if watcher is not None:
                watcher.cancel()
            for child in tuple(self._children):
                if child.returncode is None:
                    child.kill()
        return self._exit_code

    async def _keep(self, number: int) -> None:
        """Keep one worker process running."""
        crashes = 0
        while not self._stopping.is_set():
            generation = self._generation
            begun = time.monotonic()
            child = await self._start()
            _LOG.info("process_started", number=number, pid=child.pid)
            code = await self._wait_or_reload(child, generation)
            if code is None:
                continue  # it drains by itself while its successor works
            if self._stopping.is_set():
                return
            if code in HOPELESS and not self._settings.reload:
                self._exit_code = code
                self.on_signal()
                return
            crashes = 0 if time.monotonic() - begun > HEALTHY_AFTER_S else crashes + 1
            pause = min(RESTART_MAX_S, RESTART_FIRST_S * 2.0 ** min(crashes - 1, 10)) if crashes else 0.0
            _LOG.warning("process_ended", number=number, pid=child.pid, code=code, again_in_s=pause)
            await self._pause(pause, generation)

    async def _start(self) -> asyncio.subprocess.Process:
        environment = dict(os.environ)
        if self._settings.token is not None:
            environment[TOKEN_VARIABLE] = self._settings.token
        if has_credentials(self._settings.url):
            environment[URL_VARIABLE] = self._settings.url
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "flowfabric.worker",
            *arguments_of(self._settings),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        self._children.add(child)
        return child

    async def _reap(self, child: asyncio.subprocess.Process) -> int:
        code = await child.wait()
        self._children.discard(child)
        return code

    async def _wait_or_reload(self, child: asyncio.subprocess.Process, generation: int) -> int | None:
        """Wait for a child to end and return its exit code; None when files changed and it was told to drain."""
        ended = asyncio.ensure_future(self._reap(child))
        told_at: float | None = None
        while not ended.done():
            await asyncio.wait((ended,), timeout=0.2)
            if ended.done():
                break
            if self._generation != generation and not self._stopping.is_set():
                child.send_signal(signal.SIGTERM)
                return None
            if self._stopping.is_set():
                told_at = told_at or time.monotonic()
                if time.monotonic() - told_at > self._settings.drain_timeout_s + KILL_GRACE_S:
                    child.kill()
        return ended.result()

    async def _pause(self, pause_s: float, generation: int) -> None:
        deadline = time.monotonic() + pause_s
        while time.monotonic() < deadline and not self._stopping.is_set():
            if self._generation != generation:
                return
            await asyncio.sleep(min(0.2, pause_s))

    async def _watch_files(self) -> None:
        seen = _stamps(self._settings.app)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = await asyncio.to_thread(_stamps, self._settings.app)
            if now != seen:
                changed = sorted(
                    str(path) for path in now.keys() | seen.keys() if now.get(path) != seen.get(path)
                )
                seen = now
                self._generation += 1
                _LOG.info("app_reloads", changed=changed[:5])


def _stamps(reference: str) -> dict[Path, tuple[int, int]]:
    found: dict[Path, tuple[int, int]] = {}
    for path in watched_files(reference):
        try:
            status = path.stat()
        except OSError:
            continue
        found[path] = (status.st_mtime_ns, status.st_size)
    return found


def arguments_of(settings: WorkerSettings) -> list[str]:
    """Write settings as arguments of `python -m flowfabric.worker`; what is secret goes by the environment."""
    arguments = [
        settings.app,
        *([] if has_credentials(settings.url) else ["--url", settings.url]),
        "--namespace",
        settings.namespace,
        "--concurrency",
        str(settings.concurrency),
        "--lease-ttl",
        str(settings.lease_ttl_s),
        "--drain-timeout",
        str(settings.drain_timeout_s),
        "--log-level",
        settings.log_level,
        "--log-format",
        settings.log_format,
        "--supervised",
    ]
    if settings.worker_id is not None:
        arguments += ["--worker-id", settings.worker_id]
    for lane in settings.lanes:
        arguments += ["--lane", lane]
    for capability in settings.capabilities:
        arguments += ["--capability", capability]
    if not settings.timers:
        arguments.append("--no-timers")
    return arguments
