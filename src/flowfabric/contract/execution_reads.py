"""Commands and replies that create executions or read them."""

from __future__ import annotations

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import Detail, InvalidInput, InvalidTagKey
from flowfabric.contract.execution_records import ExecutionInfo
from flowfabric.contract.ids import DEFAULT_NAMESPACE, ExecutionId, Lane, Namespace
from flowfabric.contract.payloads import JSON_CONTENT_TYPE, Payload
from flowfabric.contract.policies import ExecutionPolicy, check_policy
from flowfabric.contract.states import FailureClass, PublicState


class ExecutionCreate(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Create one execution. Omitted lane, priority and policy fields come from the kind's published defaults."""

    execution_id: ExecutionId | None = None
    """Absent: minted by the store, and only an idempotency key makes repeating safe."""
    namespace: Namespace = DEFAULT_NAMESPACE
    lane: Lane | None = None
    kind: ids.Kind
    input: Payload = Payload(b"null", JSON_CONTENT_TYPE)
    priority: int | None = None
    """Clamped to 0..9000; higher runs first."""
    creator: str = ""
    idempotency_key: str | None = None
    tags: dict[str, str] = {}
    policy: ExecutionPolicy | None = None
    delay_until_ms: int | None = None
    """Not before this instant; in the past means now."""
    deadline_at_ms: int | None = None
    """The execution expires at this instant, or at the policy's deadline if that is earlier."""
    traceparent: str | None = None

    def check(self) -> None:
        """Refuse malformed fields."""
        if self.execution_id is not None:
            ids.parse_execution_id(self.execution_id)
        if self.namespace is not DEFAULT_NAMESPACE:
            ids.check_name(self.namespace, "namespace")
        if self.lane is not None:
            ids.check_lane(self.lane)
        ids.check_name(self.kind, "kind")
        self.input.check("input", limits.PAYLOAD_BYTES_MAX)
        if self.priority is not None:
            ids.check_range(
                self.priority, "priority", limits.PRIORITY_ACCEPTED_MIN, limits.PRIORITY_ACCEPTED_MAX
            )
        if self.creator:
            ids.check_text(self.creator, "creator", limits.NAME_LENGTH_MAX)
        if self.idempotency_key is not None:
            if not self.idempotency_key:
                raise InvalidInput("an idempotency key must not be empty", field="idempotency_key")
            ids.check_text(self.idempotency_key, "idempotency_key", limits.IDEMPOTENCY_KEY_BYTES_MAX)
        if self.delay_until_ms is not None:
            ids.check_range(self.delay_until_ms, "delay_until_ms", 0, limits.TIMESTAMP_MAX_MS)
        if self.deadline_at_ms is not None:
            ids.check_range(self.deadline_at_ms, "deadline_at_ms", 0, limits.TIMESTAMP_MAX_MS)
        if self.traceparent is not None:
            ids.check_traceparent(self.traceparent)
        if self.tags:
            check_tags(self.tags)
        if self.policy is not None:
            check_policy(self.policy)


def check_tags(tags: dict[str, str]) -> None:
    """Refuse tags with a malformed key or too large a value."""
    if len(tags) > limits.TAGS_MAX:
        raise InvalidInput(f"an execution has at most {limits.TAGS_MAX} tags", field="tags")
    for key, value in tags.items():
        if not ids.is_tag_key(key):
            raise InvalidTagKey(key=ids.clip(key))
        ids.check_text(value, f"tags.{key}", limits.TAG_VALUE_BYTES_MAX)


class ExecutionCreated(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="created"):
    """The execution exists now."""

    execution_id: ExecutionId
    public_state: PublicState
    lane: Lane
    priority: int
    created_at_ms: int


class ExecutionDuplicate(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="duplicate"):
    """The same create had been carried out before."""

    execution_id: ExecutionId
    public_state: PublicState | None
    """Where it stands now; absent when retention has removed it already."""


class ItemRefused(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="refused"):
    """One item of a batch that was refused; the others are not affected."""

    code: str
    message: str
    retryable: bool
    details: dict[str, Detail]


class ExecutionCreateMany(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Create up to 1,000 executions; each is atomic by itself, and repeating the batch is safe as repeating each."""

    executions: tuple[ExecutionCreate, ...]

    def check(self) -> None:
        """Refuse an empty or too large batch; malformed items are refused one by one."""
        if not 1 <= len(self.executions) <= limits.CREATE_MANY_MAX:
            raise InvalidInput(f"executions holds 1 to {limits.CREATE_MANY_MAX} items", field="executions")


class ExecutionsCreated(msgspec.Struct, frozen=True, kw_only=True):
    """One result per item, in the order of the items."""

    results: tuple[ExecutionCreated | ExecutionDuplicate | ItemRefused, ...]


class ExecutionById(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name one execution."""

    execution_id: ExecutionId

    def check(self) -> None:
        """Refuse a malformed id."""
        ids.parse_execution_id(self.execution_id)


class ExecutionDescribe(ExecutionById, frozen=True, kw_only=True):
    """Read everything about one execution but its payloads."""


class ExecutionReadInfo(ExecutionById, frozen=True, kw_only=True):
    """Read the short record of one execution."""


class ExecutionReadState(ExecutionById, frozen=True, kw_only=True):
    """Read the public state of one execution."""


class ExecutionReadContext(ExecutionById, frozen=True, kw_only=True):
    """Read an execution's input, kind and tags."""


class ExecutionStateRead(msgspec.Struct, frozen=True, kw_only=True):
    """The public state."""

    execution_id: ExecutionId
    public_state: PublicState


class ExecutionReadResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read how an execution ended, waiting up to `wait_ms` for the end."""

    execution_id: ExecutionId
    wait_ms: int = 0

    def check(self) -> None:
        """Refuse malformed fields."""
        ids.parse_execution_id(self.execution_id)
        ids.check_range(self.wait_ms, "wait_ms", 0, limits.WAIT_MAX_MS)


class ResultCompleted(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="completed"):
    """It succeeded. `result` is absent when it completed without one."""

    execution_id: ExecutionId
    completed_at_ms: int
    attempt_index: int | None
    result: Payload | None


class ResultFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="failed"):
    """It failed for good."""

    execution_id: ExecutionId
    completed_at_ms: int
    attempt_index: int | None
    failure_class: FailureClass
    category: str
    message: str


class ResultCancelled(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="cancelled"):
    """It was cancelled."""

    execution_id: ExecutionId
    completed_at_ms: int
    reason: str
    cancelled_by: str


class ResultExpired(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="expired"):
    """It ran out of time."""

    execution_id: ExecutionId
    completed_at_ms: int
    reason: str


class ResultSkipped(msgspec.Struct, frozen=True, kw_only=True, tag_field="status", tag="skipped"):
    """What it depended on cannot happen any more."""

    execution_id: ExecutionId
    completed_at_ms: int


class ExecutionList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """List executions, newest first. A page may be short or empty and still have a cursor: go on until it has none."""

    namespace: Namespace | None = None
    lane: Lane | None = None
    kind: ids.Kind | None = None
    state: PublicState | None = None
    tag: str | None = None
    """`name.rest=value`, or `name.rest` for any value."""
    created_from_ms: int | None = None
    created_before_ms: int | None = None
    id_prefix: str | None = None
    """The beginning of the uuid; at least 2 characters."""
    cursor: str | None = None
    limit: int = limits.PAGE_DEFAULT

    def check(self) -> None:
        """Refuse malformed fields."""
        if self.namespace is not None:
            ids.check_name(self.namespace, "namespace")
        if self.lane is not None:
            ids.check_lane(self.lane)
        if self.kind is not None:
            ids.check_name(self.kind, "kind")
        for field in ("created_from_ms", "created_before_ms"):
            value_ms: int | None = getattr(self, field)
            if value_ms is not None:
                ids.check_range(value_ms, field, 0, limits.TIMESTAMP_MAX_MS)
        if self.id_prefix is not None and not (
            2 <= len(self.id_prefix) <= 36
            and all(character in "0123456789abcdef-" for character in self.id_prefix)
        ):
            raise InvalidInput("id_prefix is 2 to 36 characters of a lower-case uuid", field="id_prefix")
        if self.cursor is not None and not (
            self.cursor.isascii() and self.cursor.isalnum() and len(self.cursor) < 512
        ):
            raise InvalidInput("cursor is not one that execution.list returned", field="cursor")
        ids.check_range(self.limit, "limit", 1, limits.PAGE_MAX)
        if self.tag is not None:
            key, _, value = self.tag.partition("=")
            check_tags({key: value})


class ExecutionPage(msgspec.Struct, frozen=True, kw_only=True):
    """Executions, newest first."""

    executions: tuple[ExecutionInfo, ...]
    next_cursor: str | None


ResultUnion = ResultCompleted | ResultFailed | ResultCancelled | ResultExpired | ResultSkipped
