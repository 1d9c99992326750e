"""States and the transitions between them.

The tables at the top are data: `TRANSITIONS` lists every step an execution may take, `PUBLIC_STATE_*` say how the one
word that users see follows from the vector. Rules build target vectors only through the functions below, so a vector
that is not in the tables cannot be stored. Nothing here knows about leases, time or storage.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class LifecyclePhase(StrEnum):
    """Where an execution is in its life."""

    SUBMITTED = "submitted"
    RUNNABLE = "runnable"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    TERMINAL = "terminal"


class OwnershipState(StrEnum):
    """Whether somebody may mutate it."""

    UNOWNED = "unowned"
    LEASED = "leased"
    LEASE_EXPIRED_RECLAIMABLE = "lease_expired_reclaimable"
    LEASE_REVOKED = "lease_revoked"


class EligibilityState(StrEnum):
    """Whether it could be claimed, and if not, why."""

    ELIGIBLE_NOW = "eligible_now"
    NOT_ELIGIBLE_UNTIL_TIME = "not_eligible_until_time"
    BLOCKED_BY_DEPENDENCIES = "blocked_by_dependencies"
    BLOCKED_BY_BUDGET = "blocked_by_budget"
    BLOCKED_BY_QUOTA = "blocked_by_quota"
    BLOCKED_BY_ROUTE = "blocked_by_route"
    BLOCKED_BY_LANE_STATE = "blocked_by_lane_state"
    BLOCKED_BY_OPERATOR = "blocked_by_operator"
    NOT_APPLICABLE = "not_applicable"


class BlockingReason(StrEnum):
    """What it waits for."""

    NONE = "none"
    WAITING_FOR_WORKER = "waiting_for_worker"
    WAITING_FOR_RETRY_BACKOFF = "waiting_for_retry_backoff"
    WAITING_FOR_RESUME_DELAY = "waiting_for_resume_delay"
    WAITING_FOR_DELAY = "waiting_for_delay"
    WAITING_FOR_SIGNAL = "waiting_for_signal"
    WAITING_FOR_APPROVAL = "waiting_for_approval"
    WAITING_FOR_CALLBACK = "waiting_for_callback"
    WAITING_FOR_TOOL_RESULT = "waiting_for_tool_result"
    WAITING_FOR_CHILDREN = "waiting_for_children"
    WAITING_FOR_BUDGET = "waiting_for_budget"
    WAITING_FOR_QUOTA = "waiting_for_quota"
    WAITING_FOR_CAPABLE_WORKER = "waiting_for_capable_worker"
    WAITING_FOR_LOCALITY_MATCH = "waiting_for_locality_match"
    PAUSED_BY_OPERATOR = "paused_by_operator"
    PAUSED_BY_POLICY = "paused_by_policy"
    PAUSED_BY_FLOW_CANCEL = "paused_by_flow_cancel"


class TerminalOutcome(StrEnum):
    """How it ended."""

    NONE = "none"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SKIPPED = "skipped"


class AttemptState(StrEnum):
    """What the execution's present attempt is doing (not the attempt record's own state)."""

    NONE = "none"
    PENDING_FIRST_ATTEMPT = "pending_first_attempt"
    RUNNING_ATTEMPT = "running_attempt"
    ATTEMPT_INTERRUPTED = "attempt_interrupted"
    PENDING_RETRY_ATTEMPT = "pending_retry_attempt"
    PENDING_REPLAY_ATTEMPT = "pending_replay_attempt"
    ATTEMPT_TERMINAL = "attempt_terminal"


class PublicState(StrEnum):
    """The one word that users see; always derived."""

    WAITING = "waiting"
    DELAYED = "delayed"
    RATE_LIMITED = "rate_limited"
    WAITING_CHILDREN = "waiting_children"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    RESUMABLE = "resumable"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SKIPPED = "skipped"


P, W, E, B, T, A = (
    LifecyclePhase,
    OwnershipState,
    EligibilityState,
    BlockingReason,
    TerminalOutcome,
    AttemptState,
)

PUBLIC_STATE_OF_OUTCOME: Final = {
    T.SUCCESS: PublicState.COMPLETED,
    T.FAILED: PublicState.FAILED,
    T.CANCELLED: PublicState.CANCELLED,
    T.EXPIRED: PublicState.EXPIRED,
    T.SKIPPED: PublicState.SKIPPED,
    T.NONE: PublicState.FAILED,
}

PUBLIC_STATE_OF_PHASE: Final = {
    P.SUBMITTED: PublicState.WAITING,
    P.ACTIVE: PublicState.ACTIVE,
    P.SUSPENDED: PublicState.SUSPENDED,
}

PUBLIC_STATE_OF_ELIGIBILITY: Final = {
    E.ELIGIBLE_NOW: PublicState.WAITING,
    E.NOT_ELIGIBLE_UNTIL_TIME: PublicState.DELAYED,
    E.BLOCKED_BY_DEPENDENCIES: PublicState.WAITING_CHILDREN,
    E.BLOCKED_BY_BUDGET: PublicState.RATE_LIMITED,
    E.BLOCKED_BY_QUOTA: PublicState.RATE_LIMITED,
    E.BLOCKED_BY_ROUTE: PublicState.WAITING,
    E.BLOCKED_BY_LANE_STATE: PublicState.WAITING,
    E.BLOCKED_BY_OPERATOR: PublicState.WAITING,
    E.NOT_APPLICABLE: PublicState.WAITING,
}

BLOCKED_BY_REASON: Final = {
    B.WAITING_FOR_BUDGET: E.BLOCKED_BY_BUDGET,
    B.WAITING_FOR_QUOTA: E.BLOCKED_BY_QUOTA,
    B.WAITING_FOR_CAPABLE_WORKER: E.BLOCKED_BY_ROUTE,
    B.PAUSED_BY_OPERATOR: E.BLOCKED_BY_OPERATOR,
    B.PAUSED_BY_POLICY: E.BLOCKED_BY_LANE_STATE,
}
"""The blocking reasons that `execution.block` takes, and the eligibility each one gives."""

UNBLOCKABLE: Final = frozenset(BLOCKED_BY_REASON.values())
TERMINAL_STATES: Final = frozenset(PUBLIC_STATE_OF_OUTCOME.values())


class StateVector(msgspec.Struct, frozen=True, kw_only=True):
    """The seven dimensions of an execution's state; `public_state` is derived from the other six."""

    lifecycle_phase: LifecyclePhase
    ownership_state: OwnershipState
    eligibility_state: EligibilityState
    blocking_reason: BlockingReason
    terminal_outcome: TerminalOutcome
    attempt_state: AttemptState
    public_state: PublicState


