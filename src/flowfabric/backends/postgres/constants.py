"""States and bounds as SQL sees them: tokens in the text of functions and queries, and small generated functions.

Nothing here is typed by hand into SQL. `@NAME@` in a file becomes the number of a state vector, a list of them, a list
of the contract's words, or a bound; what no constant is called is an error. What must stay true: the generated
functions depend on nothing but their arguments, so that they are inlined wherever they are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import cache
from typing import Final

from flowfabric.backends.vectors import NUMBERS, VECTORS
from flowfabric.contract import limits
from flowfabric.contract.states import (
    ATTEMPT_ENDED,
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
    EligibilityState,
    FailureClass,
    LaneState,
    LifecyclePhase,
    StateVector,
)

_TOKEN: Final = re.compile(r"@([A-Z][A-Z0-9_]*)@")
_SHORT: Final = {
    "phase": "lifecycle_phase",
    "ownership": "ownership_state",
    "eligibility": "eligibility_state",
    "blocking": "blocking_reason",
    "outcome": "terminal_outcome",
    "attempt_of": "attempt_state",
    "public_state": "public_state",
}
"""The generated functions from a vector's number to its words."""
_WORDS: Final[dict[str, Iterable[StrEnum]]] = {
    "ATTEMPT_ENDED": ATTEMPT_ENDED,
    "UNBLOCKABLE": UNBLOCKABLE,
    "BLOCKING_REASONS": BLOCKED_BY_REASON,
    "RETRYABLE_CLASSES": RETRYABLE_CLASSES,
    "FAILURE_CLASSES": FailureClass,
    "LANE_STATES": LaneState,
    "LANE_ACCEPTS_CREATES": LANE_ACCEPTS_CREATES,
    "LANE_ACCEPTS_CLAIMS": LANE_ACCEPTS_CLAIMS,
}
_SETS: Final[dict[str, Callable[[StateVector], bool]]] = {
    "TERMINAL": lambda vector: vector.lifecycle_phase is LifecyclePhase.TERMINAL,
    "ACTIVE": lambda vector: vector.lifecycle_phase is LifecyclePhase.ACTIVE,
    "RUNNABLE": lambda vector: vector.lifecycle_phase is LifecyclePhase.RUNNABLE,
    "ELIGIBLE": lambda vector: vector.eligibility_state is EligibilityState.ELIGIBLE_NOW,
}


@cache
def tokens() -> Mapping[str, str]:
    """Return what each `@NAME@` stands for."""
    found = {
        "LEASED": str(NUMBERS[LEASED]),
        "LEASE_EXPIRED": str(NUMBERS[LEASE_EXPIRED]),
        "LEASE_REVOKED": str(NUMBERS[LEASE_REVOKED]),
    }
    for name, members in _WORDS.items():
        found[name] = ", ".join(f"'{word}'" for word in sorted(member.value for member in members))
    for name, is_member in _SETS.items():
        found[name] = ", ".join(str(number) for number, vector in enumerate(VECTORS) if is_member(vector))
    for name, value in vars(limits).items():
        if isinstance(value, (int, float)) and name.isupper():
            found[name] = repr(value)
    return found


def fill(text: str) -> str:
    """Replace the tokens in SQL text.

    Raises: ValueError for one that no constant is called.
    """
    known = tokens()

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in known:
            raise ValueError(f"no constant is called {name}")
        return known[name]

    return _TOKEN.sub(value, text)


def generated() -> str:
    """Return the SQL that creates the generated functions."""
    text = "".join(_words_of(name, field) for name, field in _SHORT.items())
    text += _number_of("eligible_vector", ("p_attempt",), {(a.value,): v for a, v in ELIGIBLE.items()})
    text += _number_of(
        "waiting_children_vector", ("p_attempt",), {(a.value,): v for a, v in WAITING_CHILDREN.items()}
    )
    for name, outer, table in (
        ("delayed_vector", "p_blocking", DELAYED),
        ("blocked_vector", "p_blocking", BLOCKED),
        ("ended_vector", "p_outcome", ENDED),
    ):
        text += _number_of(
            name,
            (outer, "p_attempt"),
            {(first.value, second.value): v for (first, second), v in table.items()},
        )
    return text


def _words_of(name: str, field: str) -> str:
    words = ", ".join(f"'{getattr(vector, field).value}'" for vector in VECTORS)
    return (
        f"CREATE FUNCTION ff.{name}(p_vector smallint) RETURNS text\n"
        "LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$\n"
        f"    SELECT (ARRAY[{words}])[p_vector + 1]\n"
        "$$;\n"
    )


def _number_of(name: str, parameters: tuple[str, ...], table: Mapping[tuple[str, ...], StateVector]) -> str:
    given = ", ".join(f"{parameter} text" for parameter in parameters)
    # One word after the other with a space between: words have none.
    subject = " || ' ' || ".join(parameters)
    cases = " ".join(f"WHEN '{' '.join(words)}' THEN {NUMBERS[vector]}" for words, vector in table.items())
    return (
        f"CREATE FUNCTION ff.{name}({given}) RETURNS smallint\n"
        "LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$\n"
        f"    SELECT (CASE {subject} {cases} END)::smallint\n"
        "$$;\n"
    )
