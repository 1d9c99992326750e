"""An app is a named set of tasks; a task is a plain function with a name and the defaults its executions are run by.

A task stays callable as the function it was, so that it can be unit-tested without anything running. The options of
`@app.task` become the published defaults of its kind: whoever creates an execution of it need not repeat them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

import msgspec

from flowfabric.client.durations import Duration, milliseconds
from flowfabric.contract import ids
from flowfabric.contract.errors import FlowFabricError, Misuse
from flowfabric.contract.ids import Kind, Lane
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import (
    Backoff,
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    KindDefaults,
    RetryPolicy,
    RoutingRequirements,
    StreamPolicy,
    TimeoutPolicy,
)
from flowfabric.worker.signature import Signature

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
Result = TypeVar("Result")
Other = ParamSpec("Other")

BackoffOption = Literal["exponential", "fixed"] | Backoff | Duration
StreamOption = Literal["buffered", "durable"] | StreamPolicy


class Task(Generic[Parameters, Returned, Result]):
    """A function that executions run. Calling it calls the plain function."""

    __name__: str

    def __init__(
        self,
        function: Callable[Parameters, Returned],
        name: str,
        defaults: KindDefaults,
        *,
        max_concurrency: int | None = None,
        scope: Mapping[str, Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function: Final = function
        self.name: Final = name
        """The kind of its executions."""
        self.defaults: Final = defaults
        """What workers publish about it."""
        self.max_concurrency: Final = max_concurrency
        """How many of it one worker process runs at once; None for as many as the worker runs of anything."""
        self.signature: Final = Signature(function, name, scope)

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        """Call the plain function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    @property
    def lane(self) -> str:
        """The lane that its executions wait in unless their creator says otherwise."""
        return self.defaults.lane or ids.DEFAULT_LANE

    def encode_arguments(self, arguments: Mapping[str, Any], /) -> Payload:
        """Turn keyword arguments into an execution's input.

        Raises: Misuse naming the argument that is missing, unknown or of the wrong type.
        """
        return self.signature.encode_arguments(arguments)

    def decode_result(self, result: Payload | None, /) -> Result:
        """Turn a stored result into what the function returned."""
        return self.signature.decode_result(result)


AnyTask = Task[Any, Any, Any]


class _Decorator(Protocol):
    """What `app.task(...)` with options returns."""

    @overload
    def __call__(
        self, function: Callable[Other, Coroutine[Any, Any, Result]], /
    ) -> Task[Other, Coroutine[Any, Any, Result], Result]: ...

    @overload
    def __call__(self, function: Callable[Other, Result], /) -> Task[Other, Result, Result]: ...


class App:
    """A named set of tasks that a worker runs."""

    def __init__(self, name: str = "app") -> None:
        """Name the app; the name becomes part of its workers' ids.

        Raises: Misuse for a malformed name.
        """
        _checked(lambda: ids.check_name(name, "the app's name"))
        self.name: Final = name
        self._tasks: dict[str, AnyTask] = {}

    @property
    def tasks(self) -> Mapping[str, AnyTask]:
        """Its tasks by name, in the order of their definition."""
        return dict(self._tasks)

    def __iter__(self) -> Iterator[AnyTask]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    def include(self, other: App) -> None:
        """Add the tasks of another app, for projects of several modules.

        Raises: Misuse when a name is taken.
        """
        for task in other:
            self._add(task)

    @overload
    def task(
        self, function: Callable[Other, Coroutine[Any, Any, Result]], /
    ) -> Task[Other, Coroutine[Any, Any, Result], Result]: ...

    @overload
    def task(self, function: Callable[Other, Result], /) -> Task[Other, Result, Result]: ...

    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        lane: str | None = None,
        retries: int | None = None,
        retry: RetryPolicy | None = None,
        backoff: BackoffOption | None = None,
        retry_on: Iterable[str] = (),
        timeout: Duration | None = None,
        deadline: Duration | None = None,
        requires: Iterable[str] = (),
        priority: int | None = None,
        stream: StreamOption | None = None,
        policy: ExecutionPolicy | None = None,
        max_concurrency: int | None = None,
    ) -> _Decorator: ...

    def task(  # noqa: PLR0913 -- options, each given by name
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        lane: str | None = None,
        retries: int | None = None,
        retry: RetryPolicy | None = None,
        backoff: BackoffOption | None = None,
        retry_on: Iterable[str] = (),
        timeout: Duration | None = None,
        deadline: Duration | None = None,
        requires: Iterable[str] = (),
        priority: int | None = None,
        stream: StreamOption | None = None,
        policy: ExecutionPolicy | None = None,
        max_concurrency: int | None = None,
    ) -> Any:
        """Make a function a task: `@app.task`, or `@app.task(retries=3, timeout="30s")`.

        `name`: its kind, else the function's name. `lane`: where its executions wait. `retries`, `backoff`
        ("exponential", "fixed", a wait between tries, or a backoff policy) and `retry_on` (failure categories retried
        whatever their class), or all of them as `retry`. `timeout`: of one attempt. `deadline`: of the whole
        execution. Durations are seconds, a timedelta, or text such as "30s". `requires`: capabilities a worker must
        have. `priority`: higher runs first. `stream`: "buffered" or "durable" frames. `policy`: everything else, filled
        by the other options. `max_concurrency`: how many of this task one worker process runs at once.

        Raises: Misuse when the function or an option cannot work.
        """
        scope = sys._getframe(1).f_locals  # pyright: ignore[reportPrivateUsage] -- annotations may name local types

        def decorate(decorated: Callable[..., Any]) -> AnyTask:
            kind = name if name is not None else getattr(decorated, "__name__", "")
            made = _policy(
                kind,
                policy or ExecutionPolicy(),
                retry=_retry(kind, retries, retry, backoff, tuple(retry_on)),
                timeout=timeout,
                deadline=deadline,
                requires=requires,
                stream=stream,
            )
            defaults = KindDefaults(
                kind=Kind(kind),
                lane=None if lane is None else Lane(lane),
                priority=priority,
                policy=None if made == ExecutionPolicy() else made,
            )
            _checked(defaults.check, f"task {kind}: ")
            if max_concurrency is not None and max_concurrency < 1:
                raise Misuse(f"task {kind}: max_concurrency must be at least 1")
            task: AnyTask = Task(decorated, kind, defaults, max_concurrency=max_concurrency, scope=scope)
            self._add(task)
            return task

        return decorate if function is None else decorate(function)

    def _add(self, task: AnyTask) -> None:
        present = self._tasks.get(task.name)
        if present is not None and present is not task:
            raise Misuse(
                f"app {self.name} already has a task {task.name} ({present.function.__module__}."
                f"{present.function.__qualname__}): give one of them another name="
            )
        self._tasks[task.name] = task


