"""The OpenAPI 3.1 description of the server, derived from the manifest.

What must stay true: an operation that the manifest declares is here without a line about it in this module, and
building twice gives the same document.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from flowfabric.contract import errors, limits, wire, wire_batch
from flowfabric.contract.backend import Capabilities
from flowfabric.contract.manifest import Kind, Operation, Repeatable, Route
from flowfabric.contract.operations import OPERATIONS, STORES
from flowfabric.server.field_docs import field_docs
from flowfabric.server.openapi_schemas import Components, Schema
from flowfabric.version import VERSION

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
SYSTEM: Final = "server"
RAW_SUFFIX: Final = "/raw"

_DESCRIPTION: Final = """\
Durable execution over HTTP: submit work, run it under leases, follow and operate it.

- Bodies are JSON; unknown fields are refused. Instants are integers named `*_at_ms`, milliseconds since 1970.
- Payloads are any JSON value, kept exactly as received, or any bytes: `"input_base64": "...", "content_type": "..."`.
- A reply that is one of several kinds says which in `status`. Ignore reply fields you do not know.
- A refusal is `{"error": {"code", "message", "retryable", "details"}}`; `code` is stable. `retryable` means that the
  same request may succeed later unchanged.
- A request that was sent and not answered may or may not have happened. Every operation says what makes it safe to
  send again.
