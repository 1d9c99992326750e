"""Policies: how often an execution is retried, how long it may run, what its stream keeps, who may run it.

Every field acts or is refused by name. `None` means "not set": create fills such fields from the defaults of the
execution's kind (published by workers when they register), then from the defaults given here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import InvalidCapabilities, InvalidInput, InvalidPolicy


class FixedBackoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="fixed"):
    """Wait the same time before every retry; with jitter, half to all of it."""

    delay_ms: int = limits.BACKOFF_DELAY_DEFAULT_MS
    jitter: bool = False


class ExponentialBackoff(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="exponential"
):
    """Wait min(initial x multiplier^retries, max) before a retry; with jitter, half to all of it."""

    initial_delay_ms: int = limits.BACKOFF_DELAY_DEFAULT_MS
    max_delay_ms: int = limits.BACKOFF_DELAY_CAP_DEFAULT_MS
    multiplier: float = limits.BACKOFF_MULTIPLIER_DEFAULT
    jitter: bool = False


Backoff = FixedBackoff | ExponentialBackoff


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Retries beyond the first attempt. Absent policy: no retries."""

    max_retries: int = limits.MAX_RETRIES_DEFAULT
    backoff: Backoff = ExponentialBackoff()
    retryable_categories: tuple[str, ...] = ()
    """Failure categories that are retried whatever their class."""


class TimeoutPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time limits. An attempt that runs out of time fails with class `timeout`; a deadline ends the execution."""

    attempt_timeout_ms: int | None = None
    execution_deadline_ms: int | None = None
    """From creation, or from the latest replay."""


class RoutingRequirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker must have."""

    required_capabilities: tuple[str, ...] = ()


class StreamPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an attempt's stream keeps and when a frame counts as written."""

    durability_mode: Literal["buffered", "durable"] = "buffered"
    """`durable`: the SDK waits for each frame's acknowledgement; `buffered`: it sends frames in batches."""
    retention_maxlen: int = limits.STREAM_MAXLEN_DEFAULT
    retention_ttl_ms: int | None = None
    """Frames are removed this long after the execution ended; the execution itself stays."""


