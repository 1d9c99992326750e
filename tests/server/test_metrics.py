"""The Prometheus endpoint: the published names, bounded labels, nothing of what callers sent."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowfabric.contract.operations import OPERATIONS
from tests.server.talking import Site

PUBLISHED = {
    "ff_http_requests_total",
    "ff_http_request_duration_seconds",
    "ff_lease_renewal_total",
    "ff_attempt_outcome_total",
    "ff_worker_at_capacity_total",
    "ff_scanner_cycle_total",
    "ff_scanner_cycle_duration_seconds",
    "ff_claim_from_grant_duration_seconds",
    "ff_shutdown_timeout_total",
    "ff_operations_total",
    "ff_operation_duration_seconds",
}
Labels = dict[str, str]


async def scrape(site: Site) -> dict[str, list[tuple[Labels, float]]]:
    """Read every sample by its name."""
    reply = await site.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


async def value(site: Site, name: str, **labels: str) -> float:
    """Read one sample; 0 while there is none."""
    samples = (await scrape(site)).get(name, [])
    return sum(sample for found, sample in samples if labels.items() <= found.items())


@pytest.mark.parametrize("name", sorted(PUBLISHED))
async def test_published_names(site: Site, name: str) -> None:
    """Every published name is there from the start, with its type.

    Acceptance: metrics-are-published
    """
    text = (await site.get("/metrics")).body.decode()
    assert re.search(rf"^# TYPE {name} (counter|histogram)$", text, re.MULTILINE)


async def test_requests_are_counted_by_template(site: Site) -> None:
    """Requests are counted by method, route template and status, whatever ids they name."""
    path = "/v1/executions/{execution_id}/state"
    before = await value(site, "ff_http_requests_total", method="GET", path=path, status="200")
    for _ in range(3):
        await site.get(f"/v1/executions/{quote(await site.create(), safe='')}/state")
    after = await value(site, "ff_http_requests_total", method="GET", path=path, status="200")
    assert after - before == 3
    assert await value(site, "ff_http_request_duration_seconds_count", method="GET", path=path) >= 3


async def test_operations_are_counted_by_outcome(site: Site) -> None:
    """Operations are counted by name and outcome code, and timed.

    Acceptance: operations-are-counted-by-outcome
    """
    labels = {"op": "execution.create"}
    good = await value(site, "ff_operations_total", **labels, outcome="ok")
    bad = await value(site, "ff_operations_total", **labels, outcome="invalid_body")
    timed = await value(site, "ff_operation_duration_seconds_count", **labels)
    await site.post("/v1/executions", {"kind": "k"})
    await site.post("/v1/executions", {"nope": "k"})
    assert await value(site, "ff_operations_total", **labels, outcome="ok") == good + 1
    assert await value(site, "ff_operations_total", **labels, outcome="invalid_body") == bad + 1
    assert await value(site, "ff_operation_duration_seconds_count", **labels) == timed + 2


async def test_labels_are_bounded(site: Site) -> None:
    """Paths and methods that callers make up share one label."""
    for number in range(20):
        await site.get(f"/made/up/{number}")
        await site.send(f"MADEUP{number}", "/v1/lanes")
    samples = await scrape(site)
    templates = {route.path for operation in OPERATIONS.values() for route in operation.routes}
    for labels, _ in samples["ff_http_requests_total"]:
        assert labels["method"] in {"GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE", "PATCH", "OTHER"}
        assert "made" not in labels["path"]
        assert (
            labels["path"] == "unknown"
            or "{" not in labels["path"]
            or (labels["path"].removesuffix("/raw") in templates or labels["path"].startswith("/docs/"))
        )
    assert {labels["op"] for labels, _ in samples["ff_operations_total"]} <= set(OPERATIONS)


async def test_nothing_of_callers(site: Site) -> None:
    """Nothing that a caller sent is in the metrics but the names of lanes."""
    secret = "s3cret-text"
    await site.post(
        "/v1/executions", {"kind": secret, "input": secret, "tags": {"a.b": secret}, "creator": secret}
    )
    await site.get(f"/v1/executions/{secret}")
    await site.get(f"/{secret}?{secret}={secret}", {"x-request-id": secret})
    assert secret.encode() not in (await site.get("/metrics")).body
