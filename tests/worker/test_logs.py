"""The user's own log lines carry the execution's id, the attempt and the trace."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import pytest
import structlog
from opentelemetry import trace

from flowfabric.contract.backend import Backend
from flowfabric.worker import App, AttemptLogFilter, Context, SyncContext, Worker
from tests.worker.rig import Rig

app = App("logs")
traces: list[str] = []
TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def speak(ctx: Context | SyncContext) -> None:
    logging.getLogger("user").warning("from the standard library")
    structlog.get_logger().info("from structlog")
    ctx.log.info("from the context")
    traces.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")


@app.task
async def speaks(ctx: Context) -> None:
    speak(ctx)


@app.task
def speaks_in_thread(ctx: SyncContext) -> None:
    speak(ctx)


@pytest.mark.parametrize("task", [speaks, speaks_in_thread])
async def test_log_lines_name_the_execution(
    backend: Backend, rig: Rig, task: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines by the standard library, structlog and ctx.log carry the ids, in async handlers and in threads."""
    events: list[dict[str, Any]] = []

    def keep(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
        events.append(dict(event))
        raise structlog.DropEvent

    caplog.handler.addFilter(AttemptLogFilter())
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    try:
        async with Worker(backend, app):
            execution_id = await rig.submit(task, traceparent=TRACEPARENT)
            await rig.result(execution_id)
    finally:
        structlog.reset_defaults()
    expected = {
        "execution_id": execution_id,
        "attempt": 0,
        "kind": task.name,
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
    }
    (record,) = [record for record in caplog.records if record.name == "user"]
    assert {name: getattr(record, name) for name in expected} == expected
    spoken = [event for event in events if str(event["event"]).startswith("from ")]
    assert len(spoken) == 2
    for event in spoken:
        assert {name: event[name] for name in expected} == expected
    assert traces[-1] == "ab" * 16


def test_lines_outside_of_tasks_have_empty_fields() -> None:
    """The filter leaves other lines whole: a format that names the fields works everywhere."""
    record = logging.LogRecord("n", logging.INFO, "f", 1, "m", (), None)
    assert AttemptLogFilter().filter(record)
    assert vars(record)["execution_id"] == ""
