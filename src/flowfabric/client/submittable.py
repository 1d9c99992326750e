"""What can be submitted: anything with a name that turns arguments into a payload and a payload into a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from flowfabric.contract.errors import Misuse
from flowfabric.contract.payloads import JSON_CONTENT_TYPE, Payload
from flowfabric.contract.policies import KindDefaults

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    ResultT = TypeVarWithDefault("ResultT", default=Any)
    """What a task returns; of a task known by name only, anything."""
else:
    ResultT = TypeVar("ResultT")

ResultT_co = TypeVar("ResultT_co", covariant=True)


class Submittable(Protocol[ResultT_co]):
    """A task as the client sees it; the worker SDK's tasks are some."""

    @property
    def name(self) -> str:
        """The kind of the executions it is submitted as."""
        ...

    @property
    def defaults(self) -> KindDefaults | None:
        """Lane, priority and policy that its executions have unless submit says otherwise; None: what workers say."""
        ...

    def encode_arguments(self, arguments: Mapping[str, Any], /) -> Payload:
        """Turn keyword arguments into the execution's input, or raise for arguments the task does not take."""
        ...

    def decode_result(self, result: Payload, /) -> ResultT_co:
        """Turn the execution's result into what the task returned."""
        ...


class NamedTask:
    """A task known by name only: arguments go as one JSON object, results come back as plain JSON values or bytes."""

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.defaults: KindDefaults | None = None

    def encode_arguments(self, arguments: Mapping[str, Any], /) -> Payload:
        """Encode the arguments as one JSON object.

        Raises: `Misuse` for values that JSON cannot express.
        """
        try:
            return Payload(msgspec.json.encode(dict(arguments)), JSON_CONTENT_TYPE)
        except (TypeError, ValueError, RecursionError) as error:
            raise Misuse(f"the arguments of {self.name} cannot be written as JSON: {error}") from error

    def decode_result(self, result: Payload, /) -> Any:
        """Decode a JSON result; of any other content type it is the bytes."""
        return decoded(result, None)


def decoded(payload: Payload, kind: Any) -> Any:
    """Decode a payload: JSON as `kind` (plain values when None), anything else as its bytes.

    Raises: `Misuse` when the payload is not a `kind`.
    """
    if payload.content_type.partition(";")[0].strip().lower() != JSON_CONTENT_TYPE:
        if kind not in (None, bytes):
            raise Misuse(f"the payload is {payload.content_type}, which does not decode as {kind!r}")
        return payload.data
    try:
        if kind is None:
            return msgspec.json.decode(payload.data)
        return msgspec.json.decode(payload.data, type=kind)
    except (msgspec.DecodeError, TypeError, RecursionError) as error:
        raise Misuse(f"the payload does not decode as {kind!r}: {error}") from error
