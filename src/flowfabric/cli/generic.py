"""`flowfabric admin <concept> <verb>`: a command for every operation, derived from its command struct.

Every field of the struct is an option of the same name. Simple fields take text, lists and tags may be repeated,
records and payloads take JSON. What is sent and shown is what REST would send and show.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal

import msgspec
import typer

from flowfabric.cli.command import COMMON_OPTIONS, CONNECTION_OPTIONS, Session, make
from flowfabric.contract import wire
from flowfabric.contract.errors import Misuse
from flowfabric.contract.operations import OPERATIONS, Operation, Route
from flowfabric.contract.payloads import Payload

PANEL: Final = "Operations"
CONCEPTS: Final = {
    "execution": "Executions.",
    "lease": "Leases and grants.",
    "attempt": "Attempts.",
    "stream": "Streams.",
    "worker": "The worker registry.",
    "lane": "Lanes.",
}


class Form(enum.Enum):
    """How an option's text becomes a field."""

    TEXT = "text"
    NUMBER = "number"
    SWITCH = "switch"
    LIST = "list"
    PAIRS = "pairs"
    PAYLOAD = "payload"
    JSON = "json"


def add(admin: typer.Typer) -> None:
    """Add a group per concept with a command per operation."""
    groups: dict[str, typer.Typer] = {}
    for operation in OPERATIONS.values():
        group = groups.get(operation.concept)
        if group is None:
            group = typer.Typer(help=CONCEPTS.get(operation.concept), no_args_is_help=True)
            groups[operation.concept] = group
            admin.add_typer(group, name=operation.concept, rich_help_panel=PANEL)
        group.command(operation.verb.replace("_", "-"))(command_for(operation))


