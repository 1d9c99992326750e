"""Every way an operation can say no, with its code, HTTP status and whether the same request may succeed later.

This module owns the codes: the same string appears in Lua, SQL, REST bodies, the CLI, logs and metrics. A class
docstring is the default message. `retryable` means that the unchanged request may succeed later. Nothing here
decides *when* a refusal applies: that is `flowfabric.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

Raised = TypeVar("Raised", bound=Exception)
Detail = str | int | float | bool | None | list[str]


class FlowFabricError(Exception):
    """Something went wrong in FlowFabric."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, **details: Detail) -> None:
        self.message: str = message if message is not None else default_message(type(self))
        self.details: dict[str, Detail] = details
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.details))


def _rebuild(kind: type[FlowFabricError], message: str, details: dict[str, Detail]) -> FlowFabricError:
    return kind(message, **details)


def own_copy(error: Raised) -> Raised:
    """Return what one of the callers of a shared call is told: an error of its own, for its own traceback.

    Errors of others, which may not know how to be copied, are shared.
    """
    if not isinstance(error, FlowFabricError):
        return error
    own = type(error)(error.message, **error.details)
    own.__cause__ = error.__cause__
    return own


def default_message(kind: type[FlowFabricError]) -> str:
    """Return the message a class carries when none is given: its docstring on one line."""
    return " ".join((kind.__doc__ or kind.__name__).split())


class Refused(FlowFabricError):
    """The operation was refused and nothing was changed."""

    code = "refused"
    http_status = 409


class Unavailable(FlowFabricError):
    """The store or server cannot serve this now and nothing was changed: try again."""

    code = "unavailable"
    http_status = 503
    retryable = True


class OutcomeUnknown(Unavailable):
    """The call was sent but not answered: it may or may not have happened. Repeating it is safe."""

    code = "outcome_unknown"


class Misuse(FlowFabricError):
    """The library was called in a way that cannot work."""

    code = "misuse"
    http_status = 500


class Corrupt(FlowFabricError):
    """Stored data contradicts itself. This is a bug or damage on disk; run `flowfabric admin fsck`."""

    code = "corrupt"
    http_status = 500


# Requests that are malformed --------------------------------------------------------------------------------------


class InvalidJson(Refused):
    """The body is not well-formed JSON."""

    code = "invalid_json"
    http_status = 400


class InvalidBody(Refused):
    """The body is JSON but not what this operation takes."""

    code = "invalid_body"
    http_status = 422


class InvalidInput(Refused):
    """An argument is malformed or out of range."""

    code = "invalid_input"
    http_status = 400


class InvalidPolicy(Refused):
    """The execution policy is malformed or names something not supported."""

    code = "invalid_policy_json"
    http_status = 400


class InvalidCapabilities(Refused):
    """A capability list holds a token that is empty, has a comma, white space or control byte, or is too long."""

    code = "invalid_capabilities"
    http_status = 400


class InvalidTagKey(Refused):
    """A tag key must look like `name.rest`: lower case, a dot, then lower case letters, digits, dots, underscores."""

    code = "invalid_tag_key"
    http_status = 400


class InvalidBlockingReason(Refused):
    """This blocking reason cannot be set by hand."""

    code = "invalid_blocking_reason"
    http_status = 400


class InvalidFrameType(Refused):
    """A frame type is 1 to 64 printable ASCII characters."""

    code = "invalid_frame_type"
    http_status = 400


class InvalidOffset(Refused):
    """A stream cursor is `start`, `end`, `<ms>-<seq>` or, over a whole run, `<attempt>:<ms>-<seq>`."""

    code = "invalid_offset"
    http_status = 400


class RetentionLimitExceeded(Refused):
    """A frame's payload is at most 65,536 bytes."""

    code = "retention_limit_exceeded"
    http_status = 400


class FenceRequired(Refused):
    """This operation needs the fence of the lease it acts under."""

    code = "fence_required"
    http_status = 400


class PartialFence(Refused):
    """A fence is lease_id, lease_epoch and attempt_id: all three or none."""

    code = "partial_fence_triple"
    http_status = 400


class PayloadTooLarge(Refused):
    """The body is larger than this operation takes."""

    code = "payload_too_large"
    http_status = 413


class UnsupportedContentType(Refused):
    """Send the body as application/json."""

    code = "unsupported_content_type"
    http_status = 415


class HeadersTooLarge(Refused):
    """The request's headers are too many or too large."""

    code = "headers_too_large"
    http_status = 431


class RequestTimeout(Refused):
    """The request did not arrive in time."""

    code = "request_timeout"
    http_status = 408
    retryable = True


class Unauthorized(Refused):
    """Send a valid token as `Authorization: Bearer <token>`."""

    code = "unauthorized"
    http_status = 401


class RouteNotFound(Refused):
    """No such route. The operations are listed at /openapi.json."""

    code = "route_not_found"
    http_status = 404


class MethodNotAllowed(Refused):
    """This route exists, but not with this method."""

    code = "method_not_allowed"
    http_status = 405


