"""JSON schemas of commands and replies: msgspec's, with names, descriptions and patterns that people can use.

What must stay true: two different types never share a component, and building twice gives the same document.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from flowfabric.contract import ids, limits
from flowfabric.contract.payloads import BINARY_CONTENT_TYPE, Payload
from flowfabric.server.field_docs import class_doc, field_docs

Schema = dict[str, Any]

PREFIX: Final = "#/components/schemas/"
_TEMPLATE: Final = PREFIX + "{name}"
_WIRE_ENDINGS: Final = ("Wire", "Body")
_UUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_UUID_EXAMPLE: Final = "0b5f9c5e-3d0a-4b6e-9a53-2f8e6c1d7a42"
_NAME: Final = f"^[A-Za-z0-9._:/@-]{{1,{limits.NAME_LENGTH_MAX}}}$"


def _text(pattern: str, example: str) -> Schema:
    return {"type": "string", "pattern": pattern, "examples": [example]}


IDENTIFIERS: Final[Mapping[Any, Schema]] = {
    ids.ExecutionId: _text(rf"^\{{fp:(0|[1-9][0-9]{{0,4}})\}}:{_UUID}$", f"{{fp:42}}:{_UUID_EXAMPLE}"),
    ids.AttemptId: _text(f"^{_UUID}$", _UUID_EXAMPLE),
    ids.LeaseId: _text(f"^{_UUID}$", _UUID_EXAMPLE),
    ids.ClaimId: _text(f"^{_UUID}$", _UUID_EXAMPLE),
    ids.Lane: _text(f"^[A-Za-z0-9._:-]{{1,{limits.LANE_LENGTH_MAX}}}$", "default"),
    ids.Namespace: _text(_NAME, "default"),
    ids.Kind: _text(_NAME, "census_file"),
    ids.WorkerId: _text(_NAME, "census"),
    ids.WorkerInstance: _text(_NAME, "census@host:1234"),
}
"""How the identifiers look; the contract's own checks decide."""


class Components:
    """The schemas of a document, collected while it is built."""

    def __init__(self) -> None:
        self._schemas: dict[str, Schema] = {}
        self._kinds: dict[str, type] = {}

    def learn(self, kind: type) -> None:
        """Remember a contract type and those inside it, so that their wire forms can be described."""
        for found in _types_in(kind, set()):
            known = self._kinds.setdefault(found.__name__, found)
            assert known is found, f"two types are called {found.__name__}"

    def schema(self, kind: Any) -> Schema:
        """Return a schema for a type, a reference if it is a record; its parts become components."""
        (schema,), parts = msgspec.json.schema_components((kind,), ref_template=_TEMPLATE)
        top = schema.get("$ref", "").removeprefix(PREFIX)
        renamed: str | None = None
        for raw, part in parts.items():
            finished = self._finish(_public(raw), part)
            name = base = _public(raw)
            number = 1
            while self._schemas.get(name, finished) != finished:
                # Routes of one operation may bind different fields, so that their bodies differ.
                assert raw == top, f"two different records are called {name}"
                number += 1
                name = f"{base}{number}"
            self._schemas[name] = finished
            if raw == top:
                renamed = name
        return {"$ref": PREFIX + renamed} if renamed is not None else _simplified(schema)

    def field(self, kind: type[msgspec.Struct], name: str, annotation: Any) -> Schema:
        """Return the schema of one field of a record, for a parameter: never null, described."""
        schema = _refined(annotation, self.schema(_without_none(annotation)))
        said = field_docs(kind).get(name)
        return {**schema, "description": said} if said else schema

    def add(self, name: str, schema: Schema) -> Schema:
        """Add a component written by hand and return a reference to it."""
        assert name not in self._schemas, f"two records are called {name}"
        self._schemas[name] = schema
        return {"$ref": PREFIX + name}

    def sorted(self) -> dict[str, Schema]:
        """Return all components by name."""
        return dict(sorted(self._schemas.items()))

    def _finish(self, name: str, part: Schema) -> Schema:
        finished: Schema = _simplified({key: value for key, value in part.items() if key != "title"})
        kind = self._kinds.get(name)
        description = class_doc(kind) if kind is not None else inspect.cleandoc(part.get("description", ""))
        if description:
            finished["description"] = description
        if finished.get("required") == []:
            del finished["required"]
        if kind is None or not issubclass(kind, msgspec.Struct):
            return finished
        said = field_docs(kind)
        properties: dict[str, Schema] = finished.get("properties", {})
        for field in msgspec.structs.fields(kind):
            if Payload in _members(field.type):
                _describe_payload(properties, field.name, said.get(field.name))
                continue
            schema = properties.get(field.name)
            if schema is None:
                continue
            schema = _refined(field.type, schema)
            if field.name in said:
                schema["description"] = said[field.name]
            properties[field.name] = schema
        return finished


