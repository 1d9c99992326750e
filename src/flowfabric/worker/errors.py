"""What handlers raise to say how an attempt ended, and how any other exception becomes a failure.

Users raise `PermanentError` and `RetryableError`; everything else that leaves a handler is a transient failure with
category `handler_error`, except what is no `Exception` at all, which counts as a crash. `PauseRequested` is how
`ctx.delay` and `ctx.wait_children` end a run; user code never needs to name it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from flowfabric.contract import limits
from flowfabric.contract.execution import ExecutionFail
from flowfabric.contract.lease import Lease
from flowfabric.contract.states import FailureClass

HANDLER_ERROR: Final = "handler_error"
HANDLER_CRASH: Final = "handler_crash"
PERMANENT_ERROR: Final = "permanent_error"
PAYLOAD_DECODE_ERROR: Final = "payload_decode_error"
RESULT_ENCODE_ERROR: Final = "result_encode_error"
ATTEMPT_TIMEOUT: Final = "attempt_timeout"
PAUSE_SWALLOWED: Final = "pause_swallowed"

_CHAIN_MAX: Final = 16


class HandlerError(Exception):
    """A failure that a handler reports on purpose; raise `PermanentError` or `RetryableError`."""

    failure_class: FailureClass = FailureClass.TRANSIENT
    category: str = HANDLER_ERROR

    def __init__(self, message: str = "", *, category: str | None = None) -> None:
        super().__init__(message)
        self.message: str = message
        if category is not None:
            self.category = category


class PermanentError(HandlerError):
    """Fail for good: trying again cannot help. A category listed in the task's `retry_on` is retried all the same."""

    failure_class = FailureClass.PERMANENT
    category = PERMANENT_ERROR


class RetryableError(HandlerError):
    """Fail this attempt: trying again may help. The task's retry policy says how often and when."""


class InputError(ValueError):
    """The execution's input is not what the task takes. The message names the field."""


class ResultError(ValueError):
    """What the handler returned cannot be stored as the result."""


class PauseRequested(BaseException):
    """Ends this run of a handler because it asked to continue later. It is not an error and must not be caught."""

    def __init__(self, until_ms: int | None) -> None:
        super().__init__("this run of the handler ends here and continues from the top later")
        self.until_ms: int | None = until_ms
        """When to continue, on the store's clock; None waits for the executions this one depends on."""


def describe_error(error: BaseException) -> str:
    """Put an exception and its causes into one line: `TypeError: bad row: KeyError: 'id'`."""
    parts: list[str] = []
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen and len(parts) < _CHAIN_MAX:
        seen.add(id(current))
        parts.append(_one(current))
        if current.__cause__ is not None:
            current = current.__cause__
        else:
            current = None if current.__suppress_context__ else current.__context__
    return clip_message(": ".join(part for part in parts if part))


def _one(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, HandlerError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def clip_message(text: str) -> str:
    """Make text storable as a failure message: valid Unicode, no NUL, bounded."""
    data = text.replace("\x00", "\\0").encode("utf-8", "backslashreplace")
    if len(data) <= limits.FAILURE_MESSAGE_BYTES_MAX:
        return data.decode()
    return data[: limits.FAILURE_MESSAGE_BYTES_MAX - 3].decode("utf-8", "ignore") + "..."


def clip_category(category: str) -> str:
    """Make text storable as a failure category."""
    data = category.replace("\x00", "\\0").encode("utf-8", "backslashreplace")
    return data[: limits.FAILURE_CATEGORY_LENGTH_MAX].decode("utf-8", "ignore") or HANDLER_ERROR


def failure_of(lease: Lease, error: BaseException) -> ExecutionFail:
    """Turn an exception that left a handler into the report of a failed attempt."""
    if isinstance(error, HandlerError):
        failure_class, category = error.failure_class, clip_category(error.category)
    elif isinstance(error, Exception | asyncio.CancelledError):
        failure_class, category = FailureClass.TRANSIENT, HANDLER_ERROR
    else:
        failure_class, category = FailureClass.INFRA_CRASH, HANDLER_CRASH
    return failure(lease, failure_class, category, describe_error(error))


def failure(lease: Lease, failure_class: FailureClass, category: str, message: str) -> ExecutionFail:
    """Build the report of a failed attempt under this lease."""
    return ExecutionFail(
        execution_id=lease.execution_id,
        fence=lease.fence,
        failure_class=failure_class,
        category=category,
        message=clip_message(message),
    )