def _checked(check: Callable[[], None], prefix: str = "") -> None:
    try:
        check()
    except Misuse:
        raise
    except FlowFabricError as error:
        raise Misuse(prefix + error.message, **error.details) from error


def _retry(
    kind: str,
    retries: int | None,
    retry: RetryPolicy | None,
    backoff: BackoffOption | None,
    categories: tuple[str, ...],
) -> RetryPolicy | None:
    if retry is not None:
        if retries is not None or backoff is not None or categories:
            raise Misuse(f"task {kind}: give retry=, or retries=, backoff= and retry_on=, not both")
        return retry
    if retries is None:
        if backoff is not None or categories:
            raise Misuse(f"task {kind}: backoff= and retry_on= need retries=")
        return None
    return RetryPolicy(max_retries=retries, backoff=_backoff(backoff), retryable_categories=categories)


def _backoff(option: BackoffOption | None) -> Backoff:
    if option is None or option == "exponential":
        return ExponentialBackoff()
    if option == "fixed":
        return FixedBackoff()
    if isinstance(option, FixedBackoff | ExponentialBackoff):
        return option
    return FixedBackoff(delay_ms=milliseconds(option, "backoff"))


def _policy(
    kind: str,
    base: ExecutionPolicy,
    *,
    retry: RetryPolicy | None,
    timeout: Duration | None,
    deadline: Duration | None,
    requires: Iterable[str],
    stream: StreamOption | None,
) -> ExecutionPolicy:
    changes: dict[str, Any] = {}
    if retry is not None:
        changes["retry_policy"] = retry
    if timeout is not None or deadline is not None:
        former = base.timeout_policy or TimeoutPolicy()
        changes["timeout_policy"] = TimeoutPolicy(
            attempt_timeout_ms=former.attempt_timeout_ms
            if timeout is None
            else milliseconds(timeout, "timeout"),
            execution_deadline_ms=former.execution_deadline_ms
            if deadline is None
            else milliseconds(deadline, "deadline"),
        )
    if isinstance(requires, str):
        raise Misuse(f'task {kind}: requires is a set of capabilities: requires={{"{requires}"}}')
    capabilities = tuple(sorted(set(requires)))
    if capabilities:
        changes["routing_requirements"] = RoutingRequirements(required_capabilities=capabilities)
    if isinstance(stream, StreamPolicy):
        changes["stream_policy"] = stream
    elif stream is not None:
        if stream not in ("buffered", "durable"):
            raise Misuse(f'task {kind}: stream is "buffered", "durable" or a StreamPolicy, not {stream!r}')
        former_stream = base.stream_policy or StreamPolicy()
        changes["stream_policy"] = msgspec.structs.replace(former_stream, durability_mode=stream)
    for field in changes:
        if field in ("retry_policy", "routing_requirements") and getattr(base, field) is not None:
            raise Misuse(f"task {kind}: {field} is given twice, in policy= and as an option of its own")
    return msgspec.structs.replace(base, **changes) if changes else base