def _public(name: str) -> str:
    """Return the name that people see: that of the contract's type."""
    for ending in _WIRE_ENDINGS:
        name = name.removesuffix(ending)
    return name


def _simplified(value: Any) -> Any:
    """Rename references, write `X or null` as a list of types, leave `default: null` out."""
    if isinstance(value, list):
        return [_simplified(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    schema: Schema = {
        key: _simplified(item)
        for key, item in cast("Schema", value).items()
        if not (key == "default" and item is None)
    }
    words: Any = schema.get("enum")
    if isinstance(words, list) and all(isinstance(word, str) for word in cast("list[Any]", words)):
        schema = {"type": "string", **schema}
    reference: Any = schema.get("$ref")
    if isinstance(reference, str):
        schema["$ref"] = PREFIX + _public(reference.removeprefix(PREFIX))
    options: Any = schema.get("anyOf")
    if isinstance(options, list) and len(cast("list[Any]", options)) == 2 and {"type": "null"} in options:
        first: Schema = next(option for option in cast("list[Schema]", options) if option != {"type": "null"})
        if isinstance(first.get("type"), str) and "enum" not in first:
            del schema["anyOf"]
            schema = {**first, **schema, "type": [first["type"], "null"]}
    return schema


def _refined(annotation: Any, schema: Schema) -> Schema:
    """Add to a schema what its identifiers look like."""
    refined = dict(schema)
    for member in _members(annotation):
        pattern = IDENTIFIERS.get(member) if isinstance(member, typing.NewType) else None
        if pattern is not None:
            refined = {**refined, **pattern, "type": refined.get("type", "string")}
        elif typing.get_origin(member) is tuple:
            refined["items"] = _refined(typing.get_args(member)[0], refined.get("items", {}))
    return refined


def _describe_payload(properties: dict[str, Schema], name: str, said: str | None) -> None:
    sentence = "Any JSON value, kept exactly as received."
    properties[name] = {"description": f"{said} {sentence}" if said else sentence}
    properties[f"{name}_base64"] = {
        "type": "string",
        "contentEncoding": "base64",
        "description": f"Instead of `{name}`: any bytes.",
    }
    properties["content_type"] = {
        "type": "string",
        "maxLength": limits.CONTENT_TYPE_LENGTH_MAX,
        "description": f"Media type of `{name}_base64`; absent: {BINARY_CONTENT_TYPE}.",
    }


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def _without_none(annotation: Any) -> Any:
    members = [member for member in _members(annotation) if member is not type(None)]
    return typing.Union[tuple(members)]  # noqa: UP007 - the members are known when it runs


def _types_in(annotation: Any, seen: set[type]) -> Iterator[type]:
    """Return the records and enumerations in an annotation, each once."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct | enum.Enum):
        if annotation in seen:
            return
        seen.add(annotation)
        yield annotation
        if issubclass(annotation, msgspec.Struct):
            for field in msgspec.structs.fields(annotation):
                yield from _types_in(field.type, seen)
        return
    for argument in typing.get_args(annotation):
        yield from _types_in(argument, seen)