class ExecutionPolicy(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How one execution is run. Fields that are not set are filled from its kind's defaults at create."""

    retry_policy: RetryPolicy | None = None
    timeout_policy: TimeoutPolicy | None = None
    max_reclaim_count: int | None = None
    reclaim_grace_ms: int | None = None
    max_replay_count: int | None = None
    dedup_window_ms: int | None = None
    retention_ms: int | None = None
    routing_requirements: RoutingRequirements | None = None
    stream_policy: StreamPolicy | None = None


PLANNED_POLICY_FIELDS: Final = {
    "budget_ids": "budgets",
    "quota_policy_id": "quotas",
    "suspension_policy": "suspension",
    "max_signals_per_execution": "suspension",
    "max_signals": "suspension",
}
"""Policy fields of features not built yet, refused by name."""

UNSUPPORTED_POLICY_FIELDS: Final = (
    "fallback_policy",
    "isolation_level",
    "preferred_locality",
    "priority",
    "delay_until",
)
"""Policy fields of the published interface that FlowFabric does not have, refused by name."""


def check_capabilities(tokens: Iterable[str], side: str) -> None:
    """Refuse capability tokens that are malformed or too many; `side` is `required` or `worker`."""
    count = 0
    size = 0
    for token in tokens:
        count += 1
        if not token:
            raise InvalidCapabilities(f"{side}:empty_token", detail=f"{side}:empty_token")
        if "," in token:
            raise InvalidCapabilities(f"{side}:comma_in_token", detail=f"{side}:comma_in_token")
        if any(character <= " " or character == "\x7f" for character in token):
            raise InvalidCapabilities(f"{side}:control_or_whitespace", detail=f"{side}:control_or_whitespace")
        try:
            size += len(token.encode()) + 1
        except UnicodeEncodeError as error:
            raise InvalidCapabilities(f"{side}:not_unicode", detail=f"{side}:not_unicode") from error
    if count > limits.CAPABILITY_TOKENS_MAX:
        raise InvalidCapabilities(f"{side}:too_many_tokens", detail=f"{side}:too_many_tokens")
    if size - 1 > limits.CAPABILITY_BYTES_MAX:
        raise InvalidCapabilities(f"{side}:too_many_bytes", detail=f"{side}:too_many_bytes")


def _check_backoff(backoff: Backoff) -> None:
    if isinstance(backoff, FixedBackoff):
        ids.check_range(backoff.delay_ms, "backoff.delay_ms", 0, limits.DURATION_MAX_MS)
        return
    ids.check_range(backoff.initial_delay_ms, "backoff.initial_delay_ms", 0, limits.DURATION_MAX_MS)
    ids.check_range(backoff.max_delay_ms, "backoff.max_delay_ms", 0, limits.DURATION_MAX_MS)
    if not 1.0 <= backoff.multiplier <= limits.BACKOFF_MULTIPLIER_MAX:
        raise InvalidInput(
            f"backoff.multiplier must be 1 to {limits.BACKOFF_MULTIPLIER_MAX}", field="multiplier"
        )


def _check_retry(retry: RetryPolicy) -> None:
    ids.check_range(retry.max_retries, "max_retries", 0, limits.MAX_RETRIES_MAX)
    _check_backoff(retry.backoff)
    if len(retry.retryable_categories) > limits.RETRYABLE_CATEGORIES_MAX:
        raise InvalidInput(f"at most {limits.RETRYABLE_CATEGORIES_MAX} retryable_categories")
    for category in retry.retryable_categories:
        ids.check_text(category, "retryable_categories", limits.FAILURE_CATEGORY_LENGTH_MAX)


def check_policy(policy: ExecutionPolicy) -> None:
    """Refuse a policy with a number out of range or a malformed list, with code `invalid_policy_json`.

    Malformed capabilities keep their own code, `invalid_capabilities`.
    """
    if policy.routing_requirements is not None:
        check_capabilities(policy.routing_requirements.required_capabilities, "required")
    try:
        if policy.retry_policy is not None:
            _check_retry(policy.retry_policy)
        if policy.timeout_policy is not None:
            timeout = policy.timeout_policy
            if timeout.attempt_timeout_ms is not None:
                ids.check_range(timeout.attempt_timeout_ms, "attempt_timeout_ms", 1, limits.DURATION_MAX_MS)
            if timeout.execution_deadline_ms is not None:
                ids.check_range(
                    timeout.execution_deadline_ms, "execution_deadline_ms", 1, limits.DURATION_MAX_MS
                )
        for field, most in (
            ("max_reclaim_count", limits.COUNT_MAX),
            ("max_replay_count", limits.COUNT_MAX),
            ("reclaim_grace_ms", limits.DURATION_MAX_MS),
            ("dedup_window_ms", limits.DURATION_MAX_MS),
            ("retention_ms", limits.DURATION_MAX_MS),
        ):
            value: int | None = getattr(policy, field)
            if value is not None:
                ids.check_range(value, field, 0, most)
        if policy.stream_policy is not None:
            stream = policy.stream_policy
            ids.check_range(stream.retention_maxlen, "retention_maxlen", 1, limits.STREAM_MAXLEN_MAX)
            if stream.retention_ttl_ms is not None:
                ids.check_range(stream.retention_ttl_ms, "retention_ttl_ms", 0, limits.DURATION_MAX_MS)
    except InvalidInput as error:
        raise InvalidPolicy(f"policy: {error.message}", **error.details) from error


def fill_policy(given: ExecutionPolicy | None, published: ExecutionPolicy | None) -> ExecutionPolicy | None:
    """Fill the fields that were not given from the published ones; None when there is neither."""
    if given is None or published is None:
        return given if given is not None else published
    missing = {
        field: value
        for field in ExecutionPolicy.__struct_fields__
        if getattr(given, field) is None and (value := getattr(published, field)) is not None
    }
    return msgspec.structs.replace(given, **missing) if missing else given


class KindDefaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a worker publishes about one kind it handles; create fills omitted fields from it."""

    kind: ids.Kind
    lane: ids.Lane | None = None
    priority: int | None = None
    policy: ExecutionPolicy | None = None

    def check(self) -> None:
        """Refuse malformed defaults."""
        ids.check_name(self.kind, "kind")
        if self.lane is not None:
            ids.check_lane(self.lane)
        if self.priority is not None:
            ids.check_range(
                self.priority, "priority", limits.PRIORITY_ACCEPTED_MIN, limits.PRIORITY_ACCEPTED_MAX
            )
        if self.policy is not None:
            check_policy(self.policy)
