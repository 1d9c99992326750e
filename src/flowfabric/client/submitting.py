"""What submitting is made of, whoever submits: the client, its blocking twin, or `enqueue` inside a transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

import msgspec

from flowfabric.client.durations import Duration, instant_ms, milliseconds
from flowfabric.client.submittable import NamedTask, ResultT, Submittable
from flowfabric.contract import ids
from flowfabric.contract.errors import Misuse
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import ExecutionId, Lane, Namespace
from flowfabric.contract.policies import ExecutionPolicy, fill_policy
from flowfabric.telemetry import trace


class SubmitOptions(TypedDict, total=False):
    """How to submit, beside what: the options that `submit_many` and `enqueue_many` have for every item."""

    lane: str | None
    priority: int | None
    tags: Mapping[str, str] | None
    policy: ExecutionPolicy | None
    delay: Duration | datetime | None
    deadline: Duration | datetime | None
    namespace: str | None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The same as given for one submit, and the trace it belongs to."""

    namespace: str
    lane: str | None = None
    priority: int | None = None
    tags: Mapping[str, str] | None = None
    policy: ExecutionPolicy | None = None
    delay: Duration | datetime | None = None
    deadline: Duration | datetime | None = None
    traceparent: str | None = None

    @property
    def needs_now(self) -> bool:
        """Whether an instant counts from the store's time, which is the one that decides."""
        return any(
            value is not None and not isinstance(value, datetime) for value in (self.delay, self.deadline)
        )

    def submission(self, now_ms: int) -> Submission:
        """Work out the instants; `now_ms` is the store's time, where that is needed."""
        return Submission(
            namespace=self.namespace,
            lane=self.lane,
            priority=self.priority,
            tags=self.tags,
            policy=self.policy,
            delay_until_ms=_instant(self.delay, "delay", now_ms),
            deadline_at_ms=_instant(self.deadline, "deadline", now_ms),
            traceparent=self.traceparent if self.traceparent is not None else trace.current_traceparent(),
        )


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """How to submit, beside what, with every instant worked out."""

    namespace: str
    lane: str | None
    priority: int | None
    tags: Mapping[str, str] | None
    policy: ExecutionPolicy | None
    delay_until_ms: int | None
    deadline_at_ms: int | None
    traceparent: str | None

    def create(
        self,
        task: Submittable[Any],
        arguments: Mapping[str, Any],
        idempotency_key: str | None,
        execution_id: str | None = None,
    ) -> ExecutionCreate:
        """Build the command for one set of arguments; the task's own defaults fill what is not given.

        A task object carries its defaults with it, so they hold even before any worker has published them.
        """
        defaults = task.defaults
        lane, priority, policy = self.lane, self.priority, self.policy
        if defaults is not None:
            lane = lane if lane is not None else defaults.lane
            priority = priority if priority is not None else defaults.priority
            policy = fill_policy(policy, defaults.policy)
        return ExecutionCreate(
            execution_id=None if execution_id is None else ExecutionId(execution_id),
            namespace=Namespace(self.namespace),
            lane=None if lane is None else Lane(lane),
            kind=ids.Kind(task.name),
            input=task.encode_arguments(arguments),
            priority=priority,
            idempotency_key=idempotency_key,
            tags=dict(self.tags or {}),
            policy=policy,
            delay_until_ms=self.delay_until_ms,
            deadline_at_ms=self.deadline_at_ms,
            traceparent=self.traceparent,
        )

    def create_each(
        self,
        task: Submittable[Any],
        arguments: Sequence[Mapping[str, Any]],
        keys: Sequence[str | None] | None,
    ) -> list[ExecutionCreate]:
        """Build the commands for several sets of arguments; `keys` are their idempotency keys."""
        if keys is not None and len(keys) != len(arguments):
            raise Misuse(
                f"{len(keys)} keys for {len(arguments)} sets of arguments: give one each, or None for none"
            )
        return [
            self.create(task, given, None if keys is None else keys[index])
            for index, given in enumerate(arguments)
        ]


def many_options(given: SubmitOptions, namespace: str) -> Options:
    """Return the options of every item; `namespace` is the one that is meant when none is given."""
    unknown = sorted(given.keys() - SubmitOptions.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"unknown options: {', '.join(unknown)}; there are {', '.join(SubmitOptions.__annotations__)}"
        )
    named = given.get("namespace")
    return Options(
        namespace=named if named is not None else namespace,
        lane=given.get("lane"),
        priority=given.get("priority"),
        tags=given.get("tags"),
        policy=given.get("policy"),
        delay=given.get("delay"),
        deadline=given.get("deadline"),
    )


def known_task(task: Submittable[ResultT] | str) -> Submittable[ResultT]:
    """Return what to submit; a name stands for a task that is known by name only."""
    if isinstance(task, str):
        named: Submittable[Any] = NamedTask(task)
        return named
    return task


def merged(arguments: Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a task, however they were given."""
    if arguments is None:
        return keywords
    twice = sorted(arguments.keys() & keywords.keys())
    if twice:
        raise Misuse(f"given twice, in arguments and as keywords: {', '.join(twice)}")
    return {**arguments, **keywords}


def _instant(value: Duration | datetime | None, field: str, now_ms: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        return instant_ms(value, field)
    return now_ms + milliseconds(value, field)
