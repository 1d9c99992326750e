"""`flowfabric.connect_sync`: the client for scripts, Flask, Django, and whatever else does not await.

Every method blocks the calling thread and may be called from any number of threads at once. One background thread
does the work. After a fork, a client of a server opens a connection of its own in the child; a client of a store
refuses to go on there, since a store must not be carried across a fork.
"""

from __future__ import annotations

import builtins
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, Unpack, overload

from flowfabric.client.batches import CHUNK_DEFAULT
from flowfabric.client.connecting import TIMEOUT_S, Target, Timers
from flowfabric.client.durations import Duration
from flowfabric.client.errors import SubmitManyFailed
from flowfabric.client.facade import Client
from flowfabric.client.portal import Portal
from flowfabric.client.progress import Report
from flowfabric.client.run import Other, Run, RunFrame
from flowfabric.client.submittable import ResultT, ResultT_co, Submittable
from flowfabric.client.submitting import SubmitOptions
from flowfabric.contract import ids
from flowfabric.contract.attempt import AttemptInfo
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import Misuse
from flowfabric.contract.execution import (
    ExecutionCancelled,
    ExecutionInfo,
    ExecutionReplayed,
    ExecutionSnapshot,
)
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.policies import ExecutionPolicy
from flowfabric.contract.states import PublicState

Result = TypeVar("Result")

_LEFT_BEHIND: Final[list[object]] = []
"""Connections of a parent process: never used and never closed here, for both would disturb the parent's."""


class _Connection:
    """The portal and the client on it, opened on first use, once per process."""

    def __init__(self, target: Target) -> None:
        self._target: Target = target
        self._lock: threading.Lock = threading.Lock()
        self._opened: tuple[Portal, Client] | None = None
        self._forked: bool = False
        self._closed: bool = False
        itself = weakref.ref(self)

        def after_fork() -> None:
            connection = itself()
            if connection is not None:
                connection.leave_behind()

        os.register_at_fork(after_in_child=after_fork)

    def leave_behind(self) -> None:
        """Forget, in a forked child, what belongs to the parent. Only one thread exists then."""
        self._lock = threading.Lock()
        if self._opened is not None:
            _LEFT_BEHIND.append(self._opened)
            self._opened = None
            self._forked = True

    def open(self) -> tuple[Portal, Client]:
        """Return the portal and the client, opening them if this process has not yet."""
        with self._lock:
            if self._opened is not None:
                return self._opened
            if self._closed:
                raise Misuse("this client is closed: call connect_sync again")
            if self._forked and not self._target.is_server:
                raise Misuse(
                    "this store was opened before the process forked: open it in each process, after the fork"
                )
            portal = Portal()
            try:
                client = portal.call(self._target.open())
            except BaseException:
                portal.stop()
                raise
            self._opened = (portal, client)
            return self._opened

    def close(self) -> None:
        """Close the client and stop the portal."""
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, None
        if opened is not None:
            portal, client = opened
            try:
                portal.call(client.close())
            finally:
                portal.stop()

    def call(self, work: Callable[[Client], Coroutine[Any, Any, Result]]) -> Result:
        portal, client = self.open()
        return portal.call(work(client))

    def iterate(self, items: Callable[[Client], AsyncGenerator[Result]]) -> Generator[Result]:
        portal, client = self.open()
        return portal.iterate(items(client))


class BlockingRun(Generic[ResultT_co]):
    """One execution as its submitter sees it; the methods are those of `Run`, blocking."""

    def __init__(
        self,
        connection: _Connection,
        execution_id: ExecutionId,
        task: Submittable[ResultT_co] | None,
        *,
        duplicate: bool = False,
    ) -> None:
        self._connection: _Connection = connection
        self._id: ExecutionId = execution_id
        self._task: Submittable[ResultT_co] | None = task
        self._duplicate: bool = duplicate

    @property
    def id(self) -> ExecutionId:
        """The execution's id."""
        return self._id

    @property
    def duplicate(self) -> bool:
        """The same submit had been carried out before: this is the earlier run."""
        return self._duplicate

    def __repr__(self) -> str:
        return f"<BlockingRun {self._id}>"

    def _on(self, client: Client) -> Run[ResultT_co]:
        return client.run(self._id, self._task)

    def state(self) -> PublicState:
        """Read the run's state in one word. See `Run.state`."""
        return self._connection.call(lambda client: self._on(client).state())

    def describe(self) -> ExecutionSnapshot:
        """Read everything about the run but its payloads. See `Run.describe`."""
        return self._connection.call(lambda client: self._on(client).describe())

    @overload
    def result(self, *, timeout: Duration | None = None, type: builtins.type[Other]) -> Other: ...
    @overload
    def result(self, *, timeout: Duration | None = None, type: None = None) -> ResultT_co: ...
    def result(self, *, timeout: Duration | None = None, type: builtins.type[Any] | None = None) -> Any:  # noqa: A002
        """Wait for the run to end and return its result, or raise how it ended. See `Run.result`."""
        if type is not None:
            return self._connection.call(lambda client: self._on(client).result(timeout=timeout, type=type))
        return self._connection.call(lambda client: self._on(client).result(timeout=timeout))

    def stream(
        self,
        *,
        start: str | None = None,
        follow: bool = True,
        type: builtins.type[Any] | None = None,  # noqa: A002
        markers: bool = False,
    ) -> Generator[RunFrame]:
        """Yield the frames of the whole run as they come, until it ends. See `Run.stream`."""
        return self._connection.iterate(
            lambda client: self._on(client).stream(start=start, follow=follow, type=type, markers=markers)
        )

    def attempts(self) -> list[AttemptInfo]:
        """Read every attempt of the run, oldest first. See `Run.attempts`."""
        return self._connection.call(lambda client: self._on(client).attempts())

    def cancel(self, reason: str = "", *, actor: str = "") -> ExecutionCancelled:
        """Cancel the run. See `Run.cancel`."""
        return self._connection.call(lambda client: self._on(client).cancel(reason, actor=actor))

    def replay(self, *, actor: str = "", expected_replay_count: int | None = None) -> ExecutionReplayed:
        """Run a finished execution again. See `Run.replay`."""
        return self._connection.call(
            lambda client: self._on(client).replay(actor=actor, expected_replay_count=expected_replay_count)
        )


