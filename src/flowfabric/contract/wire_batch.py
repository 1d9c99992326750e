"""Several calls in one HTTP request: `POST /v1/batch`, so that calls made at the same time share what a request costs.

The body is `[["execution.complete", {...}], ...]`: the operation's name, then the whole command with the fields that
its own route takes from the path, then optionally a W3C `traceparent`. The reply is `[[200, {...}], [409, {"error":
...}], ...]`, in the order of the calls: the status and the body that each call would have been answered with by itself.
What must stay true: a call in a batch means exactly what it means alone, and no call's outcome depends on another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from flowfabric.contract import limits, wire
from flowfabric.contract.errors import InvalidInput, PayloadTooLarge
from flowfabric.contract.manifest import Kind, Operation, Route
from flowfabric.contract.operations import OPERATIONS

PATH: Final = "/v1/batch"
_WHOLE: Final = Route("POST", PATH)
"""A command that travels whole: nothing of it is in the path."""
ENVELOPE_BYTES_MAX: Final = 1024
"""What a call in a batch may have beside the body it has alone: its name, the fields of its path, a trace."""

MEMBERS: Final[Mapping[str, Operation]] = {
    name: operation
    for name, operation in OPERATIONS.items()
    if operation.kind is Kind.MUTATION and not operation.long_wait
}
"""The operations that may be called in a batch: those that write and do not wait."""


class BatchCall(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One call: an array of the operation's name, its command, and optionally the caller's `traceparent`."""

    operation: str
    command: msgspec.Raw
    traceparent: str | None = None


class BatchAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What one call came to: an array of its HTTP status and its body."""

    status: int
    body: msgspec.Raw


_REQUEST: Final = msgspec.json.Decoder(tuple[BatchCall, ...])
_REPLY: Final = msgspec.json.Decoder(tuple[BatchAnswer, ...])
_ENCODER: Final = msgspec.json.Encoder()


def encode_call(operation: Operation, command: Any, traceparent: str | None) -> bytes:
    """Return one call as it stands in the request."""
    body = wire.encode_body(operation, command, _WHOLE)
    name = operation.name.encode("ascii")
    if traceparent is None:
        return b'["%b",%b]' % (name, body)
    return b'["%b",%b,%b]' % (name, body, _ENCODER.encode(traceparent))


def join_calls(calls: Iterable[bytes]) -> bytes:
    """Return the body of a request."""
    return b"[%b]" % b",".join(calls)


def decode_calls(body: bytes) -> Sequence[BatchCall]:
    """Return the calls of a request; their commands are not looked at yet.

    Raises: `InvalidJson`, `InvalidBody`, and `InvalidInput` for no call or too many of them.
    """
    calls = wire.read_body(_REQUEST, body)
    if not 0 < len(calls) <= limits.BATCH_CALLS_MAX:
        raise InvalidInput(f"a batch has 1 to {limits.BATCH_CALLS_MAX} calls, not {len(calls)}")
    return calls


def decode_call(call: BatchCall) -> tuple[Operation, Any]:
    """Return what a call asks for, checked as if it had come alone.

    Raises: `InvalidInput` for an operation that batches do not take, and whatever the command is refused with.
    """
    operation = MEMBERS.get(call.operation)
    if operation is None:
        known = "is not taken in a batch: call it by its own route"
        what = known if call.operation in OPERATIONS else "is no operation"
        raise InvalidInput(f"{call.operation[:60]!r} {what}", field="operation")
    body = bytes(call.command)
    if len(body) > operation.body_max + ENVELOPE_BYTES_MAX:
        raise PayloadTooLarge(limit_bytes=operation.body_max, route=operation.routes[0].path)
    return operation, wire.decode_command(operation, path={}, query=(), body=body, route=_WHOLE)


def encode_answers(answers: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the body of a reply from the status and body of each call's answer."""
    return b"[%b]" % b",".join(b"[%d,%b]" % answer for answer in answers)


def decode_answers(body: bytes, count: int) -> Sequence[BatchAnswer] | None:
    """Return what each of `count` calls came to; None when this is not the reply to such a batch."""
    try:
        replies = _REPLY.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return replies if len(replies) == count else None
