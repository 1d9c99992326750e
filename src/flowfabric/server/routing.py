"""Finding what a request asks for: a tree of path segments built once from the manifest.

Segments are percent-decoded one by one, so an encoded slash stays inside its segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from flowfabric.contract import wire_batch
from flowfabric.contract.errors import InvalidInput, MethodNotAllowed, RouteNotFound
from flowfabric.contract.manifest import Operation, Route
from flowfabric.contract.operations import OPERATIONS

RAW_SUFFIX: Final = "/raw"
SEGMENTS_MAX: Final = 16


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What one method and path does."""

    name: str
    path: str
    """The template, for metrics."""
    method: str = "GET"
    operation: Operation | None = None
    route: Route | None = None
    raw: bool = False
    """Answer the result's bytes instead of the reply."""
    is_open: bool = False
    """Needs no token."""
    fields: tuple[str, ...] = ()
    """Names of the path's parameters, in order."""

    def __post_init__(self) -> None:
        names = tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))
        msgspec.structs.force_setattr(self, "fields", names)


class _Node:
    __slots__ = ("field", "literals", "methods", "parameter")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.field = ""
        self.methods: dict[str, Endpoint] = {}


def _operation_endpoints() -> Iterator[Endpoint]:
    for operation in OPERATIONS.values():
        for route in operation.routes:
            endpoint = Endpoint(
                name=operation.name, path=route.path, method=route.method, operation=operation, route=route
            )
            yield endpoint
            if operation.raw_result:
                yield msgspec.structs.replace(endpoint, path=route.path + RAW_SUFFIX, raw=True)


BATCH: Final = Endpoint(name="batch", path=wire_batch.PATH, method="POST")
OTHER_ENDPOINTS: Final = (
    BATCH,
    Endpoint(name="capabilities", path="/v1/capabilities"),
    Endpoint(name="healthz", path="/healthz", is_open=True),
    Endpoint(name="readyz", path="/readyz", is_open=True),
    Endpoint(name="metrics", path="/metrics"),
    Endpoint(name="openapi", path="/openapi.json", is_open=True),
    Endpoint(name="docs", path="/docs", is_open=True),
    Endpoint(name="page", path="/docs/{file}", is_open=True),
    Endpoint(name="root", path="/", is_open=True),
)
"""What the server offers beside the manifest's operations; all of it but the batch is read."""


class Router:
    """The tree of all endpoints."""

    def __init__(self) -> None:
        self._root = _Node()
        self._exact: dict[tuple[str, bytes], Endpoint] = {}
        """Endpoints without parameters, by method and path: most requests need no walk."""
        for endpoint in (*_operation_endpoints(), *OTHER_ENDPOINTS):
            self._add(endpoint)

    def _add(self, endpoint: Endpoint) -> None:
        method = endpoint.method
        node = self._root
        for segment in endpoint.path.split("/")[1:]:
            if segment.startswith("{"):
                if node.parameter is None:
                    node.parameter = _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        assert method not in node.methods, f"two operations share {method} {endpoint.path}"
        node.methods[method] = endpoint
        if "{" not in endpoint.path:
            self._exact[method, endpoint.path.encode("ascii")] = endpoint

    def find(self, method: str, raw_path: bytes) -> tuple[Endpoint, dict[str, str]]:
        """Return the endpoint and its path parameters.

        Raises: `RouteNotFound`, `MethodNotAllowed` (with `allow`), `InvalidInput` for a segment that is not UTF-8.
        """
        exact = self._exact.get((method, raw_path))
        if exact is not None:
            return exact, {}
        segments = raw_path.split(b"/")
        if len(segments) > SEGMENTS_MAX:
            raise RouteNotFound
        node = self._root
        values: list[str] = []
        for segment in segments[1:]:
            text = _decode(segment)
            following = node.literals.get(text)
            if following is None:
                following = node.parameter
                if following is None or not text:
                    raise RouteNotFound
                values.append(text)
            node = following
        if not node.methods:
            raise RouteNotFound
        endpoint = node.methods.get("GET" if method == "HEAD" else method)
        if endpoint is None:
            raise MethodNotAllowed(allow=_allowed(node))
        return endpoint, dict(zip(endpoint.fields, values, strict=True))

    def methods_of(self, raw_path: bytes) -> list[str]:
        """Return the methods that a path offers; none when there is no such path."""
        try:
            self.find("?", raw_path)
        except MethodNotAllowed as error:
            allowed: Any = error.details["allow"]
            return list(allowed)
        except (RouteNotFound, InvalidInput):
            pass
        return []


def _allowed(node: _Node) -> list[str]:
    """Return the methods of a node; whatever can be read by GET can be asked about by HEAD."""
    return sorted({*node.methods, "OPTIONS", *(("HEAD",) if "GET" in node.methods else ())})


def _decode(segment: bytes) -> str:
    try:
        return (unquote_to_bytes(segment) if b"%" in segment else segment).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput("the path is not valid UTF-8") from error
