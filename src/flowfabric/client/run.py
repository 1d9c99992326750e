"""A submitted run: its state, its stream, its result, and stopping it.

A `Run` holds an id and a way to the stores, nothing that could go stale; any number of them may name one execution.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, Generic, TypeVar, assert_never, overload

import msgspec

from flowfabric.client.durations import Duration, milliseconds
from flowfabric.client.errors import ResultTimeout, TaskCancelled, TaskExpired, TaskFailed, TaskSkipped
from flowfabric.client.following import Follow, cursor_of
from flowfabric.client.submittable import ResultT_co, Submittable, decoded
from flowfabric.contract import limits
from flowfabric.contract.attempt import AttemptInfo, AttemptList
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import ExecutionNotTerminal, Misuse
from flowfabric.contract.execution import (
    ExecutionCancel,
    ExecutionCancelled,
    ExecutionDescribe,
    ExecutionReadResult,
    ExecutionReadState,
    ExecutionReplay,
    ExecutionReplayed,
    ExecutionSnapshot,
    ResultCancelled,
    ResultCompleted,
    ResultExpired,
    ResultFailed,
    ResultSkipped,
    ResultUnion,
)
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import CancelSource, FrameMode, PublicState
from flowfabric.contract.stream import ATTEMPT_STARTED, Frame, StreamTail

Other = TypeVar("Other")

ANSWERED_TOO_SOON_S: Final = 0.05


class RunFrame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame of a run's stream."""

    value: Any
    """The payload decoded: plain JSON values, or the type asked for, or bytes if it is not JSON."""
    cursor: str
    """Where it is in the run: give it as `start` to go on after it."""
    frame_type: str
    mode: FrameMode
    attempt_index: int
    sequence: int
    at_ms: int
    correlation_id: str | None
    payload: Payload
    after_gap: bool
    """Frames before this one were removed by retention before they could be read."""


