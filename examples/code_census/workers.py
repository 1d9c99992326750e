"""The demo's own worker processes, and killing one of them while it is at work."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flowfabric.client.facade import Client
from flowfabric.contract.execution import ExecutionDescribe
from flowfabric.contract.states import PublicState
from flowfabric.contract.worker import WorkerList

APP: Final = "examples.code_census.app:app"
CHECKOUT: Final = Path(__file__).resolve().parents[2]
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 20.0
CAUGHT_TIMEOUT_S: Final = 10.0


class WorkerEnded(Exception):
    """A worker process ended by itself, or does not come up."""


@dataclass(kw_only=True)
class Kill:
    """A worker that was killed, and what it held then."""

    worker: str
    at_ms: int
    held: list[str] = field(default_factory=list[str])


class WorkerProcesses:
    """Worker processes started for this run and stopped with it."""

    def __init__(self, url: str, *, concurrency: int, lease_ttl_ms: int, log: Path) -> None:
        self._url = url
        self._concurrency = concurrency
        self._lease_ttl_ms = lease_ttl_ms
        self._log = log
        self._processes: dict[str, Process] = {}

    async def start(self, name: str) -> None:
        """Start one worker process."""
        # The checkout is on the path rather than the working folder, where a store's relative URL keeps its meaning.
        paths = [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
        # A store's URL may hold a password, and everybody on the machine can read command lines.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "FLOWFABRIC_URL": self._url,
        }
        with self._log.open("ab") as log:
            self._processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "flowfabric", "worker", APP,
                "--worker-id", name, "--concurrency", str(self._concurrency),
                "--lease-ttl", f"{self._lease_ttl_ms}ms",
                env=environment, stdin=DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def wait_ready(self, client: Client) -> None:
        """Wait until every worker has registered: from then on the store knows the tasks' retries and timeouts."""
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            self.check_alive()
            page = await client.stores.worker.list(WorkerList())
            alive = [info.worker_instance for info in page.workers if info.alive]
            if all(
                any(_is_of(instance, name, process) for instance in alive)
                for name, process in self._processes.items()
            ):
                return
            if time.monotonic() >= until:
                raise WorkerEnded(
                    self._with_log(f"not every worker has registered after {START_TIMEOUT_S:g} s")
                )
            await asyncio.sleep(0.05)

    def check_alive(self) -> None:
        """Raise `WorkerEnded` if one did, with the end of what it wrote."""
        for name, process in self._processes.items():
            if process.returncode is not None:
                raise WorkerEnded(self._with_log(f"worker {name} ended with status {process.returncode}"))

    def _with_log(self, message: str) -> str:
        """Return a message with the end of what the workers wrote."""
        wrote = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        return f"{message}:\n" + "\n".join(wrote)

    async def kill_one_at_work(self, client: Client) -> Kill | None:
        """Kill a worker with SIGKILL while it holds work; None when none did for a while.

        The process is stopped first, so that what it holds when it is looked at is what it holds when it dies.
        """
        until = time.monotonic() + CAUGHT_TIMEOUT_S
        while time.monotonic() < until:
            for name, process in list(self._processes.items()):
                if process.returncode is not None:
                    continue
                process.send_signal(signal.SIGSTOP)
                held = await _held_by(client, name, process)
                if held:
                    # Whoever looks whether all are alive must not miss it.
                    del self._processes[name]
                    process.kill()
                    killed_at_ms = time.time_ns() // 1_000_000
                    await process.wait()
                    return Kill(worker=name, at_ms=killed_at_ms, held=held)
                process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.02)
        return None

    async def stop(self) -> None:
        """Let the workers finish what they hold and end; kill those that do not in time."""
        for process in self._processes.values():
            if process.returncode is None:
                # It may have been stopped, to be killed.
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._processes.values():
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._processes.clear()


def _is_of(instance: str, name: str, process: Process) -> bool:
    """Say whether a worker instance is this process: its name holds the worker's and the process id."""
    return instance.startswith(f"{name}/{process.pid}-")


async def _held_by(client: Client, name: str, process: Process) -> list[str]:
    held: list[str] = []
    async for info in client.list(state=PublicState.ACTIVE):
        snapshot = await client.stores.execution.describe(ExecutionDescribe(execution_id=info.execution_id))
        lease = snapshot.current_lease
        if lease is not None and _is_of(lease.worker_instance, name, process):
            held.append(info.execution_id)
    return held
