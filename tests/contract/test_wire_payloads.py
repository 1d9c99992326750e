"""Payloads over JSON: any JSON value as the exact bytes received, or base64 with a media type."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, strategies as st

from flowfabric.contract import limits, wire
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ResultCompleted
from flowfabric.contract.ids import AttemptId, Kind, LeaseId
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import Fence, Payload
from flowfabric.contract.states import FrameMode
from flowfabric.contract.stream import Frame, FramePage
from tests.contract.wiring import EXECUTION, FENCE, UUID, decode, refused

CREATE = OPERATIONS["execution.create"]
RESULT = OPERATIONS["execution.read_result"]


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "0",
        "-0.0",
        "1e999",
        "1E+2",
        "123456789012345678901234567890",
        '""',
        '"\\u0041\\/"',
        '"\U0001f600\u2028"',
        '{"b":1,  "a":2,"a":3}',
        "[ 1 ,\n\t2 ]",
        "[" * 500 + "]" * 500,
    ],
)
def test_exact_slice(text: str) -> None:
    """A JSON payload is kept as the bytes received: spacing, escapes, number spelling, order, double keys."""
    command: ExecutionCreate = decode("execution.create", f'{{"kind":"k","input": {text} }}'.encode())
    assert command.input == Payload(text.encode())


def test_copied_out_of_the_body() -> None:
    """A payload owns its bytes: it does not keep the request's buffer alive."""
    command: ExecutionCreate = decode("execution.create", b'{"kind":"k","input":"%b"}' % (b"x" * 200))
    assert type(command.input.data) is bytes


def test_base64() -> None:
    """Any bytes can be sent as base64, with or without a media type."""
    data = bytes(range(256))
    encoded = base64.b64encode(data)
    command: ExecutionCreate = decode("execution.create", b'{"kind":"k","input_base64":"%b"}' % encoded)
    assert command.input == Payload(data, "application/octet-stream")
    body = b'{"kind":"k","input_base64":"%b","content_type":"image/png"}' % encoded
    assert decode("execution.create", body).input == Payload(data, "image/png")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (b'"input":1,"input_base64":"AA=="', "invalid_body"),
        (b'"input_base64":"A"', "invalid_body"),
        (b'"input_base64":"AA"', "invalid_body"),
        (b'"input_base64":"AA==AA=="', "invalid_body"),
        (b'"input_base64":"AA= ="', "invalid_body"),
        (b'"input_base64":"A-_A"', "invalid_body"),
        (b'"input_base64":"\\u0660AAA"', "invalid_body"),
        (b'"input_base64":1', "invalid_body"),
        (b'"content_type":"image/png"', "invalid_body"),
        (b'"input":1,"content_type":"image/png"', "invalid_body"),
        (b'"input_base64":"AA==","content_type":"x"', "invalid_input"),
        (b'"input_base64":"AA==","content_type":"a/b\\r\\nset-cookie: c"', "invalid_input"),
        (b'"input_base64":"AA==","content_type":"a/%b"' % (b"b" * 300), "invalid_input"),
    ],
)
def test_refused_payloads(fields: bytes, code: str) -> None:
    """Both forms at once, bad base64 and malformed media types are refused."""
    refused(code, "execution.create", b'{"kind":"k",%b}' % fields)


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
def test_size_bound(more: int, *, fits: bool) -> None:
    """A payload of exactly the largest size is taken, one byte more is refused."""
    text = b'"' + b"x" * (limits.PAYLOAD_BYTES_MAX - 2 + more) + b'"'
    body = b'{"kind":"k","input":%b}' % text
    if fits:
        assert decode("execution.create", body).input.data == text
    else:
        assert refused("invalid_input", "execution.create", body).details["field"] == "input"


def test_result_may_be_absent() -> None:
    """Completing without a result is not the same as with the result null."""
    assert decode("execution.complete", b'{"fence":%b}' % FENCE).result is None
    body = b'{"fence":%b,"result":null}' % FENCE
    assert decode("execution.complete", body).result == Payload(b"null")


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        (Payload(b'{"a": 1}'), {"input": {"a": 1}}),
        (Payload(b" 1"), {"input_base64": "IDE=", "content_type": "application/json"}),
        (Payload(b"\xff"), {"input_base64": "/w==", "content_type": "application/json"}),
        (Payload(b"not json"), {"input_base64": "bm90IGpzb24=", "content_type": "application/json"}),
        (Payload(b"1", "text/plain"), {"input_base64": "MQ==", "content_type": "text/plain"}),
        (Payload(b""), {"input_base64": "", "content_type": "application/json"}),
    ],
)
def test_sent_form(payload: Payload, fields: dict[str, object]) -> None:
    """JSON that can stand in a document does; everything else goes as base64 with its media type."""
    sent = wire.encode_command(CREATE, ExecutionCreate(kind=Kind("k"), input=payload))
    assert json.loads(sent.body or b"") == {"kind": "k", **fields}


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=10,
)
payloads = st.one_of(
    st.binary(max_size=200).map(lambda data: Payload(data, "application/octet-stream")),
    st.binary(max_size=200).map(Payload),
    _values.map(lambda value: Payload(json.dumps(value, indent=1).encode())),
)


@given(payloads)
def test_commands_round_trip(payload: Payload) -> None:
    """The bytes and the media type of a payload arrive as they were sent."""
    command = ExecutionCreate(kind=Kind("k"), input=payload)
    assert decode("execution.create", wire.encode_command(CREATE, command).body or b"") == command
    fence = Fence(lease_id=LeaseId(UUID), lease_epoch=1, attempt_id=AttemptId(UUID))
    complete = ExecutionComplete(execution_id=EXECUTION, fence=fence, result=payload)
    sent = wire.encode_command(OPERATIONS["execution.complete"], complete)
    assert decode("execution.complete", sent.body or b"") == complete


@given(st.lists(payloads, max_size=4))
def test_replies_round_trip(many: list[Payload]) -> None:
    """The bytes and the media type of payloads in replies, also nested ones, arrive as they were sent."""
    page = FramePage(
        frames=tuple(
            Frame(
                frame_id=f"{index}-0", attempt_index=0, sequence=index + 1, frame_type="event",
                mode=FrameMode.DURABLE, at_ms=index, payload=payload,
            )
            for index, payload in enumerate(many)
        ),
        next_cursor="0-0", trimmed=False, closed_at_ms=None, closed_reason=None,
    )  # fmt: skip
    read = OPERATIONS["stream.read"]
    assert wire.decode_reply(read, wire.encode_reply(read, page)) == page
    for payload in (*many, None):
        reply = ResultCompleted(execution_id=EXECUTION, completed_at_ms=1, attempt_index=0, result=payload)
        assert wire.decode_reply(RESULT, wire.encode_reply(RESULT, reply)) == reply
