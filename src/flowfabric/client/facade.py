"""`Client`: submit work, find it again, list it, from asynchronous programs.

The same `Client` works over a server's URL and over a store's. It runs no timers and no tasks: something else, such
as `flowfabric serve` or a worker, must do that for the work to move.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Unpack

import msgspec

from flowfabric.client.batches import CHUNK_DEFAULT, create_all
from flowfabric.client.durations import Duration, instant_ms
from flowfabric.client.errors import SubmitManyFailed
from flowfabric.client.following import Follow, follow_by_polling
from flowfabric.client.progress import Report, shown
from flowfabric.client.run import Run
from flowfabric.client.submittable import ResultT, Submittable
from flowfabric.client.submitting import Options, Submission, SubmitOptions, known_task, many_options, merged
from flowfabric.contract import ids, limits
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import FlowFabricError, Misuse
from flowfabric.contract.execution import (
    ExecutionCreated,
    ExecutionDuplicate,
    ExecutionInfo,
    ExecutionList,
)
from flowfabric.contract.ids import ExecutionId, Lane, Namespace
from flowfabric.contract.policies import ExecutionPolicy
from flowfabric.contract.states import PublicState


class Client:
    """Submits tasks and finds their runs again, over any stores.

    Made by `connect`; wrap stores of one's own with `Client(stores)`, which does not close them.
    """

    def __init__(
        self,
        stores: Stores,
        *,
        namespace: str = ids.DEFAULT_NAMESPACE,
        follow: Follow | None = None,
        now_ms: Callable[[], Awaitable[int]] | None = None,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._stores: Stores = stores
        self._namespace: str = namespace
        self._follow: Follow = follow if follow is not None else partial(follow_by_polling, stores)
        self._now_ms: Callable[[], Awaitable[int]] | None = now_ms
        self._close: Callable[[], Awaitable[None]] | None = close

    @property
    def stores(self) -> Stores:
        """Every operation of the contract: `await client.stores.lane.list(LaneList())`."""
        return self._stores

    @property
    def namespace(self) -> str:
        """The namespace that is meant when none is given."""
        return self._namespace

    async def close(self) -> None:
        """Let go of the connection or store, if `connect` opened it."""
        close, self._close = self._close, None
        if close is not None:
            await close()

    async def ping(self) -> None:
        """Reach the server or store, or raise `Unavailable`."""
        await self._stores.ping()

    async def submit(
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
    ) -> Run[ResultT]:
        """Submit a task, by itself or by name, with keyword arguments, and return its run.

        Arguments whose names are options of this method go in `arguments`. `delay` (not before) and `deadline` (the
        run expires) are lengths of time from now or datetimes. Options not given come from the task's own defaults;
        the trace goes on from the current OpenTelemetry span, or from `traceparent`.

        Idempotent: with the same `idempotency_key` or `execution_id` and content, the same run, marked `duplicate`.
        Refuses: `invalid_input`, `invalid_tag_key`, `invalid_capabilities`, `invalid_policy_json`,
        `idempotency_conflict`, `lane_not_accepting`, `route_limit_exceeded`. Raises: `Misuse` for arguments that
        cannot be written as JSON, `Unavailable`, `OutcomeUnknown`.
        """
        known = known_task(task)
        how = await self._submission(
            Options(
                namespace=namespace if namespace is not None else self._namespace,
                lane=lane,
                priority=priority,
                tags=tags,
                policy=policy,
                delay=delay,
                deadline=deadline,
                traceparent=traceparent,
            )
        )
        command = how.create(known, merged(arguments, keywords), idempotency_key, execution_id)
        created = await self._stores.execution.create(command)
        return self._submitted(created, known, named=idempotency_key is not None or execution_id is not None)

    async def submit_many(
        self,
        task: Submittable[ResultT] | str,
        arguments: Sequence[Mapping[str, Any]],
        /,
        *,
        keys: Sequence[str | None] | None = None,
        progress: bool | Report | None = None,
        chunk: int = CHUNK_DEFAULT,
        **options: Unpack[SubmitOptions],
    ) -> list[Run[ResultT]]:
        """Submit a task once per set of arguments, in as few round trips as fit, and return the runs in order.

        `keys` are the idempotency keys, one per item. `progress=True` shows how far it is; a function is called with
        (done, in all). `chunk` is how many items one request takes, at most 1,000. The other options are those of
        `submit` and the same for every item.

        Raises: `SubmitManyFailed`, a group of the refusals of single items, when there are any; its `runs` are those
        that were submitted all the same.
        """
        if not 1 <= chunk <= limits.CREATE_MANY_MAX:
            raise Misuse(f"chunk is 1 to {limits.CREATE_MANY_MAX}, not {chunk}")
        known = known_task(task)
        how = await self._submission(many_options(options, self._namespace))
        items = how.create_each(known, arguments, keys)
        with shown(progress, f"submitting {known.name}", len(items)) as report:
            outcomes = await create_all(self._stores, items, count_max=chunk, report=report)
        runs = [
            None
            if isinstance(outcome, FlowFabricError)
            else self._submitted(outcome, known, named=item.idempotency_key is not None)
            for item, outcome in zip(items, outcomes, strict=True)
        ]
        errors = [outcome for outcome in outcomes if isinstance(outcome, FlowFabricError)]
        if errors:
            failed = SubmitManyFailed(f"{len(errors)} of {len(items)} items were not submitted", errors)
            failed.runs = runs
            raise failed
        return [run for run in runs if run is not None]

    def run(self, execution_id: str, /, task: Submittable[ResultT] | None = None) -> Run[ResultT]:
        """Return the run with this id, without asking whether it exists. `task` decodes its result.

        Refuses: `invalid_input` for text that is not an execution id.
        """
        ids.parse_execution_id(execution_id)
        return Run(self._stores, self._follow, ExecutionId(execution_id), task=task)

    async def list(
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
    ) -> AsyncGenerator[ExecutionInfo]:
        """Yield executions of a namespace, newest first, page by page.

        `tag` is `name.rest=value`, or `name.rest` for any value. Refuses: `invalid_input`, `invalid_tag_key`.
        """
        query = ExecutionList(
            namespace=Namespace(namespace if namespace is not None else self._namespace),
            lane=None if lane is None else Lane(lane),
            kind=None if kind is None else ids.Kind(kind),
            state=None if state is None else _state(state),
            tag=tag,
            created_from_ms=None if created_from is None else instant_ms(created_from, "created_from"),
            created_before_ms=None
            if created_before is None
            else instant_ms(created_before, "created_before"),
            id_prefix=id_prefix,
            limit=limits.PAGE_MAX,
        )
        while True:
            page = await self._stores.execution.list(query)
            for info in page.executions:
                yield info
            if page.next_cursor is None:
                return
            query = msgspec.structs.replace(query, cursor=page.next_cursor)

    # What submitting needs ----------------------------------------------------------------------------------------

    def _submitted(
        self, outcome: ExecutionCreated | ExecutionDuplicate, task: Submittable[ResultT], *, named: bool
    ) -> Run[ResultT]:
        # Without an id or key of the caller's, a duplicate is this very submit, sent again after a lost reply.
        duplicate = named and isinstance(outcome, ExecutionDuplicate)
        return Run(self._stores, self._follow, outcome.execution_id, task=task, duplicate=duplicate)

    async def _submission(self, options: Options) -> Submission:
        now_ms = 0
        if options.needs_now:
            # Counted on the store's clock, which is the one that decides, not on this machine's.
            now_ms = await self._now_ms() if self._now_ms is not None else time.time_ns() // 1_000_000
        return options.submission(now_ms)


def _state(text: PublicState | str) -> PublicState:
    try:
        return PublicState(text)
    except ValueError as error:
        known = ", ".join(state.value for state in PublicState)
        raise Misuse(f"{text!r} is no state: one of {known}") from error
