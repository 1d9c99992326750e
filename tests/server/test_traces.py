"""Traces of a server: one span an operation, below the caller's; nothing of what was sent in it.

A tracer provider can be set once per process, so the server runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

TRACED = """
import asyncio, json, sys
import aiohttp
from opentelemetry import trace as api
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from flowfabric.server.run import running

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
api.set_tracer_provider(provider)

async def main():
    async with running("sqlite:///:memory:") as url, aiohttp.ClientSession() as session:
        async def send(method, path, body=None, **headers):
            async with session.request(method, url + path, json=body, headers=headers) as response:
                await response.read()
        await send("POST", "/v1/executions", {"kind": "k", "input": "secret"}, traceparent=sys.argv[1])
        await send("POST", "/v1/executions", {"kind": "secret kind"}, traceparent="secret")
        await send("GET", "/healthz")
        await send("GET", "/secret")

asyncio.run(main())
print(json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()]))
"""


def test_spans() -> None:
    """Every operation is a span named like it, below the caller's; a refusal marks it with its code alone."""
    ran = subprocess.run(
        [sys.executable, "-c", TRACED, PARENT], capture_output=True, text=True, timeout=60, check=True
    )
    spans: list[dict[str, Any]] = json.loads(ran.stdout)
    assert [span["name"] for span in spans] == ["execution.create", "execution.create"]
    good, bad = spans
    assert good["kind"] == "SpanKind.SERVER"
    assert good["context"]["trace_id"] == "0x" + PARENT.split("-")[1]
    assert good["parent_id"] == "0x" + PARENT.split("-")[2]
    assert good["attributes"] == {"op": "execution.create", "http.route": "/v1/executions"}
    assert good["status"]["status_code"] == "UNSET"
    assert bad["parent_id"] is None
    assert bad["status"] == {"status_code": "ERROR", "description": "invalid_input"}
    assert "secret" not in ran.stdout
