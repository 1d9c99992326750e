"""Bodies of requests: what is taken, and what is refused how."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.execution import ExecutionCancel, ExecutionCreate
from flowfabric.contract.lease import LeaseGrant
from flowfabric.contract.policies import PLANNED_POLICY_FIELDS, UNSUPPORTED_POLICY_FIELDS
from flowfabric.contract.states import GrantPurpose
from tests.contract.wiring import EXECUTION, FENCE, UUID, decode, refused


@pytest.mark.parametrize("body", [b"", b"{}", b"  {} \n"])
def test_absent_body(body: bytes) -> None:
    """An absent body is an empty object."""
    assert decode("execution.cancel", body) == ExecutionCancel(execution_id=EXECUTION)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"kind":"k"',
        b'{"kind":"k"} x',
        b'{"kind":"k",}',
        b"{'kind':'k'}",
        b"\xef\xbb\xbf{}",
        b'{"kind":"\xff"}',
        b'{"\xff":1}',
        b'{"kind":"\\ud800"}',
        b'{"kind":"k","input":"\\ud800"}',
        b'{"kind":"k","input":NaN}',
        b'{"kind":"k","input":Infinity}',
        b'{"kind":"k","input":01}',
        b'{"kind":"k","input":"a\nb"}',
        b'{"kind":"k","input":"\xff"}',
        b'{"kind":"k","input":"\xed\xa0\x80"}',
        b'{"kind":"k","input":undefined}',
        b'{"kind":"k","priority":NaN}',
        b'{"kind":"k","input":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b"\x00",
    ],
)
def test_malformed_json(body: bytes) -> None:
    """What is not well-formed JSON in UTF-8 is `invalid_json`, also inside a payload."""
    refused("invalid_json", "execution.create", body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", None),
        (b"null", None),
        (b"1", None),
        (b"{}", None),
        (b'{"kind":1}', "kind"),
        (b'{"kind":null}', "kind"),
        (b'{"kind":"k","nope":1}', "nope"),
        (b'{"kind":"k","priority":"1"}', "priority"),
        (b'{"kind":"k","priority":1.5}', "priority"),
        (b'{"kind":"k","priority":true}', "priority"),
        (b'{"kind":"k","tags":[]}', "tags"),
        (b'{"kind":"k","priority":' + b"9" * 5_000 + b"}", "priority"),
    ],
)
def test_wrong_shape(body: bytes, field: str | None) -> None:
    """JSON of another shape than the command's is `invalid_body`, naming the field."""
    refusal = refused("invalid_body", "execution.create", body)
    assert refusal.details.get("field") == field
    assert len(refusal.message) < 500


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"kind":"a","kind":"b"}', "kind"),
        (b'{"\\u006bind":"a","kind":"a"}', "kind"),
        (b'{"kind":"k","tags":{"a.b":"1","a.b":"2"}}', "a.b"),
        (b'{"kind":"k","input":1,"input":2}', "input"),
        (b'{"kind":"k","input":"%b","input":"%b"}' % (b"x" * 200, b"x" * 200), "input"),
        (b'{"kind":"k","policy":{"retention_ms":1,"retention_ms":2}}', "retention_ms"),
        (b'{"kind":"k","policy":{"retry_policy":{"backoff":{"type":"fixed","type":"fixed"}}}}', "type"),
    ],
)
def test_duplicate_keys(body: bytes, key: str) -> None:
    """A field given twice is refused, wherever it is and however it is spelled."""
    assert refused("invalid_body", "execution.create", body).details["field"] == key


def test_duplicate_key_in_a_batch() -> None:
    """A field given twice in one item of a batch is refused."""
    body = b'{"executions":[{"kind":"a"},{"kind":"a","lane":"l","kind":"b"}]}'
    assert refused("invalid_body", "execution.create_many", body).details["field"] == "kind"


@pytest.mark.parametrize("length", [4, 100])
def test_payload_equal_to_a_tag(length: int) -> None:
    """A payload whose bytes also stand in a tag, as key or value, disturbs nothing."""
    key = "a." + "b" * length
    body = f'{{"kind":"k","tags":{{"{key}":"{key}"}},"input":"{key}"}}'.encode()
    command: ExecutionCreate = decode("execution.create", body)
    assert command.tags == {key: key}
    assert command.input.data == f'"{key}"'.encode()


def test_path_field_in_body() -> None:
    """A field bound by the path may not stand in the body as well."""
    body = f'{{"execution_id":"{EXECUTION}"}}'.encode()
    assert refused("invalid_body", "execution.cancel", body).details["field"] == "execution_id"


