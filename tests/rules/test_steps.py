"""Random lives: whatever is asked in whatever order, every step is an allowed one and the record stays sound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.states import TRANSITIONS, vector_class
from tests.rules.driving import CREATES, RULES, STEPS, Drive, Step, long_lists


@settings(max_examples=6 * settings().max_examples)
@given(command=CREATES, steps=long_lists(STEPS, 40))
def test_every_step_is_allowed(command: ExecutionCreate, steps: list[Step]) -> None:
    """No script of operations takes a step outside the transition table or leaves a record that disagrees with itself.

    Acceptance: every-step-is-an-allowed-transition
    """
    drive = Drive(command)
    for step in steps:
        if drive.deleted:
            break
        drive.step(step)


@settings(max_examples=3 * settings().max_examples)
@given(command=CREATES, steps=long_lists(STEPS, 30))
def test_doing_it_again_at_once_changes_nothing_twice(command: ExecutionCreate, steps: list[Step]) -> None:
    """A fenced operation that succeeded answers the same when repeated, and moves nothing the second time."""
    drive = Drive(command)
    for step in steps:
        first = drive.step(step)
        if drive.deleted:
            break
        giving_back = step.name in (
            "execution.complete",
            "execution.fail",
            "execution.delay",
            "execution.wait_children",
            "lease.release",
        )
        if giving_back and first.reply is not None and step.fields.get("source") != "operator_override":
            again = drive.step(Step(step.name, 0, step.fields, step.fence))
            assert again.reply == first.reply and again.record is None


@settings(max_examples=3 * settings().max_examples)
@given(command=CREATES, steps=long_lists(STEPS, 25))
def test_everything_comes_to_an_end(command: ExecutionCreate, steps: list[Step]) -> None:
    """From wherever it got, an execution can be claimed and completed once its timers ran and blocks are lifted.

    Acceptance: nothing-gets-stuck
    """
    drive = Drive(command)
    for step in steps:
        if drive.deleted:
            return
        drive.step(step)
    for _ in range(60):
        where = vector_class(drive.loaded.record.state)
        if drive.deleted or where == "terminal":
            return
        if where == "blocked":
            drive.step(Step("execution.unblock", 0, {}))
        elif where == "leased":
            drive.step(Step("execution.complete", 0, {}, 0))
        for timer in ("lease.expire", "execution.promote"):
            drive.step(Step(timer, 1_000, {}))
        claim = {"worker_id": "z", "lease_ttl_ms": 30_000}
        if vector_class(drive.loaded.record.state) != "leased":
            drive.step(Step("lease.claim", 0, claim))
    pytest.fail(f"stuck in {drive.loaded.record.state}")


def test_every_listed_transition_is_of_a_rule_under_test() -> None:
    """The driver knows every operation that the transition table lists, but create and the registry's."""
    assert set(TRANSITIONS) - set(RULES) == {"execution.create", "worker.mark_dead"}
    assert set(RULES) <= set(OPERATIONS)