def derive_public_state(
    phase: LifecyclePhase,
    eligibility: EligibilityState,
    outcome: TerminalOutcome,
    attempt: AttemptState,
) -> PublicState:
    """Derive the public state from the vector's other dimensions."""
    if phase is P.TERMINAL:
        return PUBLIC_STATE_OF_OUTCOME[outcome]
    if phase is P.RUNNABLE:
        if eligibility is E.ELIGIBLE_NOW and attempt is A.ATTEMPT_INTERRUPTED:
            return PublicState.RESUMABLE
        return PUBLIC_STATE_OF_ELIGIBILITY[eligibility]
    return PUBLIC_STATE_OF_PHASE[phase]


def _vector(
    phase: LifecyclePhase,
    ownership: OwnershipState,
    eligibility: EligibilityState,
    blocking: BlockingReason,
    outcome: TerminalOutcome,
    attempt: AttemptState,
) -> StateVector:
    return StateVector(
        lifecycle_phase=phase,
        ownership_state=ownership,
        eligibility_state=eligibility,
        blocking_reason=blocking,
        terminal_outcome=outcome,
        attempt_state=attempt,
        public_state=derive_public_state(phase, eligibility, outcome, attempt),
    )


_PENDING: Final = (
    A.PENDING_FIRST_ATTEMPT,
    A.PENDING_RETRY_ATTEMPT,
    A.PENDING_REPLAY_ATTEMPT,
    A.ATTEMPT_INTERRUPTED,
)

