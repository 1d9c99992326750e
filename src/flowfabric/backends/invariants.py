"""What a stored execution must satisfy: its record, its attempts, its history and its frames, each by itself.

Pure checks of decoded records, the same for every backend; how they are stored, and what index entries must be, is
checked elsewhere. Every problem names the invariant that is broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from flowfabric.contract import limits
from flowfabric.contract.attempt import AttemptRecord
from flowfabric.contract.execution import ExecutionRecord, Loaded
from flowfabric.contract.indexing import due, is_ready
from flowfabric.contract.lease import LeaseEvent
from flowfabric.contract.states import (
    ATTEMPT_ENDED,
    LEGAL_VECTORS,
    AttemptRecordState,
    AttemptState,
    FrameMode,
    LeaseEventName,
    LifecyclePhase,
    OwnershipState,
    TerminalOutcome,
    derive_public_state,
)
from flowfabric.contract.stream import StreamRecord

Problem = tuple[str, str]
"""(invariant, message)."""

_TAKEN: Final = (LeaseEventName.ACQUIRED, LeaseEventName.RECLAIMED)
_LOST: Final = (OwnershipState.LEASE_EXPIRED_RECLAIMABLE, OwnershipState.LEASE_REVOKED)


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
        is_ready(record)
        or due(record) is not None
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


def check_attempts(loaded: Loaded, stored: Sequence[tuple[int, AttemptRecord]]) -> Iterator[Problem]:
    """Yield what is wrong with an execution's earlier attempts, which come by the number they are stored under."""
    latest = loaded.record.attempt
    before = loaded.record.total_attempt_count - 1
    if [index for index, _ in stored] != list(range(max(before, 0))):
        yield (
            "S8 attempts are numbered",
            f"{len(stored)} earlier attempts are stored, should be 0 to {before - 1}",
        )
    seen: set[str] = {latest.attempt_id} if latest is not None else set()
    epoch = -1
    for attempt_index, attempt in stored:
        if attempt.attempt_index != attempt_index:
            yield "S8 attempts are numbered", f"the record of attempt {attempt_index} is another's"
        if attempt.attempt_id in seen:
            yield "S8 attempts are numbered", f"attempt {attempt_index} has the id of another"
        seen.add(attempt.attempt_id)
        if attempt.state not in ATTEMPT_ENDED:
            yield (
                "S8 attempts are numbered",
                f"attempt {attempt_index} was followed by another without having ended",
            )
        if attempt.lease_epoch <= epoch:
            yield (
                "S2 epochs increase",
                f"attempt {attempt_index} has epoch {attempt.lease_epoch}, not above {epoch}",
            )
        epoch = max(epoch, attempt.lease_epoch)
    if stored and latest is not None and latest.lease_epoch <= epoch:
        yield "S2 epochs increase", f"the latest attempt has epoch {latest.lease_epoch}, not above {epoch}"


def check_events(loaded: Loaded, stored: Iterable[tuple[int, LeaseEvent]]) -> Iterator[Problem]:
    """Yield what is wrong with an execution's history, which comes by the numbers it is stored under, oldest first."""
    epoch, at_ms, ends = -1, 0, 0
    held: str | None = None
    used: set[str] = set()
    record = loaded.record
    for event_id, event in stored:
        if event.event_id != event_id:
            yield "S20 events are ordered", f"event {event_id} carries id {event.event_id}"
        if event.at_ms < at_ms:
            yield "S20 events are ordered", f"event {event_id} is older than the one before it"
        at_ms = event.at_ms
        if event.name in _TAKEN:
            if event.lease_epoch <= epoch:
                yield "S2 epochs increase", f"event {event_id}: epoch {event.lease_epoch} follows {epoch}"
            if held is not None:
                yield "S1 one live lease", f"event {event_id}: a lease was given while {held} was held"
            if event.lease_id is not None and event.lease_id in used:
                yield "S2 epochs increase", f"event {event_id}: lease id {event.lease_id} was used before"
            held = event.lease_id
            used.add(held or "")
        elif event.name is not LeaseEventName.RENEWED:
            held = None
        epoch = max(epoch, event.lease_epoch)
        if event.outcome is not None:
            ends += 1
        if event.name is LeaseEventName.REPLAY_INITIATED:
            ends = 0
        if ends > 1:
            yield "S6 one end", f"event {event_id} ends it once more"
    if epoch > record.lease_epoch:
        yield "S2 epochs increase", f"its history knows epoch {epoch}, its record {record.lease_epoch}"


def check_frames(
    attempt_index: int, stream: StreamRecord, frames: Iterable[tuple[int, int, int, FrameMode]]
) -> tuple[int, list[Problem]]:
    """Return how many frames an attempt has, and what is wrong with them.

    frames: (ms, seq, sequence, mode), in the order of their ids.
    """
    kept = dict.fromkeys(FrameMode, 0)
    problems: list[Problem] = []
    name = f"attempt {attempt_index}"
    sequence = 0
    last = (0, 0)
    for ms, seq, number, mode in frames:
        kept[mode] += 1
        if number <= sequence:
            problems.append(("S20 frames are ordered", f"{name}: frame {number} follows {sequence}"))
        sequence, last = number, (ms, seq)
    counted = {
        FrameMode.DURABLE: stream.durable_kept,
        FrameMode.SUMMARY: stream.summary_kept,
        FrameMode.BEST_EFFORT: stream.best_effort_kept,
    }
    if kept != counted:
        problems.append(
            (
                "S20 frames are counted",
                f"{name}: {sum(kept.values())} frames, {sum(counted.values())} counted",
            )
        )
    if sequence > stream.last_sequence or last > (stream.last_ms, stream.last_seq):
        problems.append(("S20 frames are ordered", f"{name}: a frame is newer than the stream's last"))
    if stream.frame_count < sum(kept.values()) or stream.frame_count != stream.last_sequence:
        problems.append(
            ("S20 frames are counted", f"{name}: {stream.frame_count} frames ever, does not add up")
        )
    if (stream.trimmed_ms, stream.trimmed_seq) > (stream.last_ms, stream.last_seq):
        problems.append(("S20 trimming is reported", f"{name}: more was removed than appended"))
    return sum(kept.values()), problems
