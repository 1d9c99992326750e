"""States: the tables agree with each other."""

from __future__ import annotations

from itertools import product

import pytest

from flowfabric.contract import states
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.states import (
    ATTEMPT_ENDED,
    BLOCKED_BY_REASON,
    LEGAL_VECTORS,
    PUBLIC_STATE_OF_OUTCOME,
    TRANSITIONS,
    AttemptRecordState,
    AttemptState,
    EligibilityState,
    LifecyclePhase,
    OwnershipState,
    PublicState,
    StateVector,
    TerminalOutcome,
    derive_public_state,
    vector_class,
)

CLASSES = {
    "none",
    "eligible",
    "delayed",
    "waiting_children",
    "blocked",
    "leased",
    "expired",
    "revoked",
    "terminal",
}


def test_every_legal_vector_derives_its_public_state() -> None:
    """The public state of every vector that may be stored is the derived one.

    Acceptance: public-state-is-always-derived
    """
    for vector in LEGAL_VECTORS:
        assert vector.public_state is derive_public_state(
            vector.lifecycle_phase, vector.eligibility_state, vector.terminal_outcome, vector.attempt_state
        )


def test_the_derivation_is_total() -> None:
    """Every combination of phase, eligibility, outcome and attempt state has a public state."""
    for phase, eligibility, outcome, attempt in product(
        LifecyclePhase, EligibilityState, TerminalOutcome, AttemptState
    ):
        assert derive_public_state(phase, eligibility, outcome, attempt) in PublicState


@pytest.mark.parametrize("vector", sorted(LEGAL_VECTORS, key=str), ids=vector_class)
def test_legal_vectors_make_sense(vector: StateVector) -> None:
    """Terminal exactly with an outcome, leased only while active, and never of an illegal class."""
    assert vector_class(vector) in CLASSES - {"none"}
    terminal = vector.lifecycle_phase is LifecyclePhase.TERMINAL
    assert terminal == (vector.terminal_outcome is not TerminalOutcome.NONE)
    assert terminal == (vector.public_state in states.TERMINAL_STATES)
    if vector.lifecycle_phase is not LifecyclePhase.ACTIVE:
        assert vector.ownership_state is OwnershipState.UNOWNED
    assert (vector.attempt_state is AttemptState.RUNNING_ATTEMPT) == (
        vector.ownership_state is OwnershipState.LEASED
    )


def test_every_class_has_a_vector_and_every_public_state_is_reachable() -> None:
    """Every class is represented; of the public states only those of suspension are not reachable yet."""
    assert {vector_class(vector) for vector in LEGAL_VECTORS} == CLASSES - {"none"}
    reachable = {vector.public_state for vector in LEGAL_VECTORS}
    assert set(PublicState) - reachable == {PublicState.SUSPENDED}


def test_transitions_are_of_operations_over_classes() -> None:
    """The transition table names operations that exist and classes that exist."""
    assert set(TRANSITIONS) <= set(OPERATIONS)
    for steps in TRANSITIONS.values():
        for step in steps:
            assert set(step) <= CLASSES
        assert len(set(steps)) == len(steps)


def test_nothing_leaves_the_end_but_replay_and_retention() -> None:
    """Only a replay leads out of a finished state, and only retention removes one."""
    for operation, steps in TRANSITIONS.items():
        leaving = {after for before, after in steps if before == "terminal"}
        assert leaving == {"execution.replay": {"eligible"}, "execution.trim": {"none"}}.get(operation, set())
        assert operation == "execution.create" or "none" not in {before for before, _ in steps}


def test_every_live_class_has_a_way_to_the_end() -> None:
    """From every class an execution can be cancelled, and can reach a claim."""
    cancel = {before for before, _ in TRANSITIONS["execution.cancel"]}
    assert cancel == CLASSES - {"none", "terminal"}


def test_outcomes_and_blocking_reasons_are_covered() -> None:
    """Every outcome has a public state, and every reason that can be set by hand an eligibility of its own."""
    assert set(PUBLIC_STATE_OF_OUTCOME) == set(TerminalOutcome)
    assert len(set(BLOCKED_BY_REASON.values())) == len(BLOCKED_BY_REASON)
    assert set(AttemptRecordState) - ATTEMPT_ENDED == {
        AttemptRecordState.CREATED,
        AttemptRecordState.STARTED,
        AttemptRecordState.SUSPENDED,
    }
