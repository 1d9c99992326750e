"""FlowFabric: an execution engine for long-running, interruptible, resource-aware work.

These are the public names. Each is imported when it is first used, so that importing the package takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from flowfabric.version import VERSION

if TYPE_CHECKING:
    from flowfabric.client.blocking import BlockingClient, BlockingRun, connect_sync
    from flowfabric.client.connecting import connect
    from flowfabric.client.enqueueing import (
        Enqueued,
        enqueue,
        enqueue_many,
        enqueue_many_sync,
        enqueue_sync,
    )
    from flowfabric.client.errors import (
        ResultTimeout,
        RunEnded,
        SubmitManyFailed,
        TaskCancelled,
        TaskExpired,
        TaskFailed,
        TaskSkipped,
    )
    from flowfabric.client.facade import Client
    from flowfabric.client.run import Run, RunFrame
    from flowfabric.contract.errors import (
        Corrupt,
        FlowFabricError,
        Misuse,
        OutcomeUnknown,
        Refused,
        Unauthorized,
        Unavailable,
    )
    from flowfabric.contract.policies import (
        ExecutionPolicy,
        ExponentialBackoff,
        FixedBackoff,
        RetryPolicy,
        RoutingRequirements,
        StreamPolicy,
        TimeoutPolicy,
    )
    from flowfabric.worker import App, Context, PermanentError, RetryableError

__version__: Final = VERSION

__all__ = [
    "App",
    "BlockingClient",
    "BlockingRun",
    "Client",
    "Context",
    "Corrupt",
    "Enqueued",
    "ExecutionPolicy",
    "ExponentialBackoff",
    "FixedBackoff",
    "FlowFabricError",
    "Misuse",
    "OutcomeUnknown",
    "PermanentError",
    "Refused",
    "ResultTimeout",
    "RetryPolicy",
    "RetryableError",
    "RoutingRequirements",
    "Run",
    "RunEnded",
    "RunFrame",
    "StreamPolicy",
    "SubmitManyFailed",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "TaskSkipped",
    "TimeoutPolicy",
    "Unauthorized",
    "Unavailable",
    "connect",
    "connect_sync",
    "enqueue",
    "enqueue_many",
    "enqueue_many_sync",
    "enqueue_sync",
]

_HOMES: Final = {
    "flowfabric.client.blocking": ("BlockingClient", "BlockingRun", "connect_sync"),
    "flowfabric.client.connecting": ("connect",),
    "flowfabric.client.enqueueing": (
        "Enqueued",
        "enqueue",
        "enqueue_many",
        "enqueue_many_sync",
        "enqueue_sync",
    ),
    "flowfabric.client.errors": (
        "ResultTimeout",
        "RunEnded",
        "SubmitManyFailed",
        "TaskCancelled",
        "TaskExpired",
        "TaskFailed",
        "TaskSkipped",
    ),
    "flowfabric.client.facade": ("Client",),
    "flowfabric.client.run": ("Run", "RunFrame"),
    "flowfabric.contract.errors": (
        "Corrupt",
        "FlowFabricError",
        "Misuse",
        "OutcomeUnknown",
        "Refused",
        "Unauthorized",
        "Unavailable",
    ),
    "flowfabric.contract.policies": (
        "ExecutionPolicy",
        "ExponentialBackoff",
        "FixedBackoff",
        "RetryPolicy",
        "RoutingRequirements",
        "StreamPolicy",
        "TimeoutPolicy",
    ),
    "flowfabric.worker": ("App", "Context", "PermanentError", "RetryableError"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