"""

_FROM_THE_START: Final[tuple[type[errors.FlowFabricError], ...]] = (
    errors.RequestTimeout,
    errors.HeadersTooLarge,
    errors.RouteNotFound,
    errors.MethodNotAllowed,
    errors.ResourceExhausted,
)
"""What any request may be answered before it is known what it asks for."""


def build(version: str = VERSION) -> dict[str, Any]:
    """Return the document."""
    components = Components()
    for operation in OPERATIONS.values():
        for kind in (operation.command, *operation.replies):
            components.learn(kind)
    components.learn(Capabilities)
    components.learn(wire.ErrorDocument)
    problems = _Problems(components.schema(wire.ErrorDocument))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS.values():
        for number, route in enumerate(operation.routes, start=1):
            item = _Item(operation, route, components, problems)
            name = operation.name if number == 1 else f"{operation.name}:{number}"
            paths.setdefault(route.path, {})[route.method.lower()] = item.build(name)
            if operation.raw_result:
                paths.setdefault(route.path + RAW_SUFFIX, {})[route.method.lower()] = item.build_raw(name)
    paths.update(_system_paths(components, problems))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FlowFabric",
            "version": version,
            "summary": "An execution engine for long-running, interruptible, resource-aware work.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}, {}],
        "tags": _tags(),
        "paths": paths,
        "components": {
            "schemas": components.sorted(),
            "responses": dict(sorted(problems.responses.items())),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "One of the server's tokens, if it has any.",
                }
            },
        },
        "x-errors": _error_table(),
    }


def _tags() -> list[dict[str, str]]:
    tags = [
        {
            "name": concept,
            "description": inspect.cleandoc((inspect.getmodule(store) or store).__doc__ or "").split("\n\n")[
                0
            ],
        }
        for concept, store in STORES.items()
    ]
    return [
        *tags,
        {"name": SYSTEM, "description": "The server itself: what it is, how it is, what it counts."},
    ]


def _error_table() -> dict[str, Any]:
    return {
        kind.code: {
            "status": kind.http_status,
            "retryable": kind.retryable,
            "message": errors.default_message(kind),
        }
        for kind in sorted(_published(), key=lambda kind: (kind.http_status, kind.code))
    }


def _published() -> list[type[errors.FlowFabricError]]:
    """Return what an answer can carry: not what only a library call can raise."""
    return [
        kind
        for kind in errors.BY_CODE.values()
        if kind.__module__ == errors.__name__ and kind not in (errors.Misuse, errors.Refused)
    ]


class _Item:
    """One operation on one of its routes."""

    def __init__(
        self, operation: Operation, route: Route, components: Components, problems: _Problems
    ) -> None:
        self.operation = operation
        self.route = route
        self.components = components
        self.problems = problems

    def build(self, name: str) -> dict[str, Any]:
        """Return the item."""
        operation = self.operation
        item = self._start(name)
        body = wire.body_type(operation, self.route)
        if body is not None:
            item["requestBody"] = {
                "required": any(field.required for field in msgspec.structs.fields(body)),
                "content": {JSON: {"schema": self.components.schema(body)}},
            }
        item["responses"] = {**self._replies(), **self._refusals(operation.refuses)}
        return item

    def build_raw(self, name: str) -> dict[str, Any]:
        """Return the item of the route that answers bytes."""
        item = self._start(f"{name}:raw")
        item["summary"] = f"{item['summary'].rstrip('.')}: the bytes themselves."
        item["responses"] = {
            "200": {
                "description": "The result, byte for byte, with the media type it was stored with.",
                "content": {"*/*": {"schema": {}}},
            },
            "204": {"description": "It completed without a result."},
            **self._refusals((*self.operation.refuses, errors.ExecutionNotActive)),
        }
        return item

    def _start(self, name: str) -> dict[str, Any]:
        operation = self.operation
        parts = [operation.description, *(f"Sets `{key}` to `{text}`." for key, text in self.route.fixed)]
        item: dict[str, Any] = {
            "operationId": name,
            "tags": [operation.concept],
            "summary": operation.summary,
        }
        description = "\n\n".join(part for part in parts if part)
        if description:
            item["description"] = description
        parameters = self._parameters()
        if parameters:
            item["parameters"] = parameters
        item["x-flowfabric"] = {
            "kind": operation.kind.value,
            "scope": operation.scope.value,
            "repeatable": operation.repeatable.value,
            "repeatable_because": field_docs(Repeatable).get(operation.repeatable.name, ""),
            "body_max_bytes": operation.body_max,
            "long_wait": operation.long_wait,
            "refuses": [kind.code for kind in operation.refuses],
            "since": operation.since,
        }
        return item

    def _parameters(self) -> list[dict[str, Any]]:
        operation, route = self.operation, self.route
        fields = {field.name: field for field in msgspec.structs.fields(operation.command)}
        fixed = {name for name, _ in route.fixed}
        found: list[dict[str, Any]] = []
        for name, annotation in wire.parameter_types(operation, route).items():
            if name in fixed:
                continue
            schema = self.components.field(operation.command, name, annotation)
            description = schema.pop("description", None)
            in_path = name in route.fields
            parameter: dict[str, Any] = {
                "name": name,
                "in": "path" if in_path else "query",
                "required": in_path or fields[name].required,
                "schema": schema,
            }
            if description:
                parameter["description"] = description
            if not in_path:
                default = fields[name].default
                if default is not msgspec.NODEFAULT and default is not None:
                    schema["default"] = msgspec.to_builtins(default)
                if schema.get("type") == "array":
                    parameter |= {"style": "form", "explode": False}
            found.append(parameter)
        found.sort(key=lambda parameter: parameter["in"])
        if operation.server_sent_events:
            found.append(
                {
                    "name": "Last-Event-ID",
                    "in": "header",
                    "required": False,
                    "schema": {"type": "string"},
                    "description": "With events: go on after this one.",
                }
            )
        return found

    def _replies(self) -> dict[str, Any]:
        operation = self.operation
        by_status: dict[int, list[type[msgspec.Struct]]] = {}
        for reply, wire_type in zip(operation.replies, wire.reply_types(operation), strict=True):
            by_status.setdefault(operation.statuses.get(reply, 200), []).append(wire_type)
        found: dict[str, Any] = {}
        for status, kinds in sorted(by_status.items()):
            content: dict[str, Any] = {JSON: {"schema": self._one_of(kinds)}}
            if operation.server_sent_events:
                content[EVENTS] = {
                    "schema": {
                        "type": "string",
                        "description": "With `Accept: text/event-stream`: `frame` events whose ids are cursors and "
                        "whose data is one frame, `trimmed`, and at the end `closed`.",
                    }
                }
            found[str(status)] = {"description": self._reply_text(kinds), "content": content}
        return found

    @staticmethod
    def _reply_text(kinds: list[type[msgspec.Struct]]) -> str:
        texts = [inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0] for kind in kinds]
        if len(kinds) == 1:
            return texts[0]
        return "\n".join(
            f"- `{kind.__struct_config__.tag}`: {text}" for kind, text in zip(kinds, texts, strict=True)
        )

    def _one_of(self, kinds: list[type[msgspec.Struct]]) -> Schema:
        schemas = [self.components.schema(kind) for kind in kinds]
        if len(schemas) == 1:
            return schemas[0]
        tags = [str(kind.__struct_config__.tag) for kind in kinds]
        return {
            "oneOf": schemas,
            "discriminator": {
                "propertyName": "status",
                "mapping": {tag: schema["$ref"] for tag, schema in zip(tags, schemas, strict=True)},
            },
        }

    def _refusals(self, refuses: Iterable[type[errors.FlowFabricError]]) -> dict[str, Any]:
        possible: list[type[errors.FlowFabricError]] = [*refuses, errors.InvalidInput, errors.Unauthorized]
        if self.route.method != "GET":
            possible += [errors.InvalidJson, errors.InvalidBody]
            possible += [errors.PayloadTooLarge, errors.UnsupportedContentType]
        if self.operation.long_wait:
            possible.append(errors.ResourceExhausted)
        possible += [errors.Corrupt, errors.FlowFabricError, errors.Unavailable]
        if self.operation.kind is Kind.MUTATION:
            possible.append(errors.OutcomeUnknown)
        return self.problems.of(possible)


class _Problems:
    """The answers of refusals: those that occur twice are written once."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._names: dict[tuple[int, tuple[str, ...]], str] = {}
        self.responses: dict[str, Any] = {}

    def of(self, possible: Iterable[type[errors.FlowFabricError]]) -> dict[str, Any]:
        """Return references by status, and the default for what any request may be answered."""
        by_status: dict[int, dict[str, type[errors.FlowFabricError]]] = {}
        for kind in possible:
            by_status.setdefault(kind.http_status, {})[kind.code] = kind
        found = {
            str(status): self._reference(status, [kinds[code] for code in sorted(kinds)])
            for status, kinds in sorted(by_status.items())
        }
        return {**found, "default": self._reference(0, list(_FROM_THE_START))}

    def _reference(self, status: int, kinds: list[type[errors.FlowFabricError]]) -> Schema:
        key = (status, tuple(kind.code for kind in kinds))
        name = self._names.get(key)
        if name is None:
            if status == 0:
                name = "Refused"
            elif len(kinds) == 1:
                name = kinds[0].__name__
            else:
                number = 1 + sum(known == status for known, _ in self._names)
                name = f"Refused{status}.{number}"
            self._names[key] = name
            self.responses[name] = self._response(kinds, closed=status != 0)
        return {"$ref": f"#/components/responses/{name}"}

    def _response(self, kinds: list[type[errors.FlowFabricError]], *, closed: bool) -> dict[str, Any]:
        schema = self._document
        if closed:
            code = {"properties": {"code": {"enum": [kind.code for kind in kinds]}}}
            schema = {"allOf": [schema, {"properties": {"error": code}}]}
        lines = [f"- `{kind.code}`: {errors.default_message(kind)}" for kind in kinds]
        return {"description": "\n".join(lines), "content": {JSON: {"schema": schema}}}


