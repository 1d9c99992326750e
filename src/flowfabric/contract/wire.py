"""The JSON form of commands, replies and errors, derived from the manifest; used by server, client and CLI.

Decoding is strict: whatever is malformed is refused with a typed error that names the field, before anything else
happens. Reply decoding ignores fields it does not know, so that old clients can talk to new servers.
"""

from __future__ import annotations

import enum
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, Literal, TypeVar, cast
from urllib.parse import quote, urlencode

import msgspec

from flowfabric.contract.errors import (
    Detail,
    FlowFabricError,
    InvalidBody,
    InvalidCapabilities,
    InvalidInput,
    InvalidJson,
    InvalidPolicy,
    OutcomeUnknown,
    Unavailable,
    from_code,
)
from flowfabric.contract.manifest import Kind, Operation, Route
from flowfabric.contract.policies import PLANNED_POLICY_FIELDS, UNSUPPORTED_POLICY_FIELDS
from flowfabric.contract.wire_types import Shape, shape_of, to_contract

Document = TypeVar("Document")

_ENCODER: Final = msgspec.json.Encoder()
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_FLOAT: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{1,17})?")
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `([^`]*)`(?: - at `([^`]*)`)?")
_AT: Final = re.compile(r" - at `([^`]*)`$")
_CONTROL_BYTES_MIN: Final = 64
"""Payloads from this size on are cut out before the control fields are looked at for duplicates."""


class WireRequest(msgspec.Struct, frozen=True):
    """One HTTP request."""

    method: str
    path: str
    """Percent-encoded."""
    query: str
    """Without the question mark; may be empty."""
    body: bytes | None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What every error answer holds under `error`."""

    code: str
    message: str
    retryable: bool = False
    details: dict[str, Detail] = {}


class ErrorDocument(msgspec.Struct, frozen=True):
    """An error answer."""

    error: ErrorBody


class _Plan(msgspec.Struct, frozen=True):
    """How the requests of one route become commands, worked out once."""

    shape: Shape
    body: msgspec.json.Decoder[Any]
    opening: bytes
    """How a body begins that our own encoder wrote."""
    query: dict[str, Callable[[str, list[str]], Any]]
    fixed: dict[str, Any]
    path_types: dict[str, Callable[[str, list[str]], Any]]


_PLANS: Final[dict[tuple[type[msgspec.Struct], str, str], _Plan]] = {}


# Decoding requests ------------------------------------------------------------------------------------------------


def decode_command(
    operation: Operation,
    *,
    path: Mapping[str, str],
    query: Sequence[tuple[str, str]],
    body: bytes,
    route: Route | None = None,
) -> Any:
    """Build and check a command from a request's decoded path parameters, query and body.

    Raises: `InvalidJson`, `InvalidBody`, `InvalidInput` and whatever the command's own check refuses with.
    """
    chosen = route if route is not None else _route_of(operation, path)
    plan = _plan(operation.command, chosen)
    values: dict[str, Any] = dict(plan.fixed)
    command: Any
    for name, text in path.items():
        values[name] = plan.path_types[name](name, [text])
    if chosen.method == "GET":
        if body:
            raise InvalidBody("this request takes no body")
        values.update(_query_values(plan, query))
        try:
            command = cast(Any, operation.command)(**values)
        except TypeError as error:
            raise InvalidInput(f"missing: {error}") from error
    else:
        if query:
            raise InvalidInput(
                "this request takes its fields from the body, not the query", field=query[0][0]
            )
        command = _decode_body(operation, plan, values, body)
    command.check()
    return command


def _route_of(operation: Operation, path: Mapping[str, str]) -> Route:
    for route in operation.routes:
        if set(route.fields) == set(path):
            return route
    raise InvalidInput("no route of this operation has these path parameters")


def _plan(command: type[msgspec.Struct], route: Route) -> _Plan:
    """Return the plan of a route; looked up by what is cheap to hash."""
    plan = _PLANS.get((command, route.method, route.path))
    if plan is None:
        plan = _PLANS[command, route.method, route.path] = _make_plan(command, route)
    return plan


def _make_plan(command: type[msgspec.Struct], route: Route) -> _Plan:
    types_of = {field.name: field.type for field in msgspec.structs.fields(command)}
    fixed = {name: _reader(types_of[name])(name, [text]) for name, text in route.fixed}
    taken = frozenset(route.fields) | frozenset(fixed)
    query: dict[str, Callable[[str, list[str]], Any]] = {}
    if route.method == "GET":
        query = {name: _reader(kind) for name, kind in types_of.items() if name not in taken}
        shape = shape_of(command)
    else:
        shape = shape_of(command, taken, strict=True)
    return _Plan(
        shape=shape,
        body=msgspec.json.Decoder(shape.wire),
        opening=b'{"%b":' % (shape.names[0].encode("ascii") if shape.names else b""),
        query=query,
        fixed=fixed,
        path_types={name: _reader(types_of[name]) for name in route.fields},
    )


def read_body(decoder: msgspec.json.Decoder[Document], data: bytes) -> Document:
    """Decode a body, refusing with what names the field.

    Raises: `InvalidJson`, `InvalidBody` and the refusals that have a code of their own.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _body_error(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson(f"the body is not well-formed JSON: {_plain(error)}") from error


def _decode_body(operation: Operation, plan: _Plan, values: dict[str, Any], body: bytes) -> Any:
    data = body if body.strip() else b"{}"
    wire = read_body(plan.body, data)
    command = to_contract(operation.command, plan.shape, wire, values)
    # Our own clients' bodies are what the encoder makes of them, and it writes no key twice.
    if not (data.startswith(plan.opening) and _ENCODER.encode(wire) == data):
        _refuse_duplicates(plan.shape, wire, data)
    return command


def _plain(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not valid UTF-8"
    return str(error)


def _body_error(text: str) -> FlowFabricError:
    """Turn the decoder's message into the refusal that names the field."""
    unknown = _UNKNOWN_FIELD.search(text)
    at = _AT.search(text)
    place = at[1] if at is not None else "$"
    field = place.removeprefix("$").lstrip(".")
    if unknown is not None:
        name = unknown[1]
        where = f"{field}.{name}" if field else name
        if "policy" in place or "routing_requirements" in place:
            if name in PLANNED_POLICY_FIELDS:
                return InvalidPolicy(
                    f"{where} comes with {PLANNED_POLICY_FIELDS[name]}, which is planned", field=where
                )
            if name in UNSUPPORTED_POLICY_FIELDS:
                return InvalidPolicy(f"{where} is not supported", field=where)
            return InvalidPolicy(f"unknown field {where}", field=where)
        return InvalidBody(f"unknown field {where}", field=where)
    message = _AT.sub("", text)
    if "capabilities" in place:
        side = "required" if "required_capabilities" in place else "worker"
        detail = f"{side}:non_string_token" if place.endswith("]") else f"{side}:not_array"
        return InvalidCapabilities(f"{field}: {message}", detail=detail, field=field)
    if "policy" in place:
        return InvalidPolicy(f"{field}: {message}", field=field)
    return InvalidBody(f"{field or 'body'}: {message}", field=field or None)


def _refuse_duplicates(shape: Shape, wire: Any, body: bytes) -> None:
    """Refuse a key given twice in the control fields; what is inside a payload is the user's business."""
    skip: set[str] = set()
    pieces = _without_payloads(shape, wire, body, skip)
    control = b"null".join(pieces)
    if _has_distinct_keys(control, pieces):
        return
    try:
        document: Any = json.loads(control, object_pairs_hook=_mark_duplicates)
    except ValueError:
        # The same bytes stood before the payload as a key, and were cut out in its place: look at the whole body.
        document = _whole(body)
    _look_for_duplicates(document, skip)


def _has_distinct_keys(control: bytes, pieces: list[bytes]) -> bool:
    """Say, at little cost, that no two keys are the same at any depth; False means: look closely."""
    if b"\\" in control or any(piece.count(b'"') & 1 for piece in pieces):
        return False
    # Without escapes every other part is a string, and a string before a colon is a key.
    parts = control.split(b'"')
    keys = [
        text
        for text, after in zip(parts[1::2], parts[2::2], strict=True)
        if after[:1] == b":" or after.lstrip()[:1] == b":"
    ]
    return len(keys) == len(set(keys))


def _whole(body: bytes) -> Any:
    try:
        return json.loads(body, object_pairs_hook=_mark_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidJson("the body is not well-formed JSON") from error


def _without_payloads(shape: Shape, wire: Any, body: bytes, skip: set[str]) -> list[bytes]:
    """Return what stands before, between and after the larger payloads."""
    pieces: list[bytes] = []
    position = 0
    for data in _payload_slices(shape, wire, skip):
        if len(data) < _CONTROL_BYTES_MIN:
            continue
        start = body.find(data[:_CONTROL_BYTES_MIN], position)
        if not body.startswith(data, max(start, 0)):
            start = body.find(data, position)
        if start < 0:
            continue
        pieces.append(body[position:start])
        position = start + len(data)
    pieces.append(body[position:])
    return pieces


def _payload_slices(shape: Shape, wire: Any, skip: set[str]) -> list[bytes]:
    found: list[bytes] = []
    if shape.payload is not None:
        skip.add(shape.payload.field)
        value, encoded, _ = shape.payload.read(wire)
        if value is not msgspec.UNSET:
            found.append(bytes(value))
        if encoded is not msgspec.UNSET:
            found.append(b'"' + encoded.encode("ascii") + b'"')
    for name, many, inner, _ in shape.nested:
        value = getattr(wire, name)
        for item in value if many else (value,):
            found.extend(_payload_slices(inner, item, skip))
    return found


class _Doubled(dict[str, Any]):
    """An object in which a key was given twice."""

    key = ""


def _mark_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    doubled = _Doubled(plain)
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            doubled.key = key
            break
        seen.add(key)
    return doubled


def _look_for_duplicates(value: Any, skip: set[str]) -> None:
    if isinstance(value, _Doubled):
        raise InvalidBody(f"the field {value.key} is given twice", field=value.key)
    if isinstance(value, dict):
        for key, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
            if key not in skip:
                _look_for_duplicates(inner, skip)
    elif isinstance(value, list):
        for inner in value:  # pyright: ignore[reportUnknownVariableType]
            _look_for_duplicates(inner, skip)


# Path and query parameters ----------------------------------------------------------------------------------------


def _query_values(plan: _Plan, query: Sequence[tuple[str, str]]) -> dict[str, Any]:
    collected: dict[str, list[str]] = {}
    for name, text in query:
        collected.setdefault(name, []).append(text)
    values: dict[str, Any] = {}
    for name, texts in collected.items():
        reader = plan.query.get(name)
        if reader is None:
            known = ", ".join(sorted(plan.query)) or "none"
            raise InvalidInput(f"unknown query parameter {name[:60]!r}; known: {known}", field=name[:60])
        values[name] = reader(name, texts)
    return values


def _options(annotation: Any) -> list[Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [member for member in typing.get_args(annotation) if member is not type(None)]
    return [annotation]


def _reader(annotation: Any) -> Callable[[str, list[str]], Any]:
    """Return what reads a parameter of this type from its texts."""
    kind = _options(annotation)[0]
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        item = _reader(typing.get_args(kind)[0])
        return lambda name, texts: tuple(item(name, [part]) for text in texts for part in text.split(","))
    if typing.get_origin(kind) is Literal:
        return _one_of(typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _one_of(tuple(member.value for member in kind), kind)
    if kind is bool:
        return _one_of(("true", "false"), lambda text: text == "true")
    if kind is int:
        return _number(_INTEGER, int, "an integer")
    if kind is float:
        return _number(_FLOAT, float, "a number")
    return _text


def _single(name: str, texts: list[str]) -> str:
    if len(texts) != 1:
        raise InvalidInput(f"{name} is given {len(texts)} times", field=name)
    return texts[0]


def _text(name: str, texts: list[str]) -> str:
    return _single(name, texts)


def _number(
    pattern: re.Pattern[str], kind: Callable[[str], Any], what: str
) -> Callable[[str, list[str]], Any]:
    def read(name: str, texts: list[str]) -> Any:
        text = _single(name, texts)
        if pattern.fullmatch(text) is None:
            raise InvalidInput(f"{name} must be {what}", field=name)
        return kind(text)

    return read


def _one_of(values: tuple[Any, ...], convert: Callable[[str], Any] = str) -> Callable[[str, list[str]], Any]:
    def read(name: str, texts: list[str]) -> Any:
        text = _single(name, texts)
        if text not in values:
            raise InvalidInput(f"{name} must be one of {', '.join(map(str, values))}", field=name)
        return convert(text)

    return read


# Encoding requests ------------------------------------------------------------------------------------------------


def encode_command(operation: Operation, command: Any) -> WireRequest:
    """Return the request that carries a command, by the first route whose path it can fill."""
    route = next(
        (
            candidate
            for candidate in operation.routes
            if all(getattr(command, name) is not None for name in candidate.fields)
            and all(_as_text(getattr(command, name)) == text for name, text in candidate.fixed)
        ),
        operation.routes[0],
    )
    path = "/".join(
        quote(_as_text(getattr(command, part[1:-1])), safe="") if part.startswith("{") else part
        for part in route.path.split("/")
    )
    if route.method == "GET":
        pairs: list[tuple[str, str]] = []
        for field in msgspec.structs.fields(operation.command):
            value = getattr(command, field.name)
            if field.name in route.fields or value is None or value == field.default:
                continue
            pairs.append((field.name, _as_text(value)))
        return WireRequest(route.method, path, urlencode(pairs), None)
    return WireRequest(route.method, path, "", encode_body(operation, command, route))


def encode_body(operation: Operation, command: Any, route: Route) -> bytes:
    """Return a command as the body of a route: all of it that is not in the path."""
    shape = _plan(operation.command, route).shape
    return _ENCODER.encode(shape.to_wire(command) if shape.to_wire is not None else command)


def _as_text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(_as_text(item) for item in cast("tuple[Any, ...]", value))
    return str(value)


# Replies ----------------------------------------------------------------------------------------------------------


def encode_reply(operation: Operation, reply: Any) -> bytes:
    """Return a reply as JSON."""
    del operation
    shape = shape_of(cast("type[msgspec.Struct]", type(reply)))
    return _ENCODER.encode(shape.to_wire(reply) if shape.to_wire is not None else reply)


@cache
def _reply_decoder(
    replies: tuple[type[msgspec.Struct], ...],
) -> tuple[msgspec.json.Decoder[Any], dict[Any, Any]]:
    by_wire = {shape_of(reply).wire: reply for reply in replies}
    union: Any = None
    for wire in by_wire:
        union = wire if union is None else union | wire
    return msgspec.json.Decoder(union), by_wire


def decode_reply(operation: Operation, body: bytes) -> Any:
    """Return the reply that a successful answer carries; fields this version does not know are ignored.

    Raises: `Unavailable` when the answer is not one of this operation's, as when a proxy answered; `OutcomeUnknown`
    if the operation may have changed something.
    """
    decoder, by_wire = _reply_decoder(operation.replies)
    try:
        wire = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refusal = OutcomeUnknown if operation.kind is Kind.MUTATION else Unavailable
        raise refusal(
            f"the answer to {operation.name} is not one of FlowFabric's: {_plain(error)}"
        ) from error
    kind = by_wire[cast(Any, type(wire))]
    return to_contract(kind, shape_of(kind), wire, {})


def encode_error(error: FlowFabricError) -> bytes:
    """Return an error answer's body."""
    return _ENCODER.encode(
        ErrorDocument(
            ErrorBody(
                code=error.code, message=error.message, retryable=error.retryable, details=error.details
            )
        )
    )


def decode_error(status: int, body: bytes) -> FlowFabricError:
    """Return the error that an answer carries; an answer that is not FlowFabric's becomes `Unavailable`."""
    try:
        document = msgspec.json.decode(body, type=ErrorDocument)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Unavailable(
            f"something that is not FlowFabric answered with HTTP status {status}", http_status=status
        )
    return from_code(document.error.code, document.error.message, document.error.details)


# Schemas ----------------------------------------------------------------------------------------------------------


def body_type(operation: Operation, route: Route) -> type[msgspec.Struct] | None:
    """Return the type of a route's body on the wire, or None when it takes none."""
    if route.method == "GET":
        return None
    return _plan(operation.command, route).shape.wire


def reply_types(operation: Operation) -> tuple[type[msgspec.Struct], ...]:
    """Return the types of an operation's replies on the wire."""
    return tuple(shape_of(reply).wire for reply in operation.replies)


def parameter_types(operation: Operation, route: Route) -> dict[str, Any]:
    """Return the types of a route's path and query parameters."""
    types_of = {field.name: field.type for field in msgspec.structs.fields(operation.command)}
    names = route.fields if route.method != "GET" else tuple(types_of)
    return {name: types_of[name] for name in names}
