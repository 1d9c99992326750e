"""Every operation of the manifest over JSON: commands and replies made up from their types go there and back."""

from __future__ import annotations

import base64
import enum
import json
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from flowfabric.contract import errors, wire
from flowfabric.contract.errors import FlowFabricError, InvalidInput, OutcomeUnknown, Unavailable
from flowfabric.contract.manifest import Kind, Operation, Route
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import JSON_CONTENT_TYPE, Payload
from tests.contract.wiring import EXECUTION

every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = st.integers(-(2**53) + 1, 2**53 - 1)
PAYLOADS = st.one_of(
    st.sampled_from([b"null", b'{"a": [1, 2]}', b'"text"', b"1.50"]).map(Payload),
    st.binary(max_size=30).map(lambda data: Payload(data, "application/octet-stream")),
)


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values of a field's type; what the contract's checks say of them does not matter here."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Payload:
        return PAYLOADS
    if annotation is msgspec.Raw:
        return st.sampled_from([b"null", b'{"a":1}']).map(msgspec.Raw)
    if origin is typing.Annotated:
        return st.floats(0, 100, allow_nan=False)
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        return st.one_of([values_of(member) for member in arguments])
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    while hasattr(annotation, "__supertype__"):
        annotation = annotation.__supertype__
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return structs_of(annotation)
    if annotation in (str, int, float, bool, type(None)):
        simple: Mapping[Any, st.SearchStrategy[Any]] = {
            str: TEXTS,
            int: INTEGERS,
            float: st.floats(allow_nan=False, allow_infinity=False),
            bool: st.booleans(),
            type(None): st.none(),
        }
        return simple[annotation]
    assert isinstance(annotation, enum.EnumMeta)
    return st.sampled_from(list(annotation))


@cache
def structs_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Return structs of a type with every field given."""
    fields = {field.name: values_of(field.type) for field in msgspec.structs.fields(kind)}
    return st.fixed_dictionaries(fields).map(lambda values: kind(**values))


def plain(value: Any) -> Any:
    """Return a struct in a form in which raw JSON compares by its bytes."""
    return msgspec.to_builtins(value, enc_hook=lambda raw: bytes(raw).decode())


def path_of(route: Route, path: str) -> dict[str, str]:
    """Take a route's parameters out of a path."""
    pairs = zip(route.path.split("/"), path.split("/"), strict=True)
    return {part[1:-1]: unquote(text) for part, text in pairs if part.startswith("{")}


@every_operation
def test_every_reply_returns(operation: Operation) -> None:
    """Any reply of an operation is read as it was written."""

    @given(st.one_of([structs_of(reply) for reply in operation.replies]))
    @settings(max_examples=30, suppress_health_check=SLOW)
    def returns(reply: Any) -> None:
        read = wire.decode_reply(operation, wire.encode_reply(operation, reply))
        assert type(read) is type(reply)
        assert plain(read) == plain(reply)

    returns()


@every_operation
def test_unknown_reply_fields(operation: Operation) -> None:
    """A reply with fields that this version does not know is read all the same."""

    @given(st.one_of([structs_of(reply) for reply in operation.replies]))
    @settings(max_examples=10, suppress_health_check=SLOW)
    def ignores(reply: Any) -> None:
        document = json.loads(wire.encode_reply(operation, reply))
        document["unknown"] = {"deep": [1]}
        read = wire.decode_reply(operation, json.dumps(document).encode())
        assert type(read) is type(reply)

    ignores()


@every_operation
def test_every_request_is_read(operation: Operation) -> None:
    """Any command, as its request carries it, is read as it was or refused by the command's own check."""

    @given(structs_of(operation.command))
    @settings(max_examples=40, suppress_health_check=SLOW)
    def reads(command: Any) -> None:
        sent = wire.encode_command(operation, command)
        path = sent.path.split("/")
        route = next(
            route
            for route in operation.routes
            if route.method == sent.method
            and len(route.path.split("/")) == len(path)
            and all(
                part.startswith("{") or part == text
                for part, text in zip(route.path.split("/"), path, strict=True)
            )
        )
        try:
            read = wire.decode_command(
                operation,
                path=path_of(route, sent.path),
                query=parse_qsl(sent.query, keep_blank_values=True),
                body=sent.body or b"",
                route=route,
            )
        except FlowFabricError as error:
            with pytest.raises(FlowFabricError):
                command.check()
            assert error.http_status in range(400, 500)
        else:
            assert plain(read) == plain(command)

    reads()