# The server itself ------------------------------------------------------------------------------------------------


_LIMITS: Final = ("create_many", "batch_calls", "payload_bytes", "frame_bytes", "wait_ms")


def _system_paths(components: Components, problems: _Problems) -> dict[str, dict[str, Any]]:
    count = {"type": "integer", "minimum": 1}
    what = components.schema(Capabilities)
    bounds = components.add(
        "Limits",
        {
            "type": "object",
            "description": "Bounds that clients need to know before they send.",
            "properties": dict.fromkeys(_LIMITS, count),
            "required": list(_LIMITS),
        },
    )
    capabilities = {"allOf": [what, {"properties": {"limits": bounds}, "required": ["limits"]}]}
    closed: list[type[errors.FlowFabricError]] = [errors.Unauthorized]
    broken: list[type[errors.FlowFabricError]] = [errors.FlowFabricError, errors.Unavailable]
    return {
        wire_batch.PATH: _batch_item(components, problems),
        "/v1/capabilities": _system_item(
            "capabilities",
            "Say what the store physically is, and how much a request may carry.",
            {JSON: {"schema": capabilities}},
            problems.of([*closed, *broken]),
        ),
        "/healthz": _system_item(
            "healthz",
            "Say whether the process lives and reaches its store.",
            {JSON: {"schema": _status("ok")}},
            problems.of(broken),
            is_open=True,
        ),
        "/readyz": _system_item(
            "readyz",
            "Say whether requests should be sent here: not while shutting down.",
            {JSON: {"schema": _status("ready")}},
            problems.of(broken),
            is_open=True,
        ),
        "/metrics": _system_item(
            "metrics",
            "Read the metrics in the Prometheus text format.",
            {"text/plain": {"schema": {"type": "string"}}},
            problems.of([*closed, errors.FlowFabricError]),
        ),
    }


