"""The worker SDK: tasks as plain functions, what they can say while they run, and the worker that runs them."""

from __future__ import annotations

from flowfabric.worker.app import App, Task
from flowfabric.worker.claims import ClaimedTask, WorkerClient
from flowfabric.worker.context import Context, SyncContext
from flowfabric.worker.errors import PermanentError, RetryableError
from flowfabric.worker.logs import AttemptLogFilter
from flowfabric.worker.runtime import Worker

__all__ = [
    "App",
    "AttemptLogFilter",
    "ClaimedTask",
    "Context",
    "PermanentError",
    "RetryableError",
    "SyncContext",
    "Task",
    "Worker",
    "WorkerClient",
]