ELIGIBLE: Final = {
    a: _vector(P.RUNNABLE, W.UNOWNED, E.ELIGIBLE_NOW, B.WAITING_FOR_WORKER, T.NONE, a) for a in _PENDING
}
"""Runnable and claimable, by what the next claim starts or continues."""

DELAYED: Final = {
    (b, a): _vector(P.RUNNABLE, W.UNOWNED, E.NOT_ELIGIBLE_UNTIL_TIME, b, T.NONE, a)
    for b in (B.WAITING_FOR_DELAY, B.WAITING_FOR_RETRY_BACKOFF, B.WAITING_FOR_RESUME_DELAY)
    for a in _PENDING
}
"""Runnable later, by (reason, what the next claim starts or continues)."""

WAITING_CHILDREN: Final = {
    a: _vector(P.RUNNABLE, W.UNOWNED, E.BLOCKED_BY_DEPENDENCIES, B.WAITING_FOR_CHILDREN, T.NONE, a)
    for a in _PENDING
}

BLOCKED: Final = {
    (b, a): _vector(P.RUNNABLE, W.UNOWNED, e, b, T.NONE, a)
    for b, e in BLOCKED_BY_REASON.items()
    for a in _PENDING
}

LEASED: Final = _vector(P.ACTIVE, W.LEASED, E.NOT_APPLICABLE, B.NONE, T.NONE, A.RUNNING_ATTEMPT)
LEASE_EXPIRED: Final = _vector(
    P.ACTIVE,
    W.LEASE_EXPIRED_RECLAIMABLE,
    E.NOT_APPLICABLE,
    B.WAITING_FOR_WORKER,
    T.NONE,
    A.ATTEMPT_INTERRUPTED,
)
LEASE_REVOKED: Final = _vector(
    P.ACTIVE, W.LEASE_REVOKED, E.NOT_APPLICABLE, B.WAITING_FOR_WORKER, T.NONE, A.ATTEMPT_INTERRUPTED
)

ENDED: Final = {
    (t, a): _vector(P.TERMINAL, W.UNOWNED, E.NOT_APPLICABLE, B.NONE, t, a)
    for t in (T.SUCCESS, T.FAILED, T.CANCELLED, T.EXPIRED, T.SKIPPED)
    for a in (A.ATTEMPT_TERMINAL, A.PENDING_FIRST_ATTEMPT, A.NONE)
}
"""Terminal, by (outcome, what the attempt was); an execution that never ran keeps its attempt state."""

LEGAL_VECTORS: Final = frozenset(
    [
        *ELIGIBLE.values(),
        *DELAYED.values(),
        *WAITING_CHILDREN.values(),
        *BLOCKED.values(),
        LEASED,
        LEASE_EXPIRED,
        LEASE_REVOKED,
        *ENDED.values(),
    ]
)
"""Every vector that may be stored (those of suspension join it when suspension exists)."""

