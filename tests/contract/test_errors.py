"""Errors: codes, statuses, and that they survive a journey."""

from __future__ import annotations

import pickle
import re

import pytest

from flowfabric.contract import errors
from flowfabric.contract.errors import (
    BY_CODE,
    FlowFabricError,
    OutcomeUnknown,
    Refused,
    Unavailable,
    default_message,
    from_code,
)

KINDS = sorted(BY_CODE.values(), key=lambda kind: kind.code)


def _subclasses(kind: type[FlowFabricError]) -> set[type[FlowFabricError]]:
    return {kind}.union(*(_subclasses(child) for child in kind.__subclasses__()))


def test_codes_are_unique_and_stable_words() -> None:
    """Every error of the contract has a code of its own, in lower case with underscores."""
    declared = {kind for kind in _subclasses(FlowFabricError) if kind.__module__ == errors.__name__}
    assert len({kind.code for kind in declared}) == len(declared)
    assert {kind.code for kind in declared} <= set(BY_CODE)
    assert all(re.fullmatch(r"[a-z][a-z_]*", code) for code in BY_CODE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_an_error_survives_the_journey(kind: type[FlowFabricError]) -> None:
    """Code, message and details give the same error back; pickling does too; the docstring is the message."""
    assert kind().message == default_message(kind)
    assert len(default_message(kind)) > 10
    error = kind("something", field="x", number=1)
    rebuilt = from_code(error.code, error.message, error.details)
    assert (type(rebuilt), rebuilt.message, rebuilt.details) == (
        kind,
        "something",
        {"field": "x", "number": 1},
    )
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), copied.message, copied.details) == (kind, error.message, error.details)
    assert str(error) == f"{kind.code}: something"


def test_an_unknown_code_is_a_plain_refusal() -> None:
    """A code that this version does not know keeps its name and message."""
    error = from_code("brand_new", "what it says", {"a": 1})
    assert type(error) is Refused
    assert (error.message, error.details) == ("what it says", {"code": "brand_new", "a": 1})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_statuses_say_whose_fault_it_is(kind: type[FlowFabricError]) -> None:
    """Refusals are 4xx, unavailability 503, our bugs 500.

    Acceptance: codes-own-their-status
    """
    if issubclass(kind, Unavailable):
        assert (kind.http_status, kind.retryable) == (503, True)
    elif issubclass(kind, Refused):
        assert 400 <= kind.http_status < 500
    else:
        assert kind.http_status == 500


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid_json", 400),
        ("invalid_body", 422),
        ("invalid_input", 400),
        ("execution_not_found", 404),
        ("idempotency_conflict", 409),
        ("execution_not_active", 409),
        ("stale_lease", 409),
        ("payload_too_large", 413),
        ("unsupported_content_type", 415),
        ("resource_exhausted", 429),
        ("worker_at_capacity", 429),
        ("unauthorized", 401),
        ("unavailable", 503),
        ("outcome_unknown", 503),
    ],
)
def test_published_statuses(code: str, status: int) -> None:
    """The statuses that callers rely on."""
    assert BY_CODE[code].http_status == status


def test_retryable_means_the_same_request_may_succeed_later() -> None:
    """What depends on others is retryable, what the caller got wrong or lost for good is not.

    Acceptance: retryability-by-code
    """
    retryable = {code for code, kind in BY_CODE.items() if kind.retryable}
    assert retryable >= {"unavailable", "outcome_unknown", "lease_conflict", "grant_already_exists"}
    assert retryable >= {"execution_not_terminal", "capability_mismatch", "resource_exhausted"}
    assert retryable.isdisjoint(
        {"execution_not_active", "stale_lease", "lease_expired", "lease_revoked", "execution_not_found"}
    )
    assert retryable.isdisjoint({"invalid_input", "fence_required", "idempotency_conflict", "stream_closed"})


def test_an_unknown_outcome_is_an_unavailability() -> None:
    """Whoever handles unavailability handles unknown outcomes, and can tell them apart."""
    assert issubclass(OutcomeUnknown, Unavailable)
    assert OutcomeUnknown.code != Unavailable.code


def test_callers_of_a_shared_call_get_errors_of_their_own() -> None:
    """Each is told the same, with the same cause; an error that is not ours is shared as it is."""
    error = errors.InvalidInput("no", field="kind")
    error.__cause__ = ValueError("why")
    own = errors.own_copy(error)
    assert own is not error and type(own) is errors.InvalidInput
    assert (own.message, own.details, own.__cause__) == (error.message, error.details, error.__cause__)
    own.details["index"] = 1
    assert error.details == {"field": "kind"}
    other = KeyError("theirs")
    assert errors.own_copy(other) is other