# Things that are not there ----------------------------------------------------------------------------------------


class ExecutionNotFound(Refused):
    """No execution has this id: it was never created, or retention has removed it."""

    code = "execution_not_found"
    http_status = 404


class AttemptNotFound(Refused):
    """The execution has no attempt with this index."""

    code = "attempt_not_found"
    http_status = 404


class WorkerNotRegistered(Refused):
    """This worker instance is not registered, or its registration lapsed: register again."""

    code = "worker_not_registered"
    http_status = 404


# State says no ----------------------------------------------------------------------------------------------------


class IdempotencyConflict(Refused):
    """The same id or idempotency key was used before with a different create command."""

    code = "idempotency_conflict"


class ExecutionNotActive(Refused):
    """The execution is not active. The details say how it ended or where it is."""

    code = "execution_not_active"


class LeaseExpired(Refused):
    """The lease ran out before this call arrived."""

    code = "lease_expired"


class LeaseRevoked(Refused):
    """The lease was revoked."""

    code = "lease_revoked"


class StaleLease(Refused):
    """The fence does not match the execution's current lease: somebody else owns it now."""

    code = "stale_lease"


class LeaseConflict(Refused):
    """Somebody holds a live lease on this execution."""

    code = "lease_conflict"
    retryable = True


class ExecutionNotEligible(Refused):
    """The execution is not in a state in which this can be done."""

    code = "execution_not_eligible"


class ExecutionNotLeaseable(Refused):
    """The execution cannot be claimed in its present state."""

    code = "execution_not_leaseable"
    retryable = True


class ExecutionNotTerminal(Refused):
    """The execution has not ended yet."""

    code = "execution_not_terminal"
    retryable = True


class ExecutionNotReclaimable(Refused):
    """Only an active execution whose lease expired or was revoked can be reclaimed."""

    code = "execution_not_reclaimable"


class MaxReplaysExhausted(Refused):
    """The execution was replayed as often as its policy allows."""

    code = "max_replays_exhausted"


class GrantAlreadyExists(Refused):
    """An unused grant for this execution is still live."""

    code = "grant_already_exists"
    retryable = True


class InvalidClaimGrant(Refused):
    """There is no such grant for this worker: it was never issued, was used, or belongs to another worker."""

    code = "invalid_claim_grant"


class ClaimGrantExpired(Refused):
    """The grant ran out before it was used."""

    code = "claim_grant_expired"


class UseClaimResumed(Refused):
    """The execution continues an interrupted attempt: use a grant with purpose `resume`."""

    code = "use_claim_resumed_execution"


class NotAResumedExecution(Refused):
    """The execution has no interrupted attempt to continue: use a grant with purpose `claim`."""

    code = "not_a_resumed_execution"


class CapabilityMismatch(Refused):
    """The worker lacks capabilities that the execution requires."""

    code = "capability_mismatch"
    retryable = True


class LaneNotAccepting(Refused):
    """The lane's state does not allow this: resume it with `flowfabric lane resume`."""

    code = "lane_not_accepting"
    retryable = True


class RouteLimitExceeded(Refused):
    """The lane already has the most distinct combinations of kind and required capabilities (1,000)."""

    code = "route_limit_exceeded"


class InstanceReassigned(Refused):
    """This worker instance is registered under another worker id."""

    code = "instance_reassigned"


class StreamClosed(Refused):
    """The attempt's stream is closed: nothing can be appended."""

    code = "stream_closed"


class StaleOwnerCannotAppend(Refused):
    """Only the holder of the live lease can append to the stream."""

    code = "stale_owner_cannot_append"


class FrameSequenceGap(Refused):
    """Frame sequences count up by one: a frame before this one is missing."""

    code = "frame_sequence_gap"


class DocumentTooLarge(Refused):
    """The summary document would grow past its bound."""

    code = "summary_too_large"


# Limits -----------------------------------------------------------------------------------------------------------


class ResourceExhausted(Refused):
    """A bounded pool is full: try again shortly."""

    code = "resource_exhausted"
    http_status = 429
    retryable = True


class WorkerAtCapacity(Refused):
    """The worker runs as many tasks as it may."""

    code = "worker_at_capacity"
    http_status = 429
    retryable = True


def _collect(kind: type[FlowFabricError], found: dict[str, type[FlowFabricError]]) -> None:
    found.setdefault(kind.code, kind)
    for child in kind.__subclasses__():
        _collect(child, found)


def _by_code() -> Mapping[str, type[FlowFabricError]]:
    found: dict[str, type[FlowFabricError]] = {}
    _collect(FlowFabricError, found)
    return found


BY_CODE: Mapping[str, type[FlowFabricError]] = _by_code()
"""Every error class by its code."""


def from_code(code: str, message: str | None, details: Mapping[str, Detail] | None = None) -> FlowFabricError:
    """Rebuild the error that a reply names; a code this version does not know becomes a plain `Refused`."""
    kind = BY_CODE.get(code)
    if kind is None:
        return Refused(message or code, code=code, **dict(details or {}))
    return kind(message, **dict(details or {}))
