"""How records look over JSON: derived types in which a payload is a JSON value or base64 with its media type.

A field `input: Payload` becomes three: `input` (any JSON value, kept as the exact slice received), or `input_base64`
with `content_type`. Everything else stays as the contract declares it. Types without payloads are used as they are.
"""

from __future__ import annotations

import binascii
import types
import typing
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, Final

import msgspec

from flowfabric.contract.errors import InvalidBody, InvalidJson
from flowfabric.contract.payloads import BINARY_CONTENT_TYPE, JSON_CONTENT_TYPE, Payload

Convert = Callable[[Any], Any]
NOTHING: Final[frozenset[str]] = frozenset()
RAW_DECODER: Final = msgspec.json.Decoder(msgspec.Raw)


class Shape(msgspec.Struct, frozen=True):
    """A struct's type on the wire, and the ways between the two."""

    wire: type[msgspec.Struct]
    to_wire: Convert | None
    """Absent: the struct is its own wire type."""
    payload_field: str | None
    nested: tuple[tuple[str, bool, Shape], ...]
    """(field, whether it is a sequence, shape) of the fields that hold structs with payloads."""
    names: tuple[str, ...]
    """The contract's field names that the wire type carries."""


def is_embeddable(data: bytes) -> bool:
    """Say whether bytes can stand in a JSON document as a value and be cut out again unchanged."""
    try:
        data.decode("utf-8")
        return len(memoryview(RAW_DECODER.decode(data))) == len(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def pack_payload(payload: Payload | None, field: str) -> dict[str, Any]:
    """Return the wire fields of a payload; none when there is none."""
    if payload is None:
        return {}
    if payload.content_type == JSON_CONTENT_TYPE and is_embeddable(payload.data):
        return {field: msgspec.Raw(payload.data)}
    return {f"{field}_base64": b64encode(payload.data).decode("ascii"), "content_type": payload.content_type}


def unpack_payload(wire: Any, field: str) -> Payload | None:
    """Return the payload that a wire struct carries, copied out of the request, or None when it carries none."""
    value: msgspec.Raw | msgspec.UnsetType = getattr(wire, field)
    encoded: str | msgspec.UnsetType = getattr(wire, f"{field}_base64")
    content_type: str | msgspec.UnsetType = wire.content_type
    if value is not msgspec.UNSET:
        if encoded is not msgspec.UNSET:
            raise InvalidBody(f"give {field} or {field}_base64, not both", field=field)
        if content_type is not msgspec.UNSET and content_type != JSON_CONTENT_TYPE:
            raise InvalidBody(
                f"content_type goes with {field}_base64; {field} is application/json", field=field
            )
        data = bytes(value)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidJson(f"{field} is not valid UTF-8", field=field) from error
        return Payload(data)
    if encoded is not msgspec.UNSET:
        try:
            data = binascii.a2b_base64(encoded.encode("ascii"), strict_mode=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            raise InvalidBody(f"{field}_base64 is not valid base64", field=f"{field}_base64") from error
        return Payload(data, BINARY_CONTENT_TYPE if content_type is msgspec.UNSET else content_type)
    if content_type is not msgspec.UNSET:
        raise InvalidBody(f"content_type goes with {field}_base64", field="content_type")
    return None


def _unwrap(annotation: Any) -> tuple[Any, bool]:
    """Return (struct type or the annotation, whether it is a sequence of it); options are looked through."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return _unwrap(members[0])
        return annotation, False
    if typing.get_origin(annotation) is tuple:
        inner, _ = _unwrap(typing.get_args(annotation)[0])
        return inner, True
    return annotation, False


def _is_struct(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)


@cache
def has_payload(kind: type[msgspec.Struct]) -> bool:
    """Say whether a struct holds a payload, directly or in a struct inside it."""
    for field in msgspec.structs.fields(kind):
        inner, _ = _unwrap(field.type)
        if inner is Payload or (_is_struct(inner) and has_payload(inner)):
            return True
    return False


@cache
def shape_of(kind: type[msgspec.Struct], left_out: frozenset[str] = NOTHING, strict: bool = False) -> Shape:
    """Derive the wire type of a struct, without the fields `left_out`; `strict` refuses unknown fields."""
    every = msgspec.structs.fields(kind)
    names = tuple(field.name for field in every if field.name not in left_out)
    if not left_out and not has_payload(kind):
        return Shape(kind, None, None, (), names)
    definitions: list[Any] = []
    payload_field: str | None = None
    nested: list[tuple[str, bool, Shape]] = []
    for field in every:
        if field.name in left_out:
            continue
        inner, many = _unwrap(field.type)
        if inner is Payload:
            assert payload_field is None, "a struct holds one payload"
            payload_field = field.name
            definitions.append((field.name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET))
            definitions.append((f"{field.name}_base64", str | msgspec.UnsetType, msgspec.UNSET))
            definitions.append(("content_type", str | msgspec.UnsetType, msgspec.UNSET))
            continue
        annotation = field.type
        if _is_struct(inner) and has_payload(inner):
            shape = shape_of(inner, NOTHING, strict)
            nested.append((field.name, many, shape))
            annotation = tuple[shape.wire, ...] if many else shape.wire
        if field.default is not msgspec.NODEFAULT:
            definitions.append((field.name, annotation, field.default))
        elif field.default_factory is not msgspec.NODEFAULT:
            definitions.append(
                (
                    field.name,
                    annotation,
                    msgspec.field(default_factory=field.default_factory),
                )
            )
        else:
            definitions.append((field.name, annotation))
    config = kind.__struct_config__
    wire = msgspec.defstruct(
        f"{kind.__name__}Body" if left_out else f"{kind.__name__}Wire",
        definitions,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=strict or config.forbid_unknown_fields,
        omit_defaults=config.forbid_unknown_fields,
        tag_field=config.tag_field,
        tag=config.tag,
    )
    wire.__doc__ = kind.__doc__
    return Shape(
        wire, _packer(wire, names, payload_field, tuple(nested)), payload_field, tuple(nested), names
    )


def _packer(
    wire: type[msgspec.Struct],
    names: tuple[str, ...],
    payload_field: str | None,
    nested: tuple[tuple[str, bool, Shape], ...],
) -> Convert:
    inner = {name for name, _, _ in nested}
    plain = tuple(name for name in names if name != payload_field and name not in inner)

    def pack(record: Any) -> Any:
        values = {name: getattr(record, name) for name in plain}
        if payload_field is not None:
            values.update(pack_payload(getattr(record, payload_field), payload_field))
        for name, many, shape in nested:
            value = getattr(record, name)
            to_wire = shape.to_wire
            assert to_wire is not None, "a nested shape has payloads"
            values[name] = tuple(to_wire(item) for item in value) if many else to_wire(value)
        return wire(**values)

    return pack


def to_contract(kind: type[msgspec.Struct], shape: Shape, wire: Any, more: dict[str, Any]) -> Any:
    """Build the contract's struct from its wire form and `more` fields (those of the path)."""
    if shape.to_wire is None and not more:
        return wire
    names, read = _plain_fields(shape.wire, shape.names, shape.payload_field)
    values = dict(zip(names, read(wire), strict=True))
    values.update(more)
    if shape.payload_field is not None:
        payload = unpack_payload(wire, shape.payload_field)
        if payload is not None:
            values[shape.payload_field] = payload
        elif shape.payload_field in _optional_payloads(kind):
            values[shape.payload_field] = None
    for name, many, nested in shape.nested:
        part = nested_types(kind)[name]
        value = getattr(wire, name)
        values[name] = (
            tuple(to_contract(part, nested, item, {}) for item in value)
            if many
            else to_contract(part, nested, value, {})
        )
    return kind(**values)


@cache
def _plain_fields(
    wire: type[msgspec.Struct], names: tuple[str, ...], payload_field: str | None
) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """Return the names of a wire type's fields other than the payload, and what reads them all at once."""
    del wire
    plain = tuple(name for name in names if name != payload_field)
    if len(plain) > 1:
        return plain, attrgetter(*plain)
    return plain, lambda record: tuple(getattr(record, name) for name in plain)


@cache
def nested_types(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """Return the struct type behind each field that holds structs."""
    found: dict[str, type[msgspec.Struct]] = {}
    for field in msgspec.structs.fields(kind):
        inner, _ = _unwrap(field.type)
        if _is_struct(inner):
            found[field.name] = inner
    return found


@cache
def _optional_payloads(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(
        field.name
        for field in msgspec.structs.fields(kind)
        if field.type is not Payload and _unwrap(field.type)[0] is Payload
    )
