"""What the record of one execution must satisfy by itself."""

from __future__ import annotations

from collections.abc import Iterator

from flowfabric.contract import limits
from flowfabric.contract.execution import ExecutionRecord
from flowfabric.contract.states import (
    ATTEMPT_ENDED,
    LEGAL_VECTORS,
    AttemptRecordState,
    AttemptState,
    LifecyclePhase,
    OwnershipState,
    TerminalOutcome,
    derive_public_state,
)
from flowfabric.rules import execution as rules
from flowfabric.rules.decision import Loaded

Problem = tuple[str, str]
"""(invariant, message)."""

_LOST = (OwnershipState.LEASE_EXPIRED_RECLAIMABLE, OwnershipState.LEASE_REVOKED)


def check_record(loaded: Loaded, *, has_result: bool) -> Iterator[Problem]:
    """Yield what is wrong with an execution's record."""
    record = loaded.record
    state = record.state
    if state not in LEGAL_VECTORS:
        yield "S9 legal state", f"its state vector is none of the legal ones: {state}"
    derived = derive_public_state(
        state.lifecycle_phase, state.eligibility_state, state.terminal_outcome, state.attempt_state
    )
    if state.public_state is not derived:
        yield "S9 legal state", f"its public state is {state.public_state.value}, should be {derived.value}"
    yield from _check_lease(record)
    yield from _check_attempt(record)
    yield from _check_rest(record)
    yield from _check_bounds(loaded)
    succeeded = state.terminal_outcome is TerminalOutcome.SUCCESS
    if has_result != record.has_result:
        yield "S6 results", f"has_result is {record.has_result}, stored is {'one' if has_result else 'none'}"
    if record.has_result and not succeeded:
        yield "S6 results", "it has a result without having succeeded"


def _check_lease(record: ExecutionRecord) -> Iterator[Problem]:
    lease, state = record.lease, record.state
    leased = state.ownership_state is OwnershipState.LEASED
    if (leased or state.ownership_state in _LOST) and lease is None:
        yield "S1 one live lease", f"ownership is {state.ownership_state.value} without a lease"
    if lease is None:
        return
    if state.lifecycle_phase is not LifecyclePhase.ACTIVE:
        yield "S1 one live lease", f"it is {state.lifecycle_phase.value} and still has a lease"
    if lease.lease_epoch != record.lease_epoch:
        yield (
            "S2 epochs increase",
            f"the lease's epoch is {lease.lease_epoch}, the record's {record.lease_epoch}",
        )
    if leased and lease.lost_at_ms is not None:
        yield "S1 one live lease", "a lease that was lost is held"
    if not leased and lease.lost_at_ms is None:
        yield "S1 one live lease", "a lease that nobody holds was never lost"
    if lease.expires_at_ms < lease.acquired_at_ms:
        yield "S1 one live lease", "the lease ran out before it was acquired"


def _check_attempt(record: ExecutionRecord) -> Iterator[Problem]:
    attempt, state = record.attempt, record.state
    latest = attempt.attempt_index + 1 if attempt is not None else 0
    if record.total_attempt_count != latest:
        yield (
            "S8 attempts are numbered",
            f"{record.total_attempt_count} attempts counted, the latest is {latest - 1}",
        )
    running = state.attempt_state is AttemptState.RUNNING_ATTEMPT
    if running and (attempt is None or attempt.state is not AttemptRecordState.STARTED):
        yield "S8 attempts are numbered", "it runs without an attempt that has started"
    if attempt is None:
        return
    ended = attempt.state in ATTEMPT_ENDED
    if ended != (attempt.ended_at_ms is not None):
        yield (
            "S8 attempts are numbered",
            f"attempt {attempt.attempt_index} is {attempt.state.value}, ended or not?",
        )
    terminal = state.lifecycle_phase is LifecyclePhase.TERMINAL
    if terminal and not ended:
        yield "S6 one end", f"it has ended, its attempt {attempt.attempt_index} has not"
    if ended and attempt.stream_closed_at_ms is None:
        yield "S20 nothing follows close", f"attempt {attempt.attempt_index} has ended, its stream is open"
    if running and record.lease is not None and attempt.lease_epoch > record.lease.lease_epoch:
        yield "S2 epochs increase", "the attempt belongs to a later lease than the one held"


def _check_rest(record: ExecutionRecord) -> Iterator[Problem]:
    """At rest an execution has ended or waits with its wake-up entry."""
    state = record.state
    terminal = state.lifecycle_phase is LifecyclePhase.TERMINAL
    if terminal != (record.completed_at_ms is not None):
        yield "S6 one end", "its end and its instant of completion disagree"
    if terminal:
        if record.retention_due_at_ms is None:
            yield "S6 waiting has a wake-up", "it has ended and will never be removed"
        return
    woken = (
        rules.is_ready(record)
        or rules.due(record) is not None
        or state.ownership_state is OwnershipState.LEASED
        or state.eligibility_state.value.startswith("blocked_by_")
    )
    if not woken:
        yield "S6 waiting has a wake-up", "nothing will ever wake it"


def _check_bounds(loaded: Loaded) -> Iterator[Problem]:
    record, policy = loaded.record, loaded.definition.policy
    retries = policy.retry_policy.max_retries if policy.retry_policy is not None else 0
    reclaims = policy.max_reclaim_count
    reclaims = reclaims if reclaims is not None else limits.RECLAIM_COUNT_DEFAULT
    replays = policy.max_replay_count if policy.max_replay_count is not None else limits.REPLAY_COUNT_DEFAULT
    for name, count, most in (
        ("retries", record.retry_count, retries),
        ("takeovers", record.reclaim_count, reclaims),
        ("replays", record.replay_count, replays),
    ):
        if not 0 <= count <= most:
            yield "S8 attempts are bounded", f"{count} {name}, its policy allows {most}"
