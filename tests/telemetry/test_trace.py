"""Traces: spans when a provider is configured, nothing at all otherwise.

A tracer provider can be set once per process, so what needs one runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from flowfabric.telemetry import trace

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

TRACED = """
import json
from opentelemetry import trace as api
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from flowfabric.contract.errors import LeaseExpired
from flowfabric.telemetry import trace

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
api.set_tracer_provider(provider)
assert trace.is_on()
parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
with trace.span("outer", role="server", parent=parent, attributes={"a": 1}) as opened:
    inside = trace.current_traceparent()
    with trace.span("inner"):
        pass
try:
    with trace.span("refused", parent="not a traceparent"):
        raise LeaseExpired("secret text")
except LeaseExpired:
    pass
try:
    with trace.span("broken"):
        raise ValueError("secret text")
except ValueError:
    pass
print(json.dumps({"inside": inside, "after": trace.current_traceparent(), "spans": [
    json.loads(span.to_json()) for span in exporter.get_finished_spans()]}))
"""


def test_off() -> None:
    """Without a provider there is no span, no traceparent, and the same object every time."""
    assert not trace.is_on()
    first, second = trace.span("a"), trace.span("b", parent=PARENT)
    assert first is second
    with first as opened:
        assert opened is None
        assert trace.current_traceparent() is None
        trace.fail(opened, "lease_expired")


def test_on() -> None:
    """With a provider, spans nest, continue the caller's trace, and failures carry codes and no text."""
    ran = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, check=True)
    assert "secret" not in ran.stdout
    told = json.loads(ran.stdout)
    spans = {span["name"]: span for span in told["spans"]}
    outer, inner = spans["outer"], spans["inner"]
    assert outer["parent_id"] == "0xb7ad6b7169203331"
    assert outer["context"]["trace_id"] == "0x0af7651916cd43dd8448eb211c80319c"
    assert outer["kind"] == "SpanKind.SERVER"
    assert outer["attributes"] == {"a": 1}
    assert inner["parent_id"] == outer["context"]["span_id"]
    assert told["inside"].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    assert told["after"] is None
    assert spans["refused"]["parent_id"] is None
    assert spans["refused"]["attributes"] == {"flowfabric.code": "lease_expired"}
    assert spans["refused"]["status"]["status_code"] == "ERROR"
    assert spans["broken"]["attributes"] == {"flowfabric.code": "ValueError"}
    assert spans["broken"]["events"] == []


@pytest.mark.parametrize(
    ("text", "trace_id"),
    [(PARENT, "0af7651916cd43dd8448eb211c80319c"), (None, None), ("x", None), ("00-1-2-3", None)],
)
def test_trace_id(text: str | None, trace_id: str | None) -> None:
    """The trace id of a traceparent is its second part; what is none has none."""
    assert trace.trace_id_of(text) == trace_id
