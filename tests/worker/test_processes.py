"""Real worker processes: signals drain them, kills lose nothing, several run under one parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowfabric.contract.attempt import AttemptList
from flowfabric.contract.execution import ResultCompleted
from flowfabric.contract.worker import WorkerList
from flowfabric.server.run import running
from tests.worker import process_app
from tests.worker.rig import Rig, opened, until

ROOT = Path(__file__).parents[2]
TOKEN = "t" * 40


@asynccontextmanager
async def worker_process(
    url: str, *arguments: str, app: str = "tests/worker/process_app.py", **environment: str
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Start `python -m flowfabric.worker`; end it, and whatever it started, at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "flowfabric.worker",
        app,
        "--url",
        url,
        "--log-format",
        "json",
        *arguments,
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    """Wait for a process to end; return its exit code and what it logged."""
    async with asyncio.timeout(30):
        _, logged = await process.communicate()
    assert process.returncode is not None
    return process.returncode, logged.decode()


async def logged_event(process: asyncio.subprocess.Process, event: str) -> None:
    """Read a process's log until an event."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while f'"{event}"' not in (line := (await process.stderr.readline()).decode()):
            assert line, f"the process ended without {event}"


async def started(folder: Path, attempt: int = 0) -> int:
    """Wait until the handler runs; return its process id."""
    mark = folder / f"started-{attempt}"
    await until(lambda: mark.exists() and bool(mark.read_text()))
    return int(mark.read_text())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child of ours that has ended but was not waited for is not alive.
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.mark.parametrize("task", [process_app.hold, process_app.hold_in_thread])
async def test_sigterm_lets_handlers_finish(tmp_path: Path, task: Any) -> None:
    """On SIGTERM a worker claims no more, lets its handler finish, reports, and exits with 0."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with opened(url) as (rig, _), worker_process(url) as process:
        execution_id = await rig.submit(task, folder=str(tmp_path))
        pid = await started(tmp_path)
        assert pid == process.pid
        process.send_signal(signal.SIGTERM)
        await logged_event(process, "worker_drains")
        later = await rig.submit(process_app.quick, number=1)
        (tmp_path / "go").touch()
        code, logged = await ended(process)
        assert code == 0, logged
        result = await rig.result(execution_id)
        assert isinstance(result, ResultCompleted)
        assert (await rig.describe(later)).total_attempt_count == 0


async def test_sigterm_hands_back_what_takes_too_long(tmp_path: Path) -> None:
    """A handler that outlasts the drain is cancelled and handed back; the next worker runs it at once."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with opened(url) as (rig, _):
        async with worker_process(url, "--drain-timeout", "0.1") as process:
            execution_id = await rig.submit(process_app.hold, folder=str(tmp_path))
            await started(tmp_path)
            process.send_signal(signal.SIGTERM)
            code, logged = await ended(process)
            assert code == 0, logged
        assert (await rig.describe(execution_id)).current_lease is None
        (tmp_path / "go").touch()
        async with worker_process(url):
            result = await rig.result(execution_id)
        assert isinstance(result, ResultCompleted)
        assert result.attempt_index == 1


async def test_sigint_twice_hurries(tmp_path: Path) -> None:
    """The second Ctrl-C does not wait for the drain timeout."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with opened(url) as (rig, _), worker_process(url, "--drain-timeout", "600") as process:
        execution_id = await rig.submit(process_app.hold, folder=str(tmp_path))
        await started(tmp_path)
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.1)
        assert process.returncode is None
        process.send_signal(signal.SIGINT)
        code, logged = await ended(process)
        assert code == 0, logged
        assert (await rig.describe(execution_id)).current_lease is None


@pytest.mark.parametrize("through", ["store", "server"])
async def test_a_killed_workers_execution_is_taken_over(tmp_path: Path, through: str) -> None:
    """After kill -9 the lease runs out and another worker finishes the execution: once, as a new attempt.

    Acceptance: killed-worker-is-taken-over
    """
    store = f"sqlite:///{tmp_path}/a.db"
    async with opened(store) as (rig, backend), running(backend, engine=False) as server:
        url = store if through == "store" else server
        execution_id = await rig.submit(process_app.hold, folder=str(tmp_path))
        async with worker_process(url, "--lease-ttl", "0.5") as first:
            pid = await started(tmp_path)
            assert pid == first.pid
            async with worker_process(url, "--lease-ttl", "0.5") as second:

                async def both() -> bool:
                    return len((await backend.worker.list(WorkerList())).workers) == 2

                await until(both)
                first.kill()
                assert await started(tmp_path, 1) == second.pid
                (tmp_path / "go").touch()
                result = await rig.result(execution_id)
        assert isinstance(result, ResultCompleted)
        assert process_app.hold.decode_result(result.result) == [1, second.pid]
        attempts = (await backend.attempt.list(AttemptList(execution_id=execution_id))).attempts
        assert [attempt.attempt_type for attempt in attempts] == ["initial", "reclaim"]
        assert [frame.attempt_index for frame in await rig.frames(execution_id)] == [0, 1]


async def test_several_processes_share_the_work(tmp_path: Path) -> None:
    """With --processes 2 two children work; SIGTERM to the parent drains both."""
    url = f"sqlite:///{tmp_path}/a.db"
    folders = [tmp_path / "one", tmp_path / "two"]
    async with opened(url) as (rig, backend):
        async with worker_process(url, "--processes", "2", "--concurrency", "1") as parent:
            ids = []
            for folder in folders:
                folder.mkdir()
                ids.append(await rig.submit(process_app.hold, folder=str(folder)))
            pids = {await started(folder) for folder in folders}
            assert len(pids) == 2
            assert parent.pid not in pids
            parent.send_signal(signal.SIGTERM)
            for folder in folders:
                (folder / "go").touch()
            code, logged = await ended(parent)
            assert code == 0, logged
            assert not any(is_alive(pid) for pid in pids)
        for execution_id in ids:
            assert isinstance(await rig.result(execution_id), ResultCompleted)
        assert (await backend.worker.list(WorkerList())).workers == ()


async def test_a_crashed_process_is_started_again(tmp_path: Path) -> None:
    """A child that dies is replaced, and its execution runs in the next one."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with (
        opened(url) as (rig, _),
        worker_process(url, "--processes", "2", "--lease-ttl", "0.5") as parent,
    ):
        execution_id = await rig.submit(process_app.die, folder=str(tmp_path))
        assert isinstance(await rig.result(execution_id), ResultCompleted)
        parent.send_signal(signal.SIGTERM)
        code, logged = await ended(parent)
        assert code == 0, logged
        assert '"process_ended"' in logged


