"""Metrics: one Prometheus registry with bounded labels. Names of the published system are kept."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

REGISTRY: Final = CollectorRegistry()
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LANES_MAX: Final = 100
"""Lanes that get a label of their own; the rest share `other`."""

_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

HTTP_REQUESTS: Final = Counter(
    "ff_http_requests", "Requests answered.", ("method", "path", "status"), registry=REGISTRY
)
HTTP_SECONDS: Final = Histogram(
    "ff_http_request_duration_seconds",
    "Time to answer a request.",
    ("method", "path", "status"),
    buckets=_FAST,
    registry=REGISTRY,
)
OPERATIONS: Final = Counter(
    "ff_operations", "Operations by outcome code.", ("op", "outcome"), registry=REGISTRY
)
OPERATION_SECONDS: Final = Histogram(
    "ff_operation_duration_seconds",
    "Time of an operation, long waits included.",
    ("op",),
    buckets=_FAST,
    registry=REGISTRY,
)
RENEWALS: Final = Counter("ff_lease_renewal", "Lease renewals by outcome.", ("outcome",), registry=REGISTRY)
ATTEMPTS: Final = Counter(
    "ff_attempt_outcome", "Attempts by how they ended.", ("lane", "outcome"), registry=REGISTRY
)
AT_CAPACITY: Final = Counter(
    "ff_worker_at_capacity", "Grants refused because the worker was full.", registry=REGISTRY
)
CLAIM_SECONDS: Final = Histogram(
    "ff_claim_from_grant_duration_seconds",
    "Time to use a grant.",
    ("lane",),
    buckets=_FAST,
    registry=REGISTRY,
)
TIMER_ROUNDS: Final = Counter(
    "ff_scanner_cycle", "Rounds of timers served, by kind.", ("scanner",), registry=REGISTRY
)
TIMER_SECONDS: Final = Histogram(
    "ff_scanner_cycle_duration_seconds",
    "Time of a round of timers, by kind.",
    ("scanner",),
    buckets=_FAST,
    registry=REGISTRY,
)
SHUTDOWN_TIMEOUTS: Final = Counter(
    "ff_shutdown_timeout", "Shutdown steps that overran their grace.", registry=REGISTRY
)

_lanes: set[str] = set()
_requests: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
_operations: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
_attempts: dict[tuple[str, str], Counter] = {}
_renewals: dict[str, Counter] = {}


def lane_label(lane: str) -> str:
    """Return the label of a lane; after many lanes the rest share one."""
    if lane in _lanes:
        return lane
    if len(_lanes) < LANES_MAX:
        _lanes.add(lane)
        return lane
    return "other"


def http_request(method: str, path: str, status: int, seconds: float) -> None:
    """Count a request and its time; `path` is the route's template."""
    key = (method, path, status)
    counters = _requests.get(key)
    if counters is None:
        labels = (method, path, str(status))
        counters = _requests[key] = (HTTP_REQUESTS.labels(*labels), HTTP_SECONDS.labels(*labels))
    total, duration = counters
    total.inc()
    duration.observe(seconds)


def operation(name: str, outcome: str, seconds: float) -> None:
    """Count an operation such as `execution.create` and its time; `outcome` is `ok` or an error code."""
    key = (name, outcome)
    counters = _operations.get(key)
    if counters is None:
        counters = _operations[key] = (OPERATIONS.labels(name, outcome), OPERATION_SECONDS.labels(name))
    total, duration = counters
    total.inc()
    duration.observe(seconds)


def timer_round(kind: str, seconds: float) -> None:
    """Count a round of timers of one kind."""
    TIMER_ROUNDS.labels(kind).inc()
    TIMER_SECONDS.labels(kind).observe(seconds)


def shutdown_timed_out() -> None:
    """Count a shutdown step that overran its grace."""
    SHUTDOWN_TIMEOUTS.inc()


def lease_renewed(outcome: str) -> None:
    """Count a renewal: `ok` or `error`."""
    counter = _renewals.get(outcome)
    if counter is None:
        counter = _renewals[outcome] = RENEWALS.labels(outcome)
    counter.inc()


def attempt_ended(lane: str, outcome: str) -> None:
    """Count an attempt: `ok`, `error`, `timeout`, `cancelled` or `retry`."""
    key = (lane_label(lane), outcome)
    counter = _attempts.get(key)
    if counter is None:
        counter = _attempts[key] = ATTEMPTS.labels(*key)
    counter.inc()


def grant_used(lane: str, seconds: float) -> None:
    """Count the use of a grant and its time."""
    CLAIM_SECONDS.labels(lane_label(lane)).observe(seconds)


def worker_at_capacity() -> None:
    """Count a grant refused because the worker was full."""
    AT_CAPACITY.inc()


def render() -> bytes:
    """Return the registry in the Prometheus text format 0.0.4."""
    return generate_latest(REGISTRY)