TRANSITIONS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    # Steps by operation, as (from, to) over the classes named by `vector_class`.
    "execution.create": (("none", "eligible"), ("none", "delayed")),
    # Claims find out about deadlines and reclaim caps; late calls of a holder about the lost lease.
    "lease.claim": tuple(
        (c, to) for c in ("eligible", "expired", "revoked") for to in ("leased", "terminal")
    ),
    "lease.claim_granted": tuple(
        (c, to) for c in ("eligible", "expired", "revoked") for to in ("leased", "terminal")
    ),
    "lease.renew": (("leased", "leased"), ("leased", "expired"), ("leased", "terminal")),
    "lease.release": (("leased", "revoked"), ("leased", "expired"), ("leased", "terminal")),
    "lease.revoke": (("leased", "revoked"), ("leased", "expired"), ("leased", "terminal")),
    "lease.expire": (
        ("leased", "expired"),
        ("leased", "terminal"),
        ("expired", "terminal"),
        ("revoked", "terminal"),
    ),
    "lease.grant": (
        ("leased", "expired"),
        ("leased", "terminal"),
        ("expired", "terminal"),
        ("revoked", "terminal"),
    ),
    "execution.complete": (("leased", "terminal"), ("leased", "expired")),
    "execution.fail": (
        ("leased", "delayed"),
        ("leased", "eligible"),
        ("leased", "terminal"),
        ("leased", "expired"),
    ),
    "execution.cancel": (
        ("eligible", "terminal"),
        ("delayed", "terminal"),
        ("waiting_children", "terminal"),
        ("blocked", "terminal"),
        ("leased", "terminal"),
        ("expired", "terminal"),
        ("revoked", "terminal"),
        ("leased", "expired"),
    ),
    "execution.delay": (
        ("leased", "delayed"),
        ("leased", "eligible"),
        ("leased", "expired"),
        ("leased", "terminal"),
    ),
    "execution.wait_children": (
        ("leased", "eligible"),
        ("leased", "waiting_children"),
        ("leased", "expired"),
        ("leased", "terminal"),
    ),
    "execution.progress": (("leased", "expired"), ("leased", "terminal")),
    "execution.promote": (("delayed", "eligible"),),
    "execution.block": (("eligible", "blocked"),),
    "execution.unblock": (("blocked", "eligible"),),
    "execution.expire": (
        ("eligible", "terminal"),
        ("delayed", "terminal"),
        ("waiting_children", "terminal"),
        ("blocked", "terminal"),
        ("leased", "terminal"),
        ("leased", "delayed"),
        ("leased", "eligible"),
        ("expired", "terminal"),
        ("revoked", "terminal"),
    ),
    "execution.replay": (("terminal", "eligible"),),
    "execution.trim": (("terminal", "none"),),
    "worker.mark_dead": (("leased", "expired"), ("leased", "terminal")),
}


def vector_class(vector: StateVector | None) -> str:
    """Name the class of a vector that `TRANSITIONS` speaks of."""
    if vector is None:
        return "none"
    match vector.lifecycle_phase:
        case P.TERMINAL:
            return "terminal"
        case P.ACTIVE:
            return {
                W.LEASED: "leased",
                W.LEASE_EXPIRED_RECLAIMABLE: "expired",
                W.LEASE_REVOKED: "revoked",
                W.UNOWNED: "illegal",
            }[vector.ownership_state]
        case P.RUNNABLE:
            if vector.eligibility_state is E.ELIGIBLE_NOW:
                return "eligible"
            if vector.eligibility_state is E.NOT_ELIGIBLE_UNTIL_TIME:
                return "delayed"
            if vector.eligibility_state is E.BLOCKED_BY_DEPENDENCIES:
                return "waiting_children"
            return "blocked"
        case P.SUBMITTED | P.SUSPENDED:
            return "illegal"


class AttemptRecordState(StrEnum):
    """An attempt's own state."""

    CREATED = "created"
    STARTED = "started"
    SUSPENDED = "suspended"
    ENDED_SUCCESS = "ended_success"
    ENDED_FAILURE = "ended_failure"
    ENDED_CANCELLED = "ended_cancelled"
    INTERRUPTED_RECLAIMED = "interrupted_reclaimed"


ATTEMPT_ENDED: Final = frozenset(
    {
        AttemptRecordState.ENDED_SUCCESS,
        AttemptRecordState.ENDED_FAILURE,
        AttemptRecordState.ENDED_CANCELLED,
        AttemptRecordState.INTERRUPTED_RECLAIMED,
    }
)