async def test_children_of_a_killed_parent_drain(tmp_path: Path) -> None:
    """When the parent is killed its children finish what they run and end by themselves."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with opened(url) as (rig, _), worker_process(url, "--processes", "2") as parent:
        execution_id = await rig.submit(process_app.hold, folder=str(tmp_path))
        pid = await started(tmp_path)
        parent.kill()
        (tmp_path / "go").touch()
        assert isinstance(await rig.result(execution_id), ResultCompleted)
        await until(lambda: not is_alive(pid))


async def test_a_changed_file_reloads_the_app(tmp_path: Path) -> None:
    """With --reload a changed file starts a new worker, while the old one finishes what it runs."""
    url = f"sqlite:///{tmp_path}/a.db"
    source = tmp_path / "changing.py"
    text = (ROOT / "tests/worker/process_app.py").read_text()
    source.write_text(text)
    async with opened(url) as (rig, _), worker_process(url, "--reload", app=str(source)) as parent:
        held = await rig.submit(process_app.hold, folder=str(tmp_path))
        await started(tmp_path)
        source.write_text(text.replace("return number", "return number + 1_000"))

        async def is_new() -> bool:
            result = await rig.run(process_app.quick, number=1)
            assert isinstance(result, ResultCompleted)
            return process_app.quick.decode_result(result.result) == 1_001

        await until(is_new)
        (tmp_path / "go").touch()
        result = await rig.result(held)
        assert isinstance(result, ResultCompleted)
        assert result.attempt_index == 0
        parent.send_signal(signal.SIGTERM)
        assert (await ended(parent))[0] == 0


async def test_a_token_is_taken_from_the_environment(tmp_path: Path) -> None:
    """A worker behind a token reads it from FLOWFABRIC_TOKEN; without it, it is refused and exits with 4."""
    from flowfabric.server.settings import ServerSettings

    settings = ServerSettings.load({"FF_API_TOKEN": TOKEN}, listen="127.0.0.1:0")
    async with opened() as (rig, backend), running(backend, settings, engine=False) as url:
        async with worker_process(url, FLOWFABRIC_TOKEN=TOKEN):
            assert isinstance(await rig.run(process_app.quick, number=1), ResultCompleted)
        async with worker_process(url, FLOWFABRIC_TOKEN="") as process:
            code, logged = await ended(process)
        assert code == 4
        assert "token" in logged


@pytest.mark.parametrize("arguments", [(), ("--processes", "2")])
async def test_an_app_that_cannot_be_loaded_is_misuse(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A missing app ends the worker, and a supervisor, with exit code 2 and a message."""
    async with worker_process(f"sqlite:///{tmp_path}/a.db", *arguments, app="nowhere.py") as process:
        code, logged = await ended(process)
    assert code == 2
    assert "there is no file nowhere.py" in logged


async def test_many_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    """With workers killed at random moments every execution completes exactly once."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with opened(url) as (rig, backend):
        ids = [await rig.submit(process_app.quick, number=number) for number in range(400)]
        for _ in range(5):
            async with worker_process(url, "--lease-ttl", "0.5") as process:

                async def some_more(rig: Rig = rig) -> bool:
                    return bool((await backend.worker.list(WorkerList())).workers)

                await until(some_more)
                process.kill()
        async with worker_process(url, "--lease-ttl", "0.5"):
            for number, execution_id in enumerate(ids):
                result = await rig.result(execution_id)
                assert isinstance(result, ResultCompleted)
                assert process_app.quick.decode_result(result.result) == number
        report = await backend.maintenance.fsck()
        assert report.findings == ()
