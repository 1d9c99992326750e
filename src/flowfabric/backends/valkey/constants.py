"""States as functions see them: tables generated from the contract, and the bounds that functions use.

Nothing here is typed by hand into Lua; `lua_tables` is part of the assembled library.
"""

from __future__ import annotations

from typing import Final

from flowfabric.backends.vectors import NUMBERS, VECTORS
from flowfabric.contract import limits
from flowfabric.contract.states import (
    ATTEMPT_ENDED,
    ATTEMPT_ENDING,
    BLOCKED,
    BLOCKED_BY_REASON,
    DELAYED,
    ELIGIBLE,
    ENDED,
    LANE_ACCEPTS_CLAIMS,
    LANE_ACCEPTS_CREATES,
    LEASE_EXPIRED,
    LEASE_REVOKED,
    LEASED,
    RETRYABLE_CLASSES,
    UNBLOCKABLE,
    WAITING_CHILDREN,
    FailureClass,
    LaneState,
)

Value = str | int | float | bool


def _lua(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{value}'" if isinstance(value, str) else repr(value)


def _table(name: str, entries: dict[Value, str]) -> str:
    inside = ", ".join(f"[{_lua(key)}] = {value}" for key, value in entries.items())
    return f"S.{name} = {{{inside}}}\n"


def lua_tables() -> str:
    """Return the Lua code that defines the table `S` of states and limits."""
    text = "local S = {}\n"
    for short, field in (
        ("phase", "lifecycle_phase"),
        ("ownership", "ownership_state"),
        ("eligibility", "eligibility_state"),
        ("blocking", "blocking_reason"),
        ("outcome", "terminal_outcome"),
        ("attempt", "attempt_state"),
        ("public", "public_state"),
    ):
        text += _table(
            short, {number: _lua(getattr(vector, field).value) for number, vector in enumerate(VECTORS)}
        )
    text += f"S.LEASED = {NUMBERS[LEASED]}\nS.LEASE_EXPIRED = {NUMBERS[LEASE_EXPIRED]}\n"
    text += f"S.LEASE_REVOKED = {NUMBERS[LEASE_REVOKED]}\n"
    text += _table("ELIGIBLE", {attempt.value: str(NUMBERS[vector]) for attempt, vector in ELIGIBLE.items()})
    text += _table(
        "WAITING_CHILDREN",
        {attempt.value: str(NUMBERS[vector]) for attempt, vector in WAITING_CHILDREN.items()},
    )
    for name, nested in (("DELAYED", DELAYED), ("BLOCKED", BLOCKED), ("ENDED", ENDED)):
        outer: dict[Value, dict[str, int]] = {}
        for (first, second), vector in nested.items():
            outer.setdefault(first.value, {})[second.value] = NUMBERS[vector]
        text += _table(
            name,
            {
                key: "{" + ", ".join(f"['{inner}'] = {number}" for inner, number in entries.items()) + "}"
                for key, entries in outer.items()
            },
        )
    text += _table("BLOCKED_BY_REASON", {a.value: _lua(b.value) for a, b in BLOCKED_BY_REASON.items()})
    text += _table(
        "ENDING",
        {outcome.value: f"{{'{state}', '{reason}'}}" for outcome, (state, reason) in ATTEMPT_ENDING.items()},
    )
    for name, members in (
        ("ATTEMPT_ENDED", ATTEMPT_ENDED),
        ("UNBLOCKABLE", UNBLOCKABLE),
        ("RETRYABLE_CLASSES", RETRYABLE_CLASSES),
        ("FAILURE_CLASSES", FailureClass),
        ("LANE_STATES", LaneState),
        ("LANE_ACCEPTS_CREATES", LANE_ACCEPTS_CREATES),
        ("LANE_ACCEPTS_CLAIMS", LANE_ACCEPTS_CLAIMS),
    ):
        text += _table(name, {member.value: "true" for member in sorted(members)})
    for name in LIMITS:
        text += f"S.{name} = {getattr(limits, name)}\n"
    return text


LIMITS: Final = (
    "RETENTION_DEFAULT_MS",
    "DEDUP_WINDOW_DEFAULT_MS",
    "CREATE_MANY_MAX",
    "CLAIM_TASKS_MAX",
    "RECLAIM_COUNT_DEFAULT",
    "REPLAY_COUNT_DEFAULT",
    "HISTORY_KEPT",
    "ROUTES_PER_LANE_MAX",
    "TAGS_MAX",
    "STREAM_MAXLEN_DEFAULT",
    "SUMMARY_FRAMES_KEPT",
    "SUMMARY_BYTES_MAX",
    "BEST_EFFORT_FRAMES_MIN",
    "BEST_EFFORT_FRAMES_MAX",
    "BEST_EFFORT_RATE_ALPHA",
    "BEST_EFFORT_TTL_MIN_MS",
    "WORKER_KEPT_AFTER_LAPSE_MS",
)
"""Bounds that functions use, by their name in `contract.limits`."""