@every_operation
def test_nothing_else_is_raised(operation: Operation) -> None:
    """Whatever a request holds, it is read or refused with a 4xx code, never anything else."""
    bodies = st.one_of(
        st.binary(max_size=100),
        st.recursive(
            st.none() | st.booleans() | INTEGERS | st.floats() | TEXTS,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(operation.command.__struct_fields__) | TEXTS, inner, max_size=4
                )
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    )
    names = st.sampled_from(operation.command.__struct_fields__) | TEXTS
    queries = st.lists(st.tuples(names, TEXTS | INTEGERS.map(str)), max_size=3)
    texts = TEXTS | st.just(str(EXECUTION)) | INTEGERS.map(str)

    @given(st.data(), bodies, queries)
    @settings(max_examples=60, suppress_health_check=SLOW)
    def refuses(data: st.DataObject, body: bytes, query: list[tuple[str, str]]) -> None:
        route = data.draw(st.sampled_from(operation.routes))
        path = {name: data.draw(texts) for name in route.fields}
        is_get = route.method == "GET"
        try:
            wire.decode_command(
                operation, path=path, query=query if is_get else [], body=b"" if is_get else body, route=route
            )
        except FlowFabricError as error:
            assert 400 <= error.http_status < 500, error
            wire.encode_error(error)

    refuses()


@every_operation
@pytest.mark.parametrize("body", [b"", b"<html></html>", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_foreign_reply(operation: Operation, body: bytes) -> None:
    """An answer that is none of FlowFabric's says whether something may have happened."""
    expected = OutcomeUnknown if operation.kind is Kind.MUTATION else Unavailable
    with pytest.raises(Unavailable) as caught:
        wire.decode_reply(operation, body)
    assert type(caught.value) is expected


def test_union_is_tagged_by_status() -> None:
    """A reply that is one of several says which in `status`; the only one of its kind has none added."""
    for operation in OPERATIONS.values():
        if len(operation.replies) > 1:
            tags = [reply.__struct_config__.tag for reply in operation.replies]
            assert all(reply.__struct_config__.tag_field == "status" for reply in operation.replies)
            assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=errors.BY_CODE.keys())
def test_errors_return(kind: type[FlowFabricError]) -> None:
    """Every error arrives with its class, message and details."""
    error = kind("what happened", field="a.b", count=3, names=["x"], nothing=None)
    read = wire.decode_error(kind.http_status, wire.encode_error(error))
    assert (type(read), read.message, read.details) == (kind, error.message, error.details)
    document = json.loads(wire.encode_error(error))["error"]
    assert set(document) == {"code", "message", "retryable", "details"}
    assert (document["code"], document["retryable"]) == (kind.code, kind.retryable)


def test_unknown_error_code() -> None:
    """An error code of a newer version is kept for the reader."""
    body = b'{"error":{"code":"from_the_future","message":"m","retryable":true,"details":{"a":1},"more":2}}'
    read = wire.decode_error(409, body)
    assert (read.message, read.details["code"], read.details["a"]) == ("m", "from_the_future", 1)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"error":"text"}', b"\xff", b"[" * 100_000])
def test_foreign_error(body: bytes) -> None:
    """An error answer that is none of FlowFabric's is `unavailable` with the HTTP status."""
    read = wire.decode_error(502, body)
    assert (type(read), read.details) == (Unavailable, {"http_status": 502})


def test_missing_path_parameters() -> None:
    """Parameters that fit no route of the operation are refused."""
    with pytest.raises(InvalidInput):
        wire.decode_command(OPERATIONS["execution.describe"], path={"nope": "x"}, query=[], body=b"")


def test_base64_is_the_standard_alphabet() -> None:
    """Bytes go out in the standard base64 alphabet with padding."""
    payload = Payload(bytes(range(250, 256)), JSON_CONTENT_TYPE)
    create = OPERATIONS["execution.create"]
    sent = wire.encode_command(create, create.command(kind="k", input=payload))
    assert base64.b64decode(json.loads(sent.body or b"")["input_base64"], validate=True) == payload.data