def command_for(operation: Operation) -> Callable[..., None]:
    """Make the command of one operation."""
    parameters: list[tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(operation.command):
        form, choices = form_of(field.type)
        parameters.append((field.name, _annotation(field, form, choices), _default(form)))
    parameters += [
        (name, annotation, default)
        for name, (annotation, default) in {**CONNECTION_OPTIONS, **COMMON_OPTIONS}.items()
    ]

    def body(session: Session, arguments: dict[str, Any]) -> Awaitable[int | None]:
        return carry_out(operation, session, arguments)

    refusals = ", ".join(kind.code for kind in operation.refuses)
    doc = "\n\n".join(
        part for part in (operation.summary, operation.description, f"Refuses: {refusals}.") if part
    )
    return make(f"{operation.concept}_{operation.verb}", doc, parameters, body)


async def carry_out(operation: Operation, session: Session, arguments: dict[str, Any]) -> None:
    """Build the command, call the operation, write its reply as JSON."""
    from flowfabric.cli import output
    from flowfabric.cli.identify import resolve

    client = await session.client()
    if arguments.get("execution_id"):
        arguments["execution_id"] = await resolve(client, arguments["execution_id"])
    command = build(operation, arguments)
    store = getattr(client.stores, operation.concept)
    reply = await getattr(store, operation.verb)(command)
    output.document(wire.encode_reply(operation, reply), pretty=not session.as_json)


def build(operation: Operation, arguments: dict[str, Any]) -> Any:
    """Turn options into the operation's command, as the server would from a request.

    Raises: `Misuse` for an option whose text is not what its field takes, and what decoding refuses.
    """
    values: dict[str, Any] = {}
    payload: Payload | None = None
    for field in msgspec.structs.fields(operation.command):
        given = arguments.get(field.name)
        form, _ = form_of(field.type)
        if given is None or given in ([], ""):
            if field.required:
                raise Misuse(f"{operation.name} needs {_option(field.name)}", next=_help(operation))
            continue
        if form is Form.PAYLOAD:
            payload = _payload(field.name, given)
            values[field.name] = msgspec.Raw(payload.data)
        else:
            values[field.name] = read(form, given, _option(field.name))
    route = _route(operation, values)
    path = {name: str(values.pop(name)) for name in route.fields}
    if route.method == "GET":
        query = [(name, _query_text(value)) for name, value in values.items()]
        return wire.decode_command(operation, path=path, query=query, body=b"")
    return wire.decode_command(operation, path=path, query=(), body=msgspec.json.encode(values))


def _route(operation: Operation, values: dict[str, Any]) -> Route:
    """Choose the first route whose path fields were all given."""
    for route in operation.routes:
        if all(name in values for name in route.fields):
            return route
    missing = ", ".join(_option(name) for name in operation.routes[0].fields if name not in values)
    raise Misuse(f"{operation.name} needs {missing}", next=_help(operation))


def form_of(kind: Any) -> tuple[Form, tuple[str, ...]]:
    """Say how a field of this type is given, and which texts it takes if they are few."""
    members = [member for member in _members(kind) if member is not type(None)]
    if len(members) != 1:
        return Form.JSON, ()
    member = members[0]
    origin = typing.get_origin(member)
    if origin is Annotated:
        return form_of(typing.get_args(member)[0])
    if isinstance(member, typing.NewType):
        return form_of(member.__supertype__)
    if origin is Literal:
        return Form.TEXT, tuple(str(value) for value in typing.get_args(member))
    if isinstance(member, type) and issubclass(member, enum.Enum):
        return Form.TEXT, tuple(str(value.value) for value in member)
    if member is Payload:
        return Form.PAYLOAD, ()
    if member is bool:
        return Form.SWITCH, ()
    if member in (int, float):
        return Form.NUMBER, ()
    if member is str:
        return Form.TEXT, ()
    if origin is tuple and form_of(typing.get_args(member)[0])[0] is Form.TEXT:
        return Form.LIST, ()
    if origin is dict:
        return Form.PAIRS, ()
    return Form.JSON, ()


def _members(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return typing.get_args(kind)
    return (kind,)


def _annotation(field: msgspec.structs.FieldInfo, form: Form, choices: tuple[str, ...]) -> Any:
    metavar = {
        Form.TEXT: "|".join(choices) if 0 < len(choices) <= 6 else "TEXT",
        Form.NUMBER: "NUMBER",
        Form.LIST: "TEXT",
        Form.PAIRS: "KEY=VALUE",
        Form.PAYLOAD: "JSON",
        Form.JSON: "JSON",
    }.get(form)
    text = _help_text(field, form, choices)
    if form is Form.SWITCH:
        return Annotated[
            bool | None,
            typer.Option(
                _option(field.name) + "/--no-" + field.name.replace("_", "-"), help=text, show_default=False
            ),
        ]
    kind = list[str] | None if form in (Form.LIST, Form.PAIRS) else str | None
    return Annotated[kind, typer.Option(_option(field.name), help=text, metavar=metavar, show_default=False)]


def _help_text(field: msgspec.structs.FieldInfo, form: Form, choices: tuple[str, ...]) -> str:
    parts: list[str] = []
    if field.required:
        parts.append("Required.")
    elif field.default not in (msgspec.NODEFAULT, None, "", ()):
        default = field.default
        shown = default.data.decode() if isinstance(default, Payload) else str(default)
        parts.append(f"Default: {shown}.")
    if len(choices) > 6:
        parts.append("One of " + ", ".join(choices) + ".")
    if form in (Form.LIST, Form.PAIRS):
        parts.append("May be repeated.")
    if form in (Form.PAYLOAD, Form.JSON):
        parts.append("JSON text, or @FILE.")
    if field.name == "execution_id":
        parts.append("May be shortened.")
    return " ".join(parts)


def _default(form: Form) -> Any:
    return None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help(operation: Operation) -> str:
    return f"flowfabric admin {operation.concept} {operation.verb.replace('_', '-')} --help"


def read(form: Form, given: Any, option: str) -> Any:
    """Turn what was given for an option into the JSON value of its field.

    Raises: `Misuse` when it does not read as such.
    """
    from flowfabric.cli.submitting import read_pairs

    match form:
        case Form.TEXT | Form.SWITCH | Form.LIST:
            return given
        case Form.PAIRS:
            return read_pairs(given, option)
        case Form.NUMBER | Form.JSON:
            return _json(given, option)
        case Form.PAYLOAD:
            raise AssertionError("payloads are read by themselves")


def _json(text: str, option: str) -> Any:
    from pathlib import Path

    data = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Misuse(
            f"{option} {text!r} does not read: {error}",
            next="give a number or JSON, quoted for the shell, or @FILE",
        ) from error


def _payload(name: str, text: str) -> Payload:
    from flowfabric.cli.submitting import JSON_TYPE, read_payload

    return read_payload(text, JSON_TYPE, _option(name))


def _query_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
