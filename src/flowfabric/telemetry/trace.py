"""Traces: spans by the OpenTelemetry API, and W3C trace contexts as they travel with executions.

Without a configured tracer provider every function here does next to nothing and makes no object. Which provider
there is, and where spans go, is the application's business: nothing here configures or exports. Span attributes are
names, ids and codes; payloads, tokens and secrets never.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Literal

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Role = Literal["internal", "server", "client", "consumer"]
Attribute = str | int | float | bool

_NAME: Final = "flowfabric"
_OFF: Final[AbstractContextManager[Span | None]] = nullcontext(None)
_FIELD: Final = "traceparent"
_IS_NAMED: Final = "OTEL_PYTHON_TRACER_PROVIDER" in os.environ
"""The environment names a provider, which is loaded when it is first asked for."""
_UNKNOWN: Final = object()
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_KINDS: Final[Mapping[str, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}


def is_on() -> bool:
    """Say whether the application has configured a tracer provider."""
    # Asking for the provider reads the environment each time, which costs more than all else that is done here.
    if not _IS_NAMED and getattr(trace, "_TRACER_PROVIDER", _UNKNOWN) is None:
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def span(
    name: str,
    *,
    role: Role = "internal",
    parent: str | None = None,
    attributes: Mapping[str, Attribute] | None = None,
) -> AbstractContextManager[Span | None]:
    """Open a span as the current one: `with span("execution.create", role="server") as opened:`.

    parent: a traceparent; a malformed one counts as none. Without one the current span is the parent.

    The span is None when traces are off. An exception that passes through is recorded by its type's name alone,
    because its text may quote what a caller sent.
    """
    if not is_on():
        return _OFF
    return _Opened(name, _KINDS[role], parent, attributes)


def fail(opened: Span | None, code: str) -> None:
    """Mark a span as failed with a refusal's or error's code."""
    if opened is not None:
        opened.set_attribute("flowfabric.code", code)
        opened.set_status(Status(StatusCode.ERROR, code))


def current_traceparent() -> str | None:
    """Return the current span as a traceparent, to send along; None when there is no span."""
    if not is_on():
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(_FIELD)


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the trace id inside a well-formed traceparent, for logs."""
    if traceparent is None:
        return None
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None


class _Opened(AbstractContextManager["Span | None"]):
    """One span while it is the current one."""

    def __init__(
        self, name: str, kind: SpanKind, parent: str | None, attributes: Mapping[str, Attribute] | None
    ) -> None:
        context: Context | None = None
        if parent is not None:
            context = _PROPAGATOR.extract({_FIELD: parent})
        self._span = trace.get_tracer(_NAME).start_span(name, context, kind, attributes)
        self._current = trace.use_span(
            self._span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        )

    def __enter__(self) -> Span:
        self._current.__enter__()
        return self._span

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            code: str = getattr(kind, "code", kind.__name__)
            fail(self._span, code)
        self._current.__exit__(None, None, None)
