"""Leases are renewed whatever the event loop does, and their loss reaches the handler."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import (
    ExecutionCancel,
    ResultCancelled,
    ResultCompleted,
)
from flowfabric.contract.lease import LeaseHistory, LeaseRevoke
from flowfabric.contract.states import CancelSource, PublicState
from flowfabric.worker import App, Context, SyncContext, Worker
from tests.worker.rig import Rig, until

app = App("leases")
seen: list[Any] = []

TTL_S = 0.6


@pytest.fixture(autouse=True)
def _clean() -> None:
    seen.clear()


@app.task
async def waits(ctx: Context) -> None:
    seen.append(ctx)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as error:
        seen.append(("cancelled", ctx.cancel_reason, ctx.is_cancelled, time.monotonic(), error.args))
        raise


@app.task
def waits_in_thread(ctx: SyncContext) -> None:
    seen.append(ctx)
    while not ctx.is_cancelled:
        time.sleep(0.005)  # sleeps: a plain function that waits to be cancelled has nothing to await
    seen.append(("cancelled", ctx.cancel_reason, ctx.is_cancelled, time.monotonic(), ()))
    ctx.raise_if_cancelled()


@app.task
async def ignores(ctx: Context) -> str:
    seen.append(ctx)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return "finished anyway"


@app.task
async def blocks(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251  # sleeps: blocking the event loop is what is tested
    return "done"


@app.task(timeout="300ms")
async def blocks_past_its_timeout(seconds: float) -> str:
    seen.append("ran")
    time.sleep(seconds)  # noqa: ASYNC251  # sleeps: blocking the event loop is what is tested
    return "done"


async def cancel(backend: Backend, execution_id: Any) -> None:
    await backend.execution.cancel(
        ExecutionCancel(execution_id=execution_id, source=CancelSource.OPERATOR_OVERRIDE, reason="enough")
    )


@pytest.mark.parametrize("task", [waits, waits_in_thread])
async def test_an_operators_cancel_reaches_the_handler_within_a_renewal(
    backend: Backend, rig: Rig, task: Any
) -> None:
    """A cancelled execution's handler is cancelled within a third of the lease's life, and told why.

    Acceptance: cancel-reaches-the-handler
    """
    async with Worker(backend, app, lease_ttl=TTL_S) as worker:
        execution_id = await rig.submit(task)
        await until(lambda: len(seen) == 1)
        asked_at = time.monotonic()
        await cancel(backend, execution_id)
        await until(lambda: len(seen) == 2)
        await until(lambda: worker.running == 0)
        assert isinstance(await rig.result(execution_id), ResultCancelled)
    _, reason, is_cancelled, told_at, _ = seen[1]
    assert (reason, is_cancelled) == ("cancelled", True)
    assert told_at - asked_at < TTL_S / 3 + 0.15


async def test_a_revoked_lease_cancels_the_handler_and_another_attempt_follows(
    backend: Backend, rig: Rig
) -> None:
    """Taking the execution away cancels the handler; the execution is claimed again as a new attempt."""
    async with Worker(backend, app, lease_ttl=TTL_S):
        execution_id = await rig.submit(waits)
        await until(lambda: len(seen) == 1)
        await backend.lease.revoke(LeaseRevoke(execution_id=execution_id))
        await until(lambda: len([one for one in seen if isinstance(one, Context)]) == 2)
        await until(lambda: len(seen) == 3)
        second = next(one for one in seen[1:] if isinstance(one, Context))
        assert (second.attempt, second.attempt_type) == (1, "reclaim")
        assert second.fencing_token > seen[0].fencing_token
        await cancel(backend, execution_id)
    reasons = [one[1] for one in seen if isinstance(one, tuple)]
    assert reasons[0] in {"lease_revoked", "stale_lease"}


async def test_the_result_of_a_handler_that_lost_its_lease_is_dropped(backend: Backend, rig: Rig) -> None:
    """A handler that finishes although it was cancelled changes nothing, and a log line says so."""
    with capture_logs() as lines:
        async with Worker(backend, app, lease_ttl=TTL_S) as worker:
            execution_id = await rig.submit(ignores)
            await until(lambda: len(seen) == 1)
            await cancel(backend, execution_id)
            await until(lambda: worker.running == 0)
            assert isinstance(await rig.result(execution_id), ResultCancelled)
    dropped = [line for line in lines if line["event"] == "attempt_dropped"]
    assert [(line["execution_id"], line["reason"]) for line in dropped] == [(execution_id, "cancelled")]


async def test_a_blocked_event_loop_keeps_its_leases(backend: Backend, rig: Rig) -> None:
    """A handler that blocks the loop for several lives of its lease keeps it: one attempt, one lease, a result."""
    with capture_logs() as lines:
        async with Worker(backend, app, lease_ttl="300ms", blocked_warning="200ms"):
            execution_id = await rig.submit(blocks, seconds=1.2)
            ended = await rig.result(execution_id)
    assert isinstance(ended, ResultCompleted)
    assert ended.attempt_index == 0
    history = await backend.lease.history(LeaseHistory(execution_id=execution_id))
    names = [event.name.value for event in history.events]
    assert "expired" not in names
    assert names.count("acquired") == 1
    warned = [line for line in lines if line["event"] == "event_loop_blocked"]
    assert len(warned) == 1
    assert warned[0]["task"] == f"flowfabric blocks {execution_id}"
    assert "test_leases.py" in warned[0]["at"]
    assert any(line["event"] == "event_loop_free_again" for line in lines)


async def test_a_loop_blocked_past_the_attempts_timeout_is_given_up(backend: Backend, rig: Rig) -> None:
    """A blocked loop's lease is renewed no longer than the attempt may take."""
    with capture_logs() as lines:
        async with Worker(backend, app, lease_ttl="150ms"):
            execution_id = await rig.submit(blocks_past_its_timeout, seconds=1.0)
            await rig.result(execution_id)
    assert any(line["event"] in {"lease_given_up", "attempt_dropped"} for line in lines)