def _batch_item(components: Components, problems: _Problems) -> dict[str, Any]:
    call = components.add(
        "BatchCall",
        {
            "type": "array",
            "description": "The operation's name; its command, with the fields that its own route takes from the path; "
            "optionally the caller's W3C `traceparent`.",
            "prefixItems": [
                {"type": "string", "enum": sorted(wire_batch.MEMBERS)},
                {"type": "object"},
                {"type": ["string", "null"]},
            ],
            "minItems": 2,
            "maxItems": 3,
        },
    )
    answer = components.add(
        "BatchAnswer",
        {
            "type": "array",
            "description": "The status and the body that the call would have been answered with alone.",
            "prefixItems": [{"type": "integer"}, {"type": "object"}],
            "minItems": 2,
        },
    )
    summary = (
        "Carry out several calls side by side; each has its own outcome, and its own reasons to be repeated."
    )
    refused = (errors.InvalidInput, errors.InvalidJson, errors.InvalidBody, errors.Unauthorized)
    refused += (errors.PayloadTooLarge, errors.UnsupportedContentType, errors.FlowFabricError)
    calls = {"type": "array", "items": call, "minItems": 1, "maxItems": limits.BATCH_CALLS_MAX}
    return {
        "post": {
            "operationId": "batch",
            "tags": [SYSTEM],
            "summary": summary,
            "requestBody": {"required": True, "content": {JSON: {"schema": calls}}},
            "responses": {
                "200": {
                    "description": "What each call came to, in the order of the calls.",
                    "content": {JSON: {"schema": {"type": "array", "items": answer}}},
                },
                **problems.of(refused),
            },
        }
    }


def _status(text: str) -> Schema:
    return {"type": "object", "properties": {"status": {"const": text}}, "required": ["status"]}


def _system_item(
    name: str, summary: str, content: dict[str, Any], refusals: dict[str, Any], *, is_open: bool = False
) -> dict[str, Any]:
    item: dict[str, Any] = {"operationId": name, "tags": [SYSTEM], "summary": summary}
    if is_open:
        item["security"] = []
    item["responses"] = {"200": {"description": summary, "content": content}, **refusals}
    return {"get": item}