class BlockingClient:
    """Submits tasks and finds their runs again; the methods are those of `Client`, blocking."""

    def __init__(self, target: Target) -> None:
        self._connection: _Connection = _Connection(target)

    def __enter__(self) -> BlockingClient:
        self._connection.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection or store. Calls of other threads under way end with an error."""
        self._connection.close()

    def call(self, work: Callable[[Client], Coroutine[Any, Any, Result]]) -> Result:
        """Run any coroutine with the asynchronous client: `ff.call(lambda c: c.stores.lane.list(LaneList()))`."""
        return self._connection.call(work)

    def ping(self) -> None:
        """Reach the server or store, or raise `Unavailable`."""
        self._connection.call(lambda client: client.ping())

    def submit(
        self,
        task: Submittable[ResultT] | str,
        /,
        *,
        idempotency_key: str | None = None,
        lane: str | None = None,
        priority: int | None = None,
        tags: Mapping[str, str] | None = None,
        policy: ExecutionPolicy | None = None,
        delay: Duration | datetime | None = None,
        deadline: Duration | datetime | None = None,
        namespace: str | None = None,
        execution_id: str | None = None,
        traceparent: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> BlockingRun[ResultT]:
        """Submit a task, by itself or by name, with keyword arguments, and return its run. See `Client.submit`."""
        run = self._connection.call(
            lambda client: client.submit(
                task,
                idempotency_key=idempotency_key,
                lane=lane,
                priority=priority,
                tags=tags,
                policy=policy,
                delay=delay,
                deadline=deadline,
                namespace=namespace,
                execution_id=execution_id,
                traceparent=traceparent,
                arguments=arguments,
                **keywords,
            )
        )
        return self._blocking(run)

    def submit_many(
        self,
        task: Submittable[ResultT] | str,
        arguments: Sequence[Mapping[str, Any]],
        /,
        *,
        keys: Sequence[str | None] | None = None,
        progress: bool | Report | None = None,
        chunk: int = CHUNK_DEFAULT,
        **options: Unpack[SubmitOptions],
    ) -> builtins.list[BlockingRun[ResultT]]:
        """Submit a task once per set of arguments and return the runs in order. See `Client.submit_many`.

        The runs of a `SubmitManyFailed` are blocking ones too. A progress function is called on the client's thread.
        """
        try:
            runs = self._connection.call(
                lambda client: client.submit_many(
                    task, arguments, keys=keys, progress=progress, chunk=chunk, **options
                )
            )
        except SubmitManyFailed as error:
            error.runs = [None if run is None else self._blocking(run) for run in error.runs]
            raise
        return [self._blocking(run) for run in runs]

    def run(self, execution_id: str, /, task: Submittable[ResultT] | None = None) -> BlockingRun[ResultT]:
        """Return the run with this id, without asking whether it exists. See `Client.run`."""
        ids.parse_execution_id(execution_id)
        return BlockingRun(self._connection, ExecutionId(execution_id), task)

    def list(
        self,
        *,
        lane: str | None = None,
        kind: str | None = None,
        state: PublicState | str | None = None,
        tag: str | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        id_prefix: str | None = None,
        namespace: str | None = None,
    ) -> Generator[ExecutionInfo]:
        """Yield executions of a namespace, newest first. See `Client.list`."""
        return self._connection.iterate(
            lambda client: client.list(
                lane=lane,
                kind=kind,
                state=state,
                tag=tag,
                created_from=created_from,
                created_before=created_before,
                id_prefix=id_prefix,
                namespace=namespace,
            )
        )

    def _blocking(self, run: Run[ResultT]) -> BlockingRun[ResultT]:
        return BlockingRun(self._connection, run.id, run.task, duplicate=run.duplicate)


def connect_sync(
    url: str | None = None,
    *,
    token: str | None = None,
    namespace: str = ids.DEFAULT_NAMESPACE,
    timeout_s: float = TIMEOUT_S,
    trust_environment: bool = False,
    engine: Callable[[Backend], Timers] | None = None,
) -> BlockingClient:
    """Connect like `connect`, for programs that do not await: `with connect_sync(...) as ff:`.

    Usable from any thread; without `with`, it connects on first use and `close` ends it.
    """
    return BlockingClient(
        Target(
            url,
            token=token,
            namespace=namespace,
            timeout_s=timeout_s,
            trust_environment=trust_environment,
            engine=engine,
        )
    )