class Run(Generic[ResultT_co]):
    """One execution as its submitter sees it."""

    def __init__(
        self,
        stores: Stores,
        follow: Follow,
        execution_id: ExecutionId,
        *,
        task: Submittable[ResultT_co] | None = None,
        duplicate: bool = False,
    ) -> None:
        self._stores: Stores = stores
        self._follow: Follow = follow
        self._id: ExecutionId = execution_id
        self._task: Submittable[ResultT_co] | None = task
        self._duplicate: bool = duplicate

    @property
    def id(self) -> ExecutionId:
        """The execution's id: all that is needed to find the run again."""
        return self._id

    @property
    def task(self) -> Submittable[ResultT_co] | None:
        """The task it was submitted as, if that is known; it decodes the result."""
        return self._task

    @property
    def duplicate(self) -> bool:
        """The same submit had been carried out before: this is the earlier run."""
        return self._duplicate

    def __repr__(self) -> str:
        return f"<Run {self._id}>"

    async def state(self) -> PublicState:
        """Read the run's state in one word.

        Refuses: `execution_not_found`.
        """
        return (
            await self._stores.execution.read_state(ExecutionReadState(execution_id=self._id))
        ).public_state

    async def describe(self) -> ExecutionSnapshot:
        """Read everything about the run but its payloads, and why it is not running if it is not.

        Refuses: `execution_not_found`.
        """
        return await self._stores.execution.describe(ExecutionDescribe(execution_id=self._id))

    @overload
    async def result(self, *, timeout: Duration | None = None, type: builtins.type[Other]) -> Other: ...
    @overload
    async def result(self, *, timeout: Duration | None = None, type: None = None) -> ResultT_co: ...
    async def result(self, *, timeout: Duration | None = None, type: builtins.type[Any] | None = None) -> Any:  # noqa: A002
        """Wait for the run to end and return its result.

        The result is what the task returned when the run was submitted with a task; else it is decoded as `type`, or
        as plain JSON values, or is the bytes if it is not JSON; None if there is none. `timeout` is in seconds, or
        text such as "5m"; without it, it waits as long as it takes.

        Raises: `TaskFailed`, `TaskCancelled`, `TaskExpired`, `TaskSkipped` when the run ended so; `ResultTimeout`.
        Refuses: `execution_not_found`.
        """
        return self._outcome(await self._wait(timeout), type)

    async def _wait(self, timeout: Duration | None) -> ResultUnion:
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + milliseconds(timeout, "timeout") / 1_000
        while True:
            asked_at = loop.time()
            wait_ms = limits.WAIT_MAX_MS
            if deadline is not None:
                wait_ms = max(0, min(wait_ms, round((deadline - asked_at) * 1_000)))
            command = ExecutionReadResult(execution_id=self._id, wait_ms=wait_ms)
            try:
                return await self._stores.execution.read_result(command)
            except ExecutionNotTerminal as error:
                if deadline is not None and loop.time() >= deadline:
                    raise ResultTimeout(
                        f"the run has not ended within {timeout}: it goes on; ask again, or cancel it",
                        execution_id=self._id,
                    ) from error
            if loop.time() - asked_at < ANSWERED_TOO_SOON_S:
                # A wait that the other side cut short must not become a busy loop.
                await asyncio.sleep(ANSWERED_TOO_SOON_S)

    def _outcome(self, end: ResultUnion, kind: type[Any] | None) -> Any:
        match end:
            case ResultCompleted():
                if end.result is None:
                    return None
                if kind is None and self._task is not None:
                    return self._task.decode_result(end.result)
                return decoded(end.result, kind)
            case ResultFailed():
                raise TaskFailed(
                    end.message or "the task failed",
                    execution_id=self._id,
                    failure_class=end.failure_class.value,
                    category=end.category,
                )
            case ResultCancelled():
                raise TaskCancelled(
                    f"the task was cancelled by {end.cancelled_by}"
                    + (f": {end.reason}" if end.reason else ""),
                    execution_id=self._id,
                    reason=end.reason,
                    cancelled_by=end.cancelled_by,
                )
            case ResultExpired():
                raise TaskExpired(
                    f"the task ran out of time ({end.reason})", execution_id=self._id, reason=end.reason
                )
            case ResultSkipped():
                raise TaskSkipped(execution_id=self._id)
            case _:
                assert_never(end)

    async def stream(
        self,
        *,
        start: str | None = None,
        follow: bool = True,
        type: builtins.type[Any] | None = None,  # noqa: A002
        markers: bool = False,
    ) -> AsyncGenerator[RunFrame]:
        """Yield the frames of the whole run, over all its attempts, oldest first, until the run ends.

        `start` is the `cursor` of the last frame already seen; without it, from the beginning. With `follow=False` it
        ends after the frames there are now. `type` decodes each frame's JSON; `markers` also yields the
        `attempt_started` marker at the start of each attempt.

        Refuses: `invalid_offset`, `execution_not_found`.
        """
        command = StreamTail(
            execution_id=self._id,
            after=start,
            wait_ms=limits.WAIT_MAX_MS if follow else 0,
            limit=limits.PAGE_MAX,
        )
        gap = False
        async with aclosing(self._follow(command)) as pages:
            async for page in pages:
                gap = gap or page.trimmed
                for frame in page.frames:
                    if frame.frame_type == ATTEMPT_STARTED and not markers:
                        continue
                    yield _read(frame, type, after_gap=gap)
                    gap = False

    async def attempts(self) -> list[AttemptInfo]:
        """Read every attempt of the run, oldest first.

        Refuses: `execution_not_found`.
        """
        found: list[AttemptInfo] = []
        cursor: str | None = None
        while True:
            command = AttemptList(execution_id=self._id, cursor=cursor, limit=limits.ATTEMPT_PAGE_MAX)
            page = await self._stores.attempt.list(command)
            found.extend(page.attempts)
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def cancel(self, reason: str = "", *, actor: str = "") -> ExecutionCancelled:
        """Cancel the run, also while a worker runs it: its handler is told within one lease renewal.

        Idempotent: cancelling a cancelled run says `already`. Refuses: `execution_not_found`, `execution_not_active`
        when it ended otherwise.
        """
        return await self._stores.execution.cancel(
            ExecutionCancel(
                execution_id=self._id, source=CancelSource.OPERATOR_OVERRIDE, reason=reason, actor=actor
            )
        )

    async def replay(self, *, actor: str = "", expected_replay_count: int | None = None) -> ExecutionReplayed:
        """Run a finished execution again, under the same id.

        After an `OutcomeUnknown`, repeat it with the `replay_count` that was known before: then it is replayed once.
        Refuses: `execution_not_found`, `execution_not_terminal`, `max_replays_exhausted`.
        """
        return await self._stores.execution.replay(
            ExecutionReplay(execution_id=self._id, actor=actor, expected_replay_count=expected_replay_count)
        )


def _read(frame: Frame, kind: type[Any] | None, *, after_gap: bool) -> RunFrame:
    try:
        value = decoded(frame.payload, kind)
    except Misuse:
        if kind is not None:
            raise
        value = frame.payload.data
    return RunFrame(
        value=value,
        cursor=cursor_of(frame, None),
        frame_type=frame.frame_type,
        mode=frame.mode,
        attempt_index=frame.attempt_index,
        sequence=frame.sequence,
        at_ms=frame.at_ms,
        correlation_id=frame.correlation_id,
        payload=frame.payload,
        after_gap=after_gap,
    )