async def test_a_plain_function_never_blocks_the_loop(backend: Backend, rig: Rig) -> None:
    """While a plain function runs in its thread, the event loop goes on and nothing is warned about."""
    with capture_logs() as lines:
        async with Worker(backend, app, lease_ttl=TTL_S, blocked_warning="100ms"):
            execution_id = await rig.submit(waits_in_thread)
            await until(lambda: len(seen) == 1)
            begun = asyncio.get_running_loop().time()
            for _ in range(50):
                await asyncio.sleep(0.005)
            assert asyncio.get_running_loop().time() - begun < 2.0
            await cancel(backend, execution_id)
            await until(lambda: len(seen) == 2)
    assert not any(line["event"] == "event_loop_blocked" for line in lines)


async def test_an_idle_worker_stays_alive_by_heartbeats(backend: Backend, rig: Rig) -> None:
    """Without leases to renew, heartbeats keep the worker registered as alive."""
    from flowfabric.contract.worker import WorkerList

    async with Worker(backend, app, liveness_ttl="300ms") as worker:
        first = (await backend.worker.list(WorkerList())).workers[0]

        async def beaten() -> bool:
            found = (await backend.worker.list(WorkerList())).workers[0]
            return found.last_heartbeat_at_ms >= first.last_heartbeat_at_ms + 600 and found.alive

        await until(beaten)
        assert first.worker_instance == worker.registration.worker_instance
    assert (await backend.worker.list(WorkerList())).workers == ()


async def test_a_forgotten_worker_registers_again(backend: Backend, rig: Rig) -> None:
    """A worker that the registry has forgotten registers again by itself."""
    from flowfabric.contract.worker import WorkerList, WorkerMarkDead

    async with Worker(backend, app, liveness_ttl="300ms") as worker:
        await backend.worker.mark_dead(WorkerMarkDead(worker_instance=worker.registration.worker_instance))
        assert (await backend.worker.list(WorkerList())).workers == ()

        async def back() -> bool:
            return bool((await backend.worker.list(WorkerList())).workers)

        await until(back)


async def test_a_waiting_state_is_left_when_its_worker_dies(backend: Backend, rig: Rig) -> None:
    """Declaring a worker dead cancels its handlers within a renewal and frees the execution at once."""
    from flowfabric.contract.worker import WorkerMarkDead

    async with Worker(backend, app, lease_ttl=TTL_S) as worker:
        execution_id = await rig.submit(waits)
        await until(lambda: len(seen) == 1)
        await backend.worker.mark_dead(WorkerMarkDead(worker_instance=worker.registration.worker_instance))
        await until(lambda: any(isinstance(one, tuple) for one in seen))
        await rig.until_state(execution_id, PublicState.ACTIVE)
        await cancel(backend, execution_id)


def test_logging_is_not_configured_by_importing() -> None:
    """Importing the SDK leaves the user's logging configuration alone."""
    code = "import structlog, flowfabric.worker; raise SystemExit(structlog.is_configured())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
