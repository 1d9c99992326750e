"""The supervisor, run with real tasks."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.contract.errors import FlowFabricError, ResourceExhausted, Unavailable
from flowfabric.engine.supervisor import Supervisor


async def test_a_crashed_task_is_started_again() -> None:
    """A task that raises is restarted after a pause, and the other tasks go on.

    Acceptance: crashed-engine-task-restarts
    """
    runs: list[str] = []
    again = asyncio.Event()

    async def crashing() -> None:
        runs.append("crashing")
        if len(runs) == 1:
            raise ValueError("first run")
        again.set()
        await asyncio.Event().wait()

    async def steady() -> None:
        await asyncio.Event().wait()

    supervisor = Supervisor({"crashing": crashing, "steady": steady}, restart_pause_s=0.01)
    await supervisor.start()
    await asyncio.wait_for(again.wait(), 5)
    assert runs == ["crashing", "crashing"]
    assert supervisor.restarts == 1
    assert await supervisor.stop(5)


@pytest.mark.parametrize("error", [Unavailable, ResourceExhausted])
async def test_an_unavailable_store_is_no_crash(error: type[FlowFabricError]) -> None:
    """A task that finds the store unavailable or full pauses and goes on, and is not counted as crashed."""
    seen = 0
    back = asyncio.Event()

    async def waiting() -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            raise error
        back.set()
        await asyncio.Event().wait()

    supervisor = Supervisor({"waiting": waiting})
    await supervisor.start()
    await asyncio.wait_for(back.wait(), 5)
    assert supervisor.restarts == 0
    assert await supervisor.stop(5)


async def test_stopping_reports_a_task_that_does_not_end() -> None:
    """Stopping waits for the grace and says when a task did not end within it."""
    release = asyncio.Event()
    entered = asyncio.Event()

    async def stubborn() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()

    supervisor = Supervisor({"stubborn": stubborn})
    await supervisor.start()
    await entered.wait()
    assert not await supervisor.stop(0.05)
    release.set()


async def test_starting_twice_runs_the_tasks_once() -> None:
    """A second start of a running supervisor does nothing; stopping twice is harmless."""
    started = 0

    async def task() -> None:
        nonlocal started
        started += 1
        await asyncio.Event().wait()

    supervisor = Supervisor({"task": task})
    await supervisor.start()
    await supervisor.start()
    await asyncio.sleep(0)
    assert started == 1
    assert supervisor.is_running
    assert await supervisor.stop(5)
    assert not supervisor.is_running
    assert await supervisor.stop(5)
