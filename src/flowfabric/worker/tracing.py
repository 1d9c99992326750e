"""The trace that an execution was created under, continued around its handler.

With OpenTelemetry's API alone the trace context is only passed on; with its SDK set up, each run of a handler is a
span. Nothing is imported, and nothing costs time, unless an execution carries a trace or the SDK is loaded.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from flowfabric.contract.lease import Lease

_NOTHING: Final[AbstractContextManager[Any]] = nullcontext()


def span_of(lease: Lease) -> AbstractContextManager[Any]:
    """Return a context manager that makes the attempt's span the current one."""
    if lease.traceparent is None and "opentelemetry.sdk.trace" not in sys.modules:
        return _NOTHING
    return _span(lease)


def _span(lease: Lease) -> AbstractContextManager[Any]:
    # Imported here because most processes never need it.
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier = {"traceparent": lease.traceparent} if lease.traceparent is not None else {}
    return trace.get_tracer("flowfabric.worker").start_as_current_span(
        f"task {lease.kind}",
        context=TraceContextTextMapPropagator().extract(carrier),
        kind=trace.SpanKind.CONSUMER,
        attributes={
            "flowfabric.execution_id": lease.execution_id,
            "flowfabric.attempt": lease.attempt_index,
            "flowfabric.lane": lease.lane,
        },
    )
