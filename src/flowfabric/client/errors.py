"""How a run can end other than well, as exceptions for whoever waits for its result.

The codes are the client's own: no server answers with them. Refusals of operations are in `flowfabric.contract.errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowfabric.contract.errors import Detail, FlowFabricError
from flowfabric.contract.states import FailureClass


class RunEnded(FlowFabricError):
    """The run ended without a result."""

    code = "run_ended"
    http_status = 409

    def __init__(self, message: str | None = None, *, execution_id: str = "", **details: Detail) -> None:
        super().__init__(message, execution_id=execution_id, **details)
        self.execution_id: str = execution_id


class TaskFailed(RunEnded):
    """The task failed and no retry is left."""

    code = "task_failed"

    def __init__(
        self,
        message: str | None = None,
        *,
        execution_id: str = "",
        failure_class: str = FailureClass.TRANSIENT.value,
        category: str = "",
        **details: Detail,
    ) -> None:
        super().__init__(
            message,
            execution_id=execution_id,
            failure_class=failure_class,
            category=category,
            **details,
        )
        self.failure_class: FailureClass = FailureClass(failure_class)
        """Decides about retries."""
        self.category: str = category
        """A label, such as the exception's kind."""

    def __str__(self) -> str:
        return f"{self.code} ({self.failure_class.value}/{self.category}): {self.message}"


class TaskCancelled(RunEnded):
    """The task was cancelled."""

    code = "task_cancelled"


class TaskExpired(RunEnded):
    """The task ran out of time: its deadline passed."""

    code = "task_expired"


class TaskSkipped(RunEnded):
    """The task was skipped: what it depended on cannot happen any more."""

    code = "task_skipped"


class ResultTimeout(FlowFabricError, TimeoutError):
    """The run did not end in the time given. It goes on: ask for its result again, or cancel it."""

    code = "result_timeout"
    http_status = 504
    retryable = True


class SubmitManyFailed(ExceptionGroup[FlowFabricError]):
    """Some items of a batch were not submitted.

    `.runs` has one entry per item in the order given: the run, or None where there is none. The exceptions carry the
    item's index in `details["index"]`.
    """

    runs: Sequence[Any] = ()

    def derive(self, excs: Sequence[FlowFabricError], /) -> SubmitManyFailed:  # pyright: ignore[reportIncompatibleMethodOverride] -- the base is generic over any exception
        """Make the group that `except*` and `split` ask for, with the same runs."""
        group = SubmitManyFailed(self.message, excs)
        group.runs = self.runs
        return group
