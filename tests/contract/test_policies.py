"""Policies: their JSON form, and that every field is checked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidCapabilities, InvalidPolicy
from flowfabric.contract.policies import (
    PLANNED_POLICY_FIELDS,
    UNSUPPORTED_POLICY_FIELDS,
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    RetryPolicy,
    RoutingRequirements,
    StreamPolicy,
    TimeoutPolicy,
    check_capabilities,
    check_policy,
)

DURATIONS = st.integers(0, limits.DURATION_MAX_MS)
BACKOFFS = st.builds(FixedBackoff, delay_ms=DURATIONS, jitter=st.booleans()) | st.builds(
    ExponentialBackoff,
    initial_delay_ms=DURATIONS,
    max_delay_ms=DURATIONS,
    multiplier=st.floats(1, limits.BACKOFF_MULTIPLIER_MAX),
    jitter=st.booleans(),
)
CATEGORIES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
)
POLICIES = st.builds(
    ExecutionPolicy,
    retry_policy=st.none()
    | st.builds(
        RetryPolicy,
        max_retries=st.integers(0, limits.MAX_RETRIES_MAX),
        backoff=BACKOFFS,
        retryable_categories=CATEGORIES.map(tuple),
    ),
    timeout_policy=st.none()
    | st.builds(
        TimeoutPolicy,
        attempt_timeout_ms=st.none() | st.integers(1, limits.DURATION_MAX_MS),
        execution_deadline_ms=st.none() | st.integers(1, limits.DURATION_MAX_MS),
    ),
    max_reclaim_count=st.none() | st.integers(0, limits.COUNT_MAX),
    reclaim_grace_ms=st.none() | DURATIONS,
    max_replay_count=st.none() | st.integers(0, limits.COUNT_MAX),
    dedup_window_ms=st.none() | DURATIONS,
    retention_ms=st.none() | DURATIONS,
    routing_requirements=st.none()
    | st.builds(RoutingRequirements, required_capabilities=st.just(("gpu", "eu"))),
    stream_policy=st.none()
    | st.builds(
        StreamPolicy,
        retention_maxlen=st.integers(1, limits.STREAM_MAXLEN_MAX),
        retention_ttl_ms=st.none() | DURATIONS,
    ),
)


@given(POLICIES)
def test_a_policy_survives_the_journey(policy: ExecutionPolicy) -> None:
    """A policy within its bounds is accepted, and JSON gives it back unchanged."""
    check_policy(policy)
    assert msgspec.json.decode(msgspec.json.encode(policy), type=ExecutionPolicy) == policy


def test_fields_that_are_not_set_are_left_out() -> None:
    """The JSON of a policy has no nulls.

    Acceptance: policy-json-omits-unset-fields
    """
    assert msgspec.json.encode(ExecutionPolicy()) == b"{}"
    assert msgspec.json.encode(ExecutionPolicy(retention_ms=5)) == b'{"retention_ms":5}'


@pytest.mark.parametrize(
    "text",
    [
        '{"retries": 3}',
        '{"retry_policy": {"max_retries": "3"}}',
        '{"retry_policy": {"max_retries": 1.5}}',
        '{"retry_policy": {"backoff": {"type": "random"}}}',
        '{"retry_policy": []}',
        '{"routing_requirements": []}',
        '{"routing_requirements": {"required_capabilities": "gpu"}}',
        '{"routing_requirements": {"required_capabilities": {"gpu": 1}}}',
        '{"routing_requirements": {"required_capabilities": [1]}}',
        '{"stream_policy": {"durability_mode": "lossy"}}',
        '{"budget_ids": []}',
    ],
)
def test_what_a_policy_does_not_know_is_refused(text: str) -> None:
    """Unknown fields, wrong types and objects in place of lists are never taken for "no policy".

    Acceptance: malformed-policy-is-never-unconstrained
    """
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=ExecutionPolicy)


def test_fields_without_effect_do_not_exist() -> None:
    """Fields of features that are planned or that FlowFabric does not have are named, and are no fields."""
    named = {*PLANNED_POLICY_FIELDS, *UNSUPPORTED_POLICY_FIELDS}
    assert named.isdisjoint(ExecutionPolicy.__struct_fields__)


BAD: list[dict[str, Any]] = [
    {"retry_policy": RetryPolicy(max_retries=limits.MAX_RETRIES_MAX + 1)},
    {"retry_policy": RetryPolicy(backoff=FixedBackoff(delay_ms=limits.DURATION_MAX_MS + 1))},
    {"retry_policy": RetryPolicy(backoff=ExponentialBackoff(initial_delay_ms=-1))},
    {"retry_policy": RetryPolicy(backoff=ExponentialBackoff(max_delay_ms=-1))},
    {
        "retry_policy": RetryPolicy(
            backoff=ExponentialBackoff(multiplier=limits.BACKOFF_MULTIPLIER_MAX * 1.01)
        )
    },
    {"retry_policy": RetryPolicy(backoff=ExponentialBackoff(multiplier=float("inf")))},
    {"retry_policy": RetryPolicy(retryable_categories=("c" * 129,))},
    {"retry_policy": RetryPolicy(retryable_categories=("\ud800",))},
    {"timeout_policy": TimeoutPolicy(attempt_timeout_ms=limits.DURATION_MAX_MS + 1)},
    {"timeout_policy": TimeoutPolicy(execution_deadline_ms=0)},
    {"max_reclaim_count": limits.COUNT_MAX + 1},
    {"max_replay_count": -1},
    {"dedup_window_ms": -1},
    {"reclaim_grace_ms": -1},
    {"retention_ms": limits.DURATION_MAX_MS + 1},
    {"stream_policy": StreamPolicy(retention_maxlen=limits.STREAM_MAXLEN_MAX + 1)},
    {"stream_policy": StreamPolicy(retention_ttl_ms=-1)},
]


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_numbers_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    """Every number and list of a policy has a bound, with code invalid_policy_json."""
    with pytest.raises(InvalidPolicy):
        check_policy(ExecutionPolicy(**fields))


@given(st.lists(st.text(max_size=12), max_size=5))
def test_capabilities_have_no_separators(tokens: list[str]) -> None:
    """Accepted tokens are non-empty, without commas, white space and controls; anything else names the side."""
    try:
        check_capabilities(tokens, "required")
    except InvalidCapabilities as error:
        assert str(error.details["detail"]).startswith("required:")
        return
    for token in tokens:
        assert token and "," not in token and all(" " < character != "\x7f" for character in token)


@pytest.mark.parametrize(
    ("tokens", "detail"),
    [
        (("",), "empty_token"),
        (("a,b",), "comma_in_token"),
        (("a\tb",), "control_or_whitespace"),
        (("gpu\ud800",), "not_unicode"),
        (tuple(str(number) for number in range(257)), "too_many_tokens"),
        (("x" * 2_048, "y" * 2_048), "too_many_bytes"),
    ],
)
def test_malformed_capabilities_say_how(tokens: tuple[str, ...], detail: str) -> None:
    """Each way to be malformed has its own detail; joined with commas 4,096 bytes are the bound."""
    with pytest.raises(InvalidCapabilities) as caught:
        check_capabilities(tokens, "worker")
    assert caught.value.details["detail"] == f"worker:{detail}"
    check_capabilities(("x" * 2_047, "y" * 2_048), "worker")
