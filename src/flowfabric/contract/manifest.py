"""How an operation is declared: one decorator on one method of its concept's Store protocol.

The declaration is the only place that knows an operation's route, refusals and limits; server, client, CLI, metrics,
docs and completeness tests are derived from it (`flowfabric.contract.operations` collects them).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any, Final, Literal, TypeVar

import msgspec

from flowfabric.contract import limits
from flowfabric.contract.errors import Refused

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])

HttpMethod = Literal["GET", "POST", "PUT"]


class Kind(StrEnum):
    """Whether an operation writes."""

    READ = "read"
    MUTATION = "mutation"


class Repeatable(StrEnum):
    """What makes it safe to send the same operation again after a lost reply."""

    READ = "read"
    """It changes nothing."""
    ID = "id"
    """The execution id or idempotency key in the command."""
    FENCE = "fence"
    """The fence: the first answer is given again."""
    CLAIM_ID = "claim_id"
    SEQUENCE = "sequence"
    """The frame sequence."""
    NATURAL = "natural"
    """Doing it twice is the same as doing it once."""
    NO = "no"


class Scope(StrEnum):
    """What a token must allow; today every token allows all of them."""

    READ = "read"
    SUBMIT = "submit"
    WORK = "work"
    OPERATE = "operate"


class Route(msgspec.Struct, frozen=True):
    """An HTTP method and a path whose `{names}` are fields of the command; an alias may fix further fields."""

    method: HttpMethod
    path: str
    fixed: tuple[tuple[str, str], ...] = ()
    """Fields, by name, that this route sets by itself and the request may not."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The command fields bound by the path, in order."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the contract."""

    name: str
    concept: str
    verb: str
    summary: str
    description: str
    command: type[msgspec.Struct]
    replies: tuple[type[msgspec.Struct], ...]
    """The reply's type, or the members of its union (tagged by `status`)."""
    kind: Kind
    routes: tuple[Route, ...]
    """The first is the one to use; the others are aliases that bind more or fewer fields by path."""
    statuses: Mapping[type[msgspec.Struct], int]
    refuses: tuple[type[Refused], ...]
    """In guard order: when several apply, the first is the answer."""
    scope: Scope
    repeatable: Repeatable
    body_max: int
    hot: bool
    long_wait: bool
    """It has a `wait_ms` and may hold the call that long."""
    paging: bool
    raw_result: bool
    """A second route, `<path>/raw`, answers the payload's bytes with their own content type."""
    server_sent_events: bool
    since: str

    def status_of(self, reply: msgspec.Struct) -> int:
        """Return the HTTP status of a reply."""
        return self.statuses.get(type(reply), 200)


_DECLARED: Final = "__flowfabric_operation__"


def operation(
    *routes: str,
    kind: Kind,
    scope: Scope,
    repeatable: Repeatable,
    refuses: tuple[type[Refused], ...] = (),
    statuses: Mapping[type[msgspec.Struct], int] | None = None,
    body_max: int = limits.BODY_CONTROL_MAX,
    hot: bool = False,
    long_wait: bool = False,
    paging: bool = False,
    raw_result: bool = False,
    server_sent_events: bool = False,
    since: str = "0.1",
) -> Callable[[Method], Method]:
    """Declare a Store method as an operation. Routes are written `"POST /v1/things/{thing_id}?field=value"`."""

    def declare(method: Method) -> Method:
        setattr(
            method,
            _DECLARED,
            {
                "routes": tuple(_route(text) for text in routes),
                "kind": kind,
                "scope": scope,
                "repeatable": repeatable,
                "refuses": refuses,
                "statuses": dict(statuses or {}),
                "body_max": body_max,
                "hot": hot,
                "long_wait": long_wait,
                "paging": paging,
                "raw_result": raw_result,
                "server_sent_events": server_sent_events,
                "since": since,
            },
        )
        return method

    return declare


reading: Final = partial(operation, kind=Kind.READ, scope=Scope.READ, repeatable=Repeatable.READ)
"""Declare a Store method as an operation that only reads."""


def _route(text: str) -> Route:
    method, _, path = text.partition(" ")
    if method not in ("GET", "POST", "PUT") or not path.startswith("/"):
        raise ValueError(f"not a route: {text!r}")
    path, _, fixed = path.partition("?")
    pairs = tuple(tuple(pair.split("=", 1)) for pair in fixed.split("&")) if fixed else ()
    return Route(method, path, pairs)  # pyright: ignore[reportArgumentType] - each pair is split in two


def _members(annotation: Any) -> tuple[type[msgspec.Struct], ...]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def collect(concept: str, store: type) -> dict[str, Operation]:
    """Return the operations declared on a Store protocol, by name, in the order of declaration."""
    found: dict[str, Operation] = {}
    for verb, member in vars(store).items():
        declared: dict[str, Any] | None = getattr(member, _DECLARED, None)
        if declared is None:
            continue
        hints = typing.get_type_hints(member)
        summary, _, description = (member.__doc__ or "").strip().partition("\n")
        name = f"{concept}.{verb}"
        found[name] = Operation(
            name=name,
            concept=concept,
            verb=verb,
            summary=summary,
            description="\n".join(line.strip() for line in description.strip().splitlines()),
            command=hints["command"],
            replies=_members(hints["return"]),
            **declared,
        )
    return found
