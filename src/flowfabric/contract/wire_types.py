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
_NO_MORE: Final[dict[str, Any]] = {}
RAW_DECODER: Final = msgspec.json.Decoder(msgspec.Raw)


class Shape(msgspec.Struct, frozen=True):
    """A struct's type on the wire, and the ways between the two."""

    wire: type[msgspec.Struct]
    to_wire: Convert | None
    """Absent: the struct is its own wire type."""
    payload: PayloadFields | None
    nested: tuple[tuple[str, bool, Shape, type[msgspec.Struct]], ...]
    """(field, whether it is a sequence, shape, contract type) of the fields that hold structs with payloads."""
    names: tuple[str, ...]
    """The contract's field names that the wire type carries."""
    plain: tuple[str, ...]
    """Those that are the same on the wire."""
    read_plain: Callable[[Any], tuple[Any, ...]]
    """Read them all at once, of either type."""


class PayloadFields(msgspec.Struct, frozen=True):
    """A payload's field in the contract, and what carries it on the wire."""

    field: str
    encoded: str
    """The field of its base64."""
    read: Callable[[Any], tuple[Any, Any, Any]]
    """Read the value, its base64 and its content type."""
    is_optional: bool


def is_embeddable(data: bytes) -> bool:
    """Say whether bytes can stand in a JSON document as a value and be cut out again unchanged."""
    try:
        if not data.isascii():
            data.decode("utf-8")
        return len(memoryview(RAW_DECODER.decode(data))) == len(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _pack_payload(payload: Payload, fields: PayloadFields, values: dict[str, Any]) -> None:
    """Add the wire fields of a payload."""
    if payload.content_type == JSON_CONTENT_TYPE and is_embeddable(payload.data):
        values[fields.field] = msgspec.Raw(payload.data)
    else:
        values[fields.encoded] = b64encode(payload.data).decode("ascii")
        values["content_type"] = payload.content_type


def _unpack_payload(wire: Any, fields: PayloadFields) -> Payload | None:
    """Return the payload that a wire struct carries, copied out of the request, or None when it carries none."""
    value: msgspec.Raw | msgspec.UnsetType
    encoded: str | msgspec.UnsetType
    content_type: str | msgspec.UnsetType
    value, encoded, content_type = fields.read(wire)
    field = fields.field
    if value is not msgspec.UNSET:
        if encoded is not msgspec.UNSET:
            raise InvalidBody(f"give {field} or {field}_base64, not both", field=field)
        if content_type is not msgspec.UNSET and content_type != JSON_CONTENT_TYPE:
            raise InvalidBody(
                f"content_type goes with {field}_base64; {field} is application/json", field=field
            )
        data = bytes(value)
        if not data.isascii():
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
        return Shape(kind, None, None, (), names, names, _reader(names))
    definitions: list[Any] = []
    payload: PayloadFields | None = None
    nested: list[tuple[str, bool, Shape, type[msgspec.Struct]]] = []
    for field in every:
        if field.name in left_out:
            continue
        inner, many = _unwrap(field.type)
        if inner is Payload:
            assert payload is None, "a struct holds one payload"
            payload = _payload_fields(field.name, is_optional=field.type is not Payload)
            definitions.append((field.name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET))
            definitions.append((payload.encoded, str | msgspec.UnsetType, msgspec.UNSET))
            definitions.append(("content_type", str | msgspec.UnsetType, msgspec.UNSET))
            continue
        annotation = field.type
        if _is_struct(inner) and has_payload(inner):
            shape = shape_of(inner, NOTHING, strict)
            nested.append((field.name, many, shape, inner))
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
    special = [name for name, *_ in nested] + ([payload.field] if payload is not None else [])
    plain = tuple(name for name in names if name not in special)
    read_plain = _reader(plain)
    packer = _packer(wire, plain, read_plain, payload, tuple(nested))
    return Shape(wire, packer, payload, tuple(nested), names, plain, read_plain)


def _payload_fields(field: str, *, is_optional: bool) -> PayloadFields:
    encoded = f"{field}_base64"
    return PayloadFields(field, encoded, attrgetter(field, encoded, "content_type"), is_optional)


def _reader(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """Return what reads all these attributes at once."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _packer(
    wire: type[msgspec.Struct],
    plain: tuple[str, ...],
    read_plain: Callable[[Any], tuple[Any, ...]],
    payload: PayloadFields | None,
    nested: tuple[tuple[str, bool, Shape, type[msgspec.Struct]], ...],
) -> Convert:
    read_payload = attrgetter(payload.field) if payload is not None else None

    def pack(record: Any) -> Any:
        values = dict(zip(plain, read_plain(record), strict=True))
        if payload is not None and read_payload is not None:
            held: Payload | None = read_payload(record)
            if held is not None:
                _pack_payload(held, payload, values)
        for name, many, shape, _ in nested:
            value = getattr(record, name)
            to_wire = shape.to_wire
            assert to_wire is not None, "a nested shape has payloads"
            values[name] = tuple([to_wire(item) for item in value]) if many else to_wire(value)
        return wire(**values)

    return pack


def to_contract(kind: type[msgspec.Struct], shape: Shape, wire: Any, more: dict[str, Any]) -> Any:
    """Build the contract's struct from its wire form and `more` fields (those of the path)."""
    if shape.to_wire is None and not more:
        return wire
    values = dict(zip(shape.plain, shape.read_plain(wire), strict=True))
    if more:
        values.update(more)
    fields = shape.payload
    if fields is not None:
        payload = _unpack_payload(wire, fields)
        if payload is not None or fields.is_optional:
            values[fields.field] = payload
    for name, many, nested, part in shape.nested:
        value = getattr(wire, name)
        values[name] = (
            tuple([to_contract(part, nested, item, _NO_MORE) for item in value])
            if many
            else to_contract(part, nested, value, _NO_MORE)
        )
    return kind(**values)