@pytest.mark.parametrize("field", sorted([*PLANNED_POLICY_FIELDS, *UNSUPPORTED_POLICY_FIELDS]))
@pytest.mark.parametrize(
    ("operation", "start", "end", "place"),
    [
        ("execution.create", b'{"kind":"k","policy":{', b"}}", "policy"),
        (
            "execution.create_many",
            b'{"executions":[{"kind":"k","policy":{',
            b"}}]}",
            "executions[0].policy",
        ),
        (
            "worker.register",
            b'{"worker_id":"w","worker_instance":"i","lanes":["l"],"defaults":[{"kind":"k","policy":{',
            b"}}]}",
            "defaults[0].policy",
        ),
    ],
)
def test_policy_fields_not_built(operation: str, start: bytes, end: bytes, place: str, field: str) -> None:
    """A policy field that does not act is refused by name, in every operation that takes a policy."""
    refusal = refused("invalid_policy_json", operation, start + b'"%b":1' % field.encode() + end)
    assert refusal.details["field"] == f"{place}.{field}"
    wanted = PLANNED_POLICY_FIELDS.get(field)
    assert ("planned" if wanted else "not supported") in refusal.message


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (b'{"nope":1}', "invalid_policy_json"),
        (b'"x"', "invalid_policy_json"),
        (b'{"retry_policy":{"nope":1}}', "invalid_policy_json"),
        (b'{"retry_policy":{"max_retries":-1}}', "invalid_policy_json"),
        (b'{"retry_policy":{"max_retries":"3"}}', "invalid_policy_json"),
        (b'{"retry_policy":{"backoff":{"type":"linear"}}}', "invalid_policy_json"),
        (b'{"retry_policy":{"backoff":{"type":"fixed","multiplier":2}}}', "invalid_policy_json"),
        (b'{"timeout_policy":{"attempt_timeout_ms":0}}', "invalid_policy_json"),
        (b'{"routing_requirements":{"required_capabilities":"gpu"}}', "invalid_capabilities"),
        (b'{"routing_requirements":{"required_capabilities":[1]}}', "invalid_capabilities"),
        (b'{"routing_requirements":{"required_capabilities":["a,b"]}}', "invalid_capabilities"),
    ],
)
def test_malformed_policy(policy: bytes, code: str) -> None:
    """A malformed policy has its own code, and so do capabilities in it."""
    refused(code, "execution.create", b'{"kind":"k","policy":%b}' % policy)


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("execution.create", b'{"kind":"a b"}', "invalid_input"),
        ("execution.create", b'{"kind":"k","lane":"{x}"}', "invalid_input"),
        ("execution.create", b'{"kind":"k","tags":{"nodots":"1"}}', "invalid_tag_key"),
        ("execution.create", b'{"kind":"k","delay_until_ms":9007199254740993}', "invalid_input"),
        ("execution.create", b'{"kind":"k","priority":2147483648}', "invalid_input"),
        ("execution.create", b'{"kind":"k","idempotency_key":""}', "invalid_input"),
        ("execution.create", b'{"kind":"k","traceparent":"x"}', "invalid_input"),
        ("execution.complete", b"{}", "fence_required"),
        ("execution.complete", b'{"fence":{"lease_id":"%b"}}' % UUID.encode(), "partial_fence_triple"),
        ("execution.complete", b'{"fence":{"lease_epoch":99999999999999999999}}', "partial_fence_triple"),
        ("execution.progress", b'{"fence":%b,"percent":101}' % FENCE, "invalid_body"),
        ("execution.progress", b'{"fence":%b,"percent":1e400}' % FENCE, "invalid_body"),
        ("stream.append", b'{"fence":%b,"frames":[]}' % FENCE, "invalid_input"),
        ("lease.claim", b'{"worker_instance":"i","lanes":[]}', "invalid_input"),
        ("execution.create_many", b'{"executions":[]}', "invalid_input"),
    ],
)
def test_checked_after_decoding(name: str, body: bytes, code: str) -> None:
    """A command of the right shape with values out of range is refused by its own check."""
    path = {"worker_id": "w"} if name == "lease.claim" else None
    refused(code, name, body, path=path)


def test_batch_at_its_bound() -> None:
    """A batch of 1,000 is taken, one more is refused."""
    items = b",".join([b'{"kind":"k"}'] * limits.CREATE_MANY_MAX)
    assert len(decode("execution.create_many", b'{"executions":[%b]}' % items).executions) == 1_000
    refused("invalid_input", "execution.create_many", b'{"executions":[%b,{"kind":"k"}]}' % items)


def test_route_fixes_a_field() -> None:
    """A route may fix a field, which the body then may not give."""
    path: dict[str, str] = {"execution_id": EXECUTION}
    command: LeaseGrant = decode("lease.grant", b'{"worker_id":"w","worker_instance":"i"}', path=path)
    assert (command.execution_id, command.purpose) == (EXECUTION, GrantPurpose.RECLAIM)
    body = b'{"worker_id":"w","worker_instance":"i","purpose":"claim"}'
    assert refused("invalid_body", "lease.grant", body, path=path).details["field"] == "purpose"


def test_body_operations_take_no_query() -> None:
    """An operation with a body takes nothing from the query."""
    refused("invalid_input", "execution.create", b'{"kind":"k"}', query=[("lane", "l")])
