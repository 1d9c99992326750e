"""The demo from end to end: start workers, submit, watch, kill one, add up, compare with the plain loop."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import flowfabric
from examples.code_census.app import ON_PURPOSE, FileReport, census_file, summarise
from examples.code_census.census import Counts, differences, plain_loop, source_files
from examples.code_census.report import Display, Outcome, Takeover
from examples.code_census.workers import Kill, WorkerProcesses
from flowfabric import Client, Run
from flowfabric.backends.urls import public_url
from flowfabric.contract.states import AttemptType
from flowfabric.provision.postgres import PostgresServer
from flowfabric.provision.valkey import ValkeyServer

FOLLOWED_AT_ONCE: Final = 32
SUBMITTED_AT_ONCE: Final = 500


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to count, where, and with what."""

    root: Path
    limit: int | None
    url: str | None
    backend: str
    workers: int
    concurrency: int
    lease_ttl_ms: int
    kill: bool


class Followed:
    """Runs being followed: their findings as they are streamed, their reports as they end."""

    def __init__(self, paths: Sequence[str], runs: Sequence[Run[FileReport]], display: Display) -> None:
        self._todo = list(zip(paths, runs, strict=True))
        self._display = display
        self.reports: dict[str, FileReport] = {}
        self.frames: dict[str, int] = {}
        self.half = asyncio.Event()
        self._half = len(self._todo) // 2

    async def all(self) -> None:
        """Follow every run to its end, some at a time, in the order of submission."""
        queue = iter(self._todo)

        async def follow() -> None:
            for path, run in queue:
                await self._one(path, run)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(FOLLOWED_AT_ONCE, len(self._todo))):
                group.create_task(follow())

    async def _one(self, path: str, run: Run[FileReport]) -> None:
        streamed: dict[int, int] = {}
        async for frame in run.stream():
            streamed[frame.attempt_index] = streamed.get(frame.attempt_index, 0) + 1
            self._display.finding(path, frame.value["kind"], frame.value["text"])
        report = await run.result()
        self.reports[path] = report
        # Frames of attempts that failed or died stay readable; those of the attempt that counted are compared.
        self.frames[path] = streamed.get(report.attempt, 0)
        self._display.finished()
        if len(self.reports) >= self._half:
            self.half.set()


async def run_demo(options: Options) -> Outcome:
    """Run the whole demo and return what it came to."""
    paths = source_files(options.root, options.limit)
    if not paths:
        raise SystemExit(f"there are no Python files under {options.root}")
    with tempfile.TemporaryDirectory(prefix="flowfabric-census-") as folder, ExitStack() as stack:
        url = options.url or _own_store(options.backend, Path(folder), stack)
        processes = WorkerProcesses(
            url,
            concurrency=options.concurrency,
            lease_ttl_ms=options.lease_ttl_ms,
            log=Path(folder) / "workers.log",
        )
        print(f"{len(paths)} files under {options.root}")
        print(f"store {public_url(url)}, {options.workers} worker processes", flush=True)
        async with flowfabric.connect(url) as client:
            try:
                for number in range(1, options.workers + 1):
                    await processes.start(f"census-{number}")
                await processes.wait_ready(client)
                outcome = await _census(options, client, url, paths, processes)
            finally:
                await processes.stop()
    began = time.perf_counter()
    plain = await asyncio.to_thread(plain_loop, options.root, paths)
    outcome.plain_elapsed_s = time.perf_counter() - began
    outcome.problems += differences(outcome.counts, plain)
    return outcome


def _own_store(backend: str, folder: Path, stack: ExitStack) -> str:
    """Make the store of this run in a folder and return its URL; what is started for it ends with the stack."""
    if backend == "valkey":
        return stack.enter_context(ValkeyServer(folder / "valkey")).url
    if backend == "postgres":
        server = PostgresServer(folder / "postgres")
        stack.callback(server.discard)
        server.start()
        return server.url
    return f"sqlite:///{folder}/census.db"


async def _census(
    options: Options, client: Client, url: str, paths: Sequence[str], processes: WorkerProcesses
) -> Outcome:
    began = time.perf_counter()
    runs: list[Run[FileReport]] = []
    root = str(options.root)
    for start in range(0, len(paths), SUBMITTED_AT_ONCE):
        part = paths[start : start + SUBMITTED_AT_ONCE]
        runs += await client.submit_many(census_file, [{"root": root, "path": path} for path in part])
    killed: Kill | None = None
    with Display(len(paths)) as display:
        followed = Followed(paths, runs, display)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(followed.all())
            guard = group.create_task(_guard(processes))
            if options.kill:
                await followed.half.wait()
                killed = await processes.kill_one_at_work(client)
                display.say(_about_kill(killed))
            await following
            summary = await client.submit(summarise, url=url, runs=[run.id for run in runs])
            counts = await summary.result(timeout="5m")
            guard.cancel()
    outcome = Outcome(
        files=len(paths),
        elapsed_s=time.perf_counter() - began,
        plain_elapsed_s=0.0,
        counts=counts,
        retried=0,
        frames=sum(followed.frames.values()),
    )
    await _look_back(client, paths, runs, followed, killed, outcome)
    outcome.problems += _stream_problems(counts, outcome)
    if options.kill and not outcome.takeovers:
        outcome.problems.append("no worker was killed at work, or nothing was taken over from it")
    return outcome


async def _guard(processes: WorkerProcesses) -> None:
    while True:
        await asyncio.sleep(0.5)
        processes.check_alive()


def _about_kill(killed: Kill | None) -> str:
    if killed is None:
        return "no worker could be caught at work: the files are too few or too small"
    return f"killed worker {killed.worker} with SIGKILL while it held {len(killed.held)} files"


async def _look_back(
    client: Client,
    paths: Sequence[str],
    runs: Sequence[Run[FileReport]],
    followed: Followed,
    killed: Kill | None,
    outcome: Outcome,
) -> None:
    """Find out which files took more than one attempt, and why."""
    outcome.killed = killed.worker if killed is not None else None
    outcome.held = len(killed.held) if killed is not None else 0
    for path, run in zip(paths, runs, strict=True):
        if followed.reports[path].attempt == 0:
            continue
        for attempt in await run.attempts():
            if attempt.failure is not None and attempt.failure.category == ON_PURPOSE:
                outcome.retried += 1
            elif attempt.failure is not None:
                outcome.problems.append(f"{path} failed otherwise: {attempt.failure.message}")
            if attempt.attempt_type is AttemptType.RECLAIM and killed is not None and run.id in killed.held:
                outcome.takeovers.append(
                    Takeover(
                        path=path,
                        by=attempt.worker_instance.partition("/")[0],
                        after_ms=attempt.started_at_ms - killed.at_ms,
                    )
                )


def _stream_problems(counts: Counts, outcome: Outcome) -> list[str]:
    found = sum(counts.findings.values())
    return (
        []
        if found == outcome.frames
        else [f"{found} findings were counted, {outcome.frames} came over the streams"]
    )
