"""Drives one execution through the rules without a store, checking every step it takes.

`Drive` holds what a store would hold; `Drive.step` carries out one `Step` at the present instant. What must hold after
every step is in `_check`: the step is in the transition table, the vector is legal, counters and indexes agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from flowfabric.contract import ids
from flowfabric.contract.attempt import AttemptRecord
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import Fence, Payload
from flowfabric.contract.policies import ExecutionPolicy, FixedBackoff, RetryPolicy, TimeoutPolicy
from flowfabric.contract.states import (
    LEGAL_VECTORS,
    TRANSITIONS,
    BlockingReason,
    CancelSource,
    ExpireReason,
    FailureClass,
    GrantPurpose,
    LaneState,
    LifecyclePhase,
    OwnershipState,
    vector_class,
)
from flowfabric.rules import execution, lease
from flowfabric.rules.decision import Decision, Loaded

START_MS: Final = 1_760_000_000_000
RETENTION_MS: Final = 50_000
EXECUTION_ID: Final = ExecutionId("{fp:1}:00000000-0000-4000-8000-000000000001")


class Step(msgspec.Struct, frozen=True):
    """One operation with its arguments, after some time has passed."""

    name: str
    wait_ms: int
    fields: dict[str, Any]
    fence: int = -1
    """Which of the fences so far, counted from the latest; below zero: none."""


def _steps(name: str, *, fenced: bool = False, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        st.just(name),
        st.sampled_from([0, 0, 0, 1, 400, 1_000, 5_000, 20_000]),
        st.fixed_dictionaries(fields),
        st.sampled_from([0, 0, 0, 1, 2]) if fenced else st.just(-1),
    )


_SOURCES: Final = st.sampled_from([CancelSource.LEASE_HOLDER] * 4 + [CancelSource.OPERATOR_OVERRIDE])
_WORKERS: Final = st.sampled_from(["a", "b"])
_TTLS: Final = st.sampled_from([500, 2_000, 30_000])

STEPS: Final = st.one_of(
    _steps("lease.claim", worker_id=_WORKERS, lease_ttl_ms=_TTLS),
    _steps("lease.claim", worker_id=_WORKERS, lease_ttl_ms=_TTLS),
    _steps(
        "lease.grant",
        worker_id=_WORKERS,
        purpose=st.none() | st.sampled_from(GrantPurpose),
        grant_ttl_ms=st.sampled_from([100, 5_000]),
    ),
    _steps("lease.claim_granted", worker_id=_WORKERS, lease_ttl_ms=_TTLS, purpose=st.none()),
    _steps("lease.renew", fenced=True),
    _steps("lease.release", fenced=True),
    _steps("lease.revoke"),
    _steps("lease.expire"),
    _steps("execution.complete", fenced=True, source=_SOURCES, result=st.none() | st.just(Payload(b"1"))),
    _steps("execution.fail", fenced=True, source=_SOURCES, failure_class=st.sampled_from(FailureClass)),
    _steps("execution.cancel", fenced=True, source=_SOURCES),
    _steps("execution.delay", fenced=True, delay_until_ms=st.integers(START_MS, START_MS + 60_000)),
    _steps("execution.wait_children", fenced=True),
    _steps("execution.progress", fenced=True, percent=st.none() | st.floats(0, 100)),
    _steps("execution.promote"),
    _steps("execution.expire", reason=st.sampled_from(ExpireReason)),
    _steps("execution.block", reason=st.sampled_from(BlockingReason)),
    _steps("execution.unblock"),
    _steps("execution.replay"),
    _steps("execution.set_tags", tags=st.just({"a.b": "c"})),
    _steps("execution.change_priority", priority=st.integers(-5, 9_005)),
    _steps("execution.trim"),
)

CREATES: Final = st.builds(
    ExecutionCreate,
    kind=st.just("k"),
    delay_until_ms=st.none() | st.integers(START_MS - 10, START_MS + 5_000),
    deadline_at_ms=st.none() | st.integers(START_MS, START_MS + 60_000),
    policy=st.builds(
        ExecutionPolicy,
        retry_policy=st.none()
        | st.builds(
            RetryPolicy,
            max_retries=st.integers(0, 3),
            backoff=st.builds(FixedBackoff, delay_ms=st.sampled_from([0, 500])),
        ),
        timeout_policy=st.none()
        | st.builds(
            TimeoutPolicy,
            attempt_timeout_ms=st.none() | st.sampled_from([300, 3_000]),
            execution_deadline_ms=st.none() | st.sampled_from([10_000, 100_000]),
        ),
        max_reclaim_count=st.none() | st.integers(0, 2),
        reclaim_grace_ms=st.none() | st.sampled_from([0, 700]),
        max_replay_count=st.none() | st.integers(0, 2),
    ),
)


def long_lists(elements: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[list[Any]]:
    """Draw lists whose length is anything up to `most`; plain lists are nearly always short."""
    return st.integers(0, most).flatmap(lambda size: st.lists(elements, min_size=size, max_size=size))


Rule = Callable[["Drive", Any], Decision[Any]]


def _plain(rule: Callable[..., Decision[Any]]) -> Rule:
    return lambda drive, command: rule(drive.loaded, command, drive.now_ms)


def _fenced(rule: Callable[..., Decision[Any]]) -> Rule:
    return lambda drive, command: rule(drive.loaded, command, drive.now_ms, drive.former(command.fence))


def _taking(rule: Callable[..., Decision[Any]]) -> Rule:
    return lambda drive, command: rule(
        drive.loaded,
        command,
        lease_id=ids.LeaseId(ids.mint_uuid()),
        attempt_id=ids.AttemptId(ids.mint_uuid()),
        now_ms=drive.now_ms,
    )


def _grant(drive: Drive, command: Any) -> Decision[Any]:
    return lease.grant(drive.loaded, command, lane_state=LaneState.ACTIVE, now_ms=drive.now_ms)


RULES: Final[dict[str, Rule]] = {
    "lease.claim": _taking(lease.claim),
    "lease.claim_granted": _taking(lease.claim_granted),
    "lease.grant": _grant,
    "lease.renew": _fenced(lease.renew),
    "lease.release": _fenced(lease.release),
    "lease.revoke": _plain(lease.revoke),
    "lease.expire": _plain(lease.expire),
    "execution.complete": _fenced(execution.complete),
    "execution.fail": _fenced(execution.fail),
    "execution.cancel": _fenced(execution.cancel),
    "execution.delay": _fenced(execution.delay),
    "execution.wait_children": _fenced(execution.wait_children),
    "execution.progress": _fenced(execution.progress),
    "execution.promote": _plain(execution.promote),
    "execution.expire": _plain(execution.expire),
    "execution.block": _plain(execution.block),
    "execution.unblock": _plain(execution.unblock),
    "execution.replay": _plain(execution.replay),
    "execution.set_tags": _plain(execution.set_tags),
    "execution.change_priority": _plain(execution.change_priority),
    "execution.trim": _plain(execution.trim),
}


class Drive:
    """One execution and everything a store would keep of it."""

    def __init__(self, command: ExecutionCreate) -> None:
        self.now_ms = START_MS
        created = execution.create(
            command,
            execution_id=EXECUTION_ID,
            defaults=None,
            lane_state=LaneState.ACTIVE,
            retention_default_ms=RETENTION_MS,
            now_ms=self.now_ms,
        )
        assert created.definition is not None and created.record is not None
        self.loaded = Loaded(created.definition, created.record)
        self.attempts: dict[str, AttemptRecord] = {}
        self.fences: list[Fence] = []
        self.deleted = False
        assert ("none", vector_class(created.record.state)) in TRANSITIONS["execution.create"]
        self._check_record()

    def former(self, fence: Fence | None) -> AttemptRecord | None:
        """Return the superseded attempt that a fence names."""
        return self.attempts.get(str(fence.attempt_id)) if fence is not None else None

    def step(self, step: Step) -> Decision[Any]:
        """Carry out one step and check it."""
        self.now_ms += step.wait_ms
        decision = RULES[step.name](self, self._command(step))
        before = self.loaded
        if decision.superseded is not None:
            self.attempts[decision.superseded.attempt_id] = decision.superseded
        if decision.record is not None:
            self.loaded = Loaded(before.definition, decision.record)
        self.deleted = decision.delete == "execution"
        self._check(step.name, before, decision)
        record = self.loaded.record
        if record.state.ownership_state is OwnershipState.LEASED:
            held, attempt = record.lease, record.attempt
            assert held is not None and attempt is not None
            fence = Fence(lease_id=held.lease_id, lease_epoch=held.lease_epoch, attempt_id=attempt.attempt_id)
            if fence not in self.fences:
                self.fences.append(fence)
        return decision

    def _command(self, step: Step) -> Any:
        kind = OPERATIONS[step.name].command
        fields = dict(step.fields)
        if "execution_id" in kind.__struct_fields__:
            fields["execution_id"] = EXECUTION_ID
        if "worker_id" in fields:
            fields["worker_instance"] = f"{fields['worker_id']}-1"
        if step.name == "lease.claim":
            fields["lanes"] = ("default",)
        if step.fence >= 0 and fields.get("source") is not CancelSource.OPERATOR_OVERRIDE:
            fields["fence"] = (
                self.fences[-1 - step.fence]
                if len(self.fences) > step.fence
                else Fence(
                    lease_id=ids.LeaseId(ids.mint_uuid()),
                    lease_epoch=7,
                    attempt_id=ids.AttemptId(ids.mint_uuid()),
                )
            )
        command = kind(**fields)
        command.check()  # type: ignore[attr-defined]
        return command

    # What must hold -----------------------------------------------------------------------------------------------

    def _check(self, name: str, before: Loaded, decision: Decision[Any]) -> None:
        old, new = before.record, self.loaded.record
        step = (vector_class(old.state), vector_class(None if self.deleted else new.state))
        if step[0] != step[1]:
            assert step in TRANSITIONS.get(name, ()), f"{name} went from {step[0]} to {step[1]}"
        elif old.state != new.state:
            assert step in TRANSITIONS.get(name, ()), f"{name} changed the vector inside {step[0]}"
        if decision.refusal is not None:
            # A claim goes on to the next candidate when one is not ready; its caller never sees that.
            if name != "lease.claim":
                assert type(decision.refusal) in OPERATIONS[name].refuses, decision.refusal
            assert decision.reply is None and decision.result is None and decision.delete is None
            if decision.record is not None:
                assert step[1] in ("expired", "terminal"), "a refusal writes a lost lease or nothing"
        elif decision.reply is not None:
            assert type(decision.reply) in OPERATIONS[name].replies
        assert new.history_count == old.history_count + len(decision.events)
        assert new.lease_epoch - old.lease_epoch in (0, 1)
        assert new.total_attempt_count - old.total_attempt_count in (0, 1)
        if name != "execution.replay":
            assert new.retry_count >= old.retry_count and new.reclaim_count >= old.reclaim_count
            if step[0] == "terminal":
                assert (new.state, new.completed_at_ms, new.has_result) == (
                    old.state,
                    old.completed_at_ms,
                    old.has_result,
                )
        for event in decision.events:
            assert event.at_ms == self.now_ms and event.lease_epoch == new.lease_epoch
            assert (event.outcome is not None) == (step[1] == "terminal")
        self._check_record()

    def _check_record(self) -> None:
        record, definition = self.loaded.record, self.loaded.definition
        state = record.state
        assert state in LEGAL_VECTORS
        entries = execution.index_entries(definition, record)
        leased = state.ownership_state is OwnershipState.LEASED
        terminal = state.lifecycle_phase is LifecyclePhase.TERMINAL
        lost = state.lifecycle_phase is LifecyclePhase.ACTIVE and not leased
        assert (entries.holder is not None) == leased
        assert (entries.lost_at_ms is not None) == lost
        assert entries.ready <= (not terminal and not leased)
        if terminal:
            assert record.lease is None and record.grant is None and record.completed_at_ms is not None
            assert entries.due_kind == "retention"
        elif not entries.ready and not leased and vector_class(state) != "blocked":
            assert entries.due_at_ms is not None, "it waits for something that wakes it"
        if leased:
            assert record.lease is not None and entries.due_at_ms is not None
            assert record.lease.lost_at_ms is None and record.lease.lease_epoch == record.lease_epoch
        if record.attempt is None:
            assert record.total_attempt_count == 0
        else:
            assert record.attempt.attempt_index == record.total_attempt_count - 1
            assert len(self.attempts) == record.total_attempt_count - 1
        policy = definition.policy
        retries = policy.retry_policy.max_retries if policy.retry_policy is not None else 0
        assert record.retry_count <= retries
        stored = msgspec.json.decode(msgspec.json.encode(record), type=type(record))
        assert stored == record, "the record does not survive being stored"