class AttemptType(StrEnum):
    """Why an attempt was started."""

    INITIAL = "initial"
    RETRY = "retry"
    RECLAIM = "reclaim"
    REPLAY = "replay"


class FailureClass(StrEnum):
    """What kind of failure it was; this, and listed categories, decide about a retry."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    INFRA_CRASH = "infra_crash"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


RETRYABLE_CLASSES: Final = frozenset({FailureClass.TRANSIENT, FailureClass.INFRA_CRASH, FailureClass.TIMEOUT})


class LaneState(StrEnum):
    """What a lane lets through: active all, paused creates only, draining claims only, disabled nothing."""

    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"
    DISABLED = "disabled"


LANE_ACCEPTS_CREATES: Final = frozenset({LaneState.ACTIVE, LaneState.PAUSED})
LANE_ACCEPTS_CLAIMS: Final = frozenset({LaneState.ACTIVE, LaneState.DRAINING})


class StreamClosedReason(StrEnum):
    """Why an attempt's stream was closed."""

    ATTEMPT_SUCCESS = "attempt_success"
    ATTEMPT_FAILURE = "attempt_failure"
    ATTEMPT_CANCELLED = "attempt_cancelled"
    LEASE_EXPIRED = "lease_expired"
    RECLAIMED = "reclaimed"
    EXPIRED = "expired"


ATTEMPT_ENDING: Final = {
    TerminalOutcome.SUCCESS: (AttemptRecordState.ENDED_SUCCESS, StreamClosedReason.ATTEMPT_SUCCESS),
    TerminalOutcome.FAILED: (AttemptRecordState.ENDED_FAILURE, StreamClosedReason.ATTEMPT_FAILURE),
    TerminalOutcome.CANCELLED: (AttemptRecordState.ENDED_CANCELLED, StreamClosedReason.ATTEMPT_CANCELLED),
    TerminalOutcome.EXPIRED: (AttemptRecordState.ENDED_FAILURE, StreamClosedReason.EXPIRED),
    TerminalOutcome.SKIPPED: (AttemptRecordState.ENDED_CANCELLED, StreamClosedReason.ATTEMPT_CANCELLED),
}
"""How an attempt and its stream end when the execution ends, by the execution's outcome."""


class FrameMode(StrEnum):
    """How a frame is kept: durable, as a patch to the summary document, or lossily for live viewers."""

    DURABLE = "durable"
    SUMMARY = "summary"
    BEST_EFFORT = "best_effort"


class LeaseEventName(StrEnum):
    """What happened to a lease, or to an execution without one."""

    ACQUIRED = "acquired"
    RENEWED = "renewed"
    RELEASED = "released"
    EXPIRED = "expired"
    REVOKED = "revoked"
    RECLAIMED = "reclaimed"
    REPLAY_INITIATED = "replay_initiated"
    ENDED = "ended"
    """The execution ended while nobody held a lease: a completion event, not part of the lease history."""


class GrantPurpose(StrEnum):
    """What a grant lets its worker do."""

    CLAIM = "claim"
    RESUME = "resume"
    RECLAIM = "reclaim"


class CancelSource(StrEnum):
    """Who cancels or acts: the holder of the lease (fenced), an operator, a flow or the system."""

    LEASE_HOLDER = "lease_holder"
    OPERATOR_OVERRIDE = "operator_override"
    FLOW_CASCADE = "flow_cascade"
    SYSTEM_TIMEOUT = "system_timeout"


class ExpireReason(StrEnum):
    """Which timer ran out."""

    ATTEMPT_TIMEOUT = "attempt_timeout"
    EXECUTION_DEADLINE = "execution_deadline"


class Durability(StrEnum):
    """What an acknowledgement promises: nothing after a crash, on disk, or on a replica too."""

    MEMORY = "memory"
    FSYNC = "fsync"
    REPLICATED = "replicated"
