"""A handler's signature as a codec: the input's JSON object is its keyword arguments, its annotations type them.

Everything is worked out once, when the function is decorated; what cannot work is refused there. Decoding is strict
and its errors name the field. A single argument annotated `bytes` may be sent raw, with a media type other than JSON.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET

from flowfabric.contract import limits
from flowfabric.contract.errors import Misuse
from flowfabric.contract.payloads import BINARY_CONTENT_TYPE, JSON_CONTENT_TYPE, Payload
from flowfabric.worker.context import Context, SyncContext
from flowfabric.worker.errors import InputError, ResultError
from flowfabric.worker.values import TypedDecoder, encode_json

_CONTEXT_NAMES: Final = {"Context", "SyncContext"}
_RAW_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Signature:
    """The arguments and the result of one handler."""

    __slots__ = (
        "_by_pydantic",
        "_decoder",
        "_extra",
        "_extra_name",
        "_names",
        "_raw_name",
        "_required",
        "_result",
        "_result_is_bytes",
        "_what",
        "is_async",
        "wants_context",
    )

    def __init__(
        self, function: Callable[..., Any], name: str, scope: Mapping[str, Any] | None = None
    ) -> None:
        """Read a function's signature; `scope` holds local names that its annotations may use.

        Raises: Misuse when a parameter cannot be given by keyword, or a type cannot come from JSON.
        """
        self._what: str = f"task {name}"
        self.is_async: bool = _check_function(function, self._what)
        hints = _resolve(function, self._what, scope or {})
        parameters = list(inspect.signature(function).parameters.values())
        self.wants_context: bool = bool(parameters) and _is_context(parameters[0], hints)
        if self.wants_context:
            parameters = parameters[1:]
        self._by_pydantic: dict[str, TypedDecoder] = {}
        self._extra_name: str | None = None
        self._extra: TypedDecoder | None = None
        fields: list[tuple[str, Any, Any] | tuple[str, Any]] = []
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                self._extra_name = parameter.name
                annotation = hints.get(parameter.name, Any)
                self._extra = TypedDecoder(annotation, f"argument **{parameter.name} of {self._what}")
                continue
            fields.append(self._field(parameter, hints.get(parameter.name, Any)))
        self._names: tuple[str, ...] = tuple(field[0] for field in fields)
        self._required: frozenset[str] = frozenset(field[0] for field in fields if len(field) == 2)
        self._raw_name: str | None = (
            self._names[0] if len(fields) == 1 and hints.get(self._names[0]) is bytes else None
        )
        arguments = msgspec.defstruct(
            "Arguments", fields, kw_only=True, forbid_unknown_fields=self._extra is None
        )
        self._decoder: TypedDecoder = TypedDecoder(arguments, self._what)
        returned = hints.get("return", Any)
        self._result_is_bytes: bool = returned is bytes
        self._result: TypedDecoder = TypedDecoder(returned, f"result of {self._what}")

    def _field(self, parameter: inspect.Parameter, annotation: Any) -> tuple[str, Any, Any] | tuple[str, Any]:
        where = f"argument {parameter.name} of {self._what}"
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
            raise Misuse(
                f"{where}: {star}{parameter.name} cannot be given by name, and the input names its arguments. "
                "Remove the `/` or the `*`"
            )
        if annotation in (Context, SyncContext):
            raise Misuse(f"{where}: the context must be the first parameter")
        decoder = TypedDecoder(annotation, where)
        if decoder.is_pydantics:
            self._by_pydantic[parameter.name] = decoder
            annotation = msgspec.Raw
        if parameter.default is parameter.empty:
            return parameter.name, annotation
        return parameter.name, annotation, UNSET

    def decode(self, payload: Payload) -> dict[str, Any]:
        """Turn an execution's input into keyword arguments.

        Raises: InputError with the path of what is wrong.
        """
        if payload.content_type != JSON_CONTENT_TYPE:
            if self._raw_name is not None:
                return {self._raw_name: payload.data}
            raise InputError(f"the input is {payload.content_type}; this task takes a JSON object")
        data = payload.data
        if data == b"null":
            data = b"{}"
        try:
            decoded = self._decoder.decode(data)
            found = {name: value for name in self._names if (value := getattr(decoded, name)) is not UNSET}
            for name in self._by_pydantic.keys() & found.keys():
                found[name] = _decode_one(name, self._by_pydantic[name], found[name])
            if self._extra is not None:
                found.update(
                    (name, _decode_one(name, self._extra, raw))
                    for name, raw in _RAW_OBJECT.decode(data).items()
                    if name not in self._names
                )
        except InputError:
            raise
        except (ValueError, TypeError, OverflowError, ArithmeticError) as error:
            raise InputError(str(error)) from error
        return found

    def encode_arguments(self, arguments: Mapping[str, object]) -> Payload:
        """Encode keyword arguments as an execution's input, and check them against the annotations.

        Raises: Misuse naming the argument that is missing, unknown or of the wrong type.
        """
        missing = sorted(self._required - arguments.keys())
        if missing:
            raise Misuse(f"{self._what} needs {', '.join(missing)}")
        unknown = sorted(arguments.keys() - set(self._names))
        if unknown and self._extra_name is None:
            takes = ", ".join(self._names) or "no arguments"
            raise Misuse(f"{self._what} has no argument {', '.join(unknown)}; it takes {takes}")
        if self._raw_name is not None and isinstance(arguments.get(self._raw_name), bytes):
            data = arguments[self._raw_name]
            return Payload(typing.cast("bytes", data), BINARY_CONTENT_TYPE)
        try:
            payload = Payload(encode_json(dict(arguments)), JSON_CONTENT_TYPE)
            self.decode(payload)
        except ValueError as error:
            raise Misuse(f"arguments of {self._what}: {error}") from error
        return payload

    def encode_result(self, value: object) -> Payload | None:
        """Encode what the handler returned; None is stored as no result.

        Raises: ResultError when it has no JSON form or is too large.
        """
        if value is None:
            return None
        if isinstance(value, bytes | bytearray):
            payload = Payload(bytes(value), BINARY_CONTENT_TYPE)
        else:
            try:
                payload = Payload(encode_json(value), JSON_CONTENT_TYPE)
            except ValueError as error:
                raise ResultError(f"the result cannot be stored: {error}") from error
        if len(payload.data) > limits.PAYLOAD_BYTES_MAX:
            raise ResultError(
                f"the result has {len(payload.data)} bytes, more than {limits.PAYLOAD_BYTES_MAX}: "
                "store it elsewhere and return where"
            )
        return payload

    def decode_result(self, payload: Payload | None) -> Any:
        """Decode a stored result into the annotated return type.

        Raises: ResultError when it is not of that type.
        """
        if payload is None:
            return None
        if payload.content_type != JSON_CONTENT_TYPE:
            return payload.data
        try:
            return self._result.decode(payload.data)
        except (ValueError, TypeError, OverflowError, ArithmeticError) as error:
            raise ResultError(f"the stored result is not what {self._what} returns: {error}") from error


def _decode_one(name: str, decoder: TypedDecoder, raw: msgspec.Raw) -> Any:
    try:
        return decoder.decode(raw)
    except ValueError as error:
        raise InputError(f"{error} - in argument `{name}`") from error


def _check_function(function: Callable[..., Any], what: str) -> bool:
    """Say whether a function is async; refuse what cannot be run as a task."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise Misuse(f"{what} is a generator: return one value, and write the others with ctx.stream(value)")
    if not (inspect.isfunction(function) or inspect.ismethod(function) or inspect.isbuiltin(function)):
        raise Misuse(f"{what} is a {type(function).__name__}; a task is an `async def` or `def` function")
    return inspect.iscoroutinefunction(function)


def _resolve(function: Callable[..., Any], what: str, scope: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(scope) or None, include_extras=True)
    except NameError as error:
        raise Misuse(
            f"{what}: the annotation {error.name!r} cannot be resolved. Import or define it at module level, "
            "and not only under TYPE_CHECKING"
        ) from error
    except TypeError as error:
        raise Misuse(f"{what}: its annotations cannot be resolved: {error}") from error


def _is_context(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> bool:
    if parameter.kind is parameter.VAR_KEYWORD or parameter.kind is parameter.VAR_POSITIONAL:
        return False
    annotation = hints.get(parameter.name)
    return (
        annotation is Context or annotation is SyncContext or (annotation is None and parameter.name == "ctx")
    )
