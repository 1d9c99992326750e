"""execution.create: every field at its bound and one past it, and the order of the guards."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import (
    IdempotencyConflict,
    InvalidCapabilities,
    InvalidInput,
    InvalidPolicy,
    InvalidTagKey,
    Refused,
)
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import (
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    RetryPolicy,
    StreamPolicy,
)
from tests.conformance.world import World, payload, policy, requiring, timing

AT_LIMIT: dict[str, dict[str, Any]] = {
    "lane": {"lane": "l" * 64},
    "lane characters": {"lane": "Az09._:-"},
    "namespace": {"namespace": "n" * 128},
    "kind": {"kind": "k" * 128},
    "kind characters": {"kind": "Az09._:/@-"},
    "key": {"idempotency_key": "k" * 512},
    "key characters": {"idempotency_key": "any text {at} all \u00e9"},
    "creator": {"creator": "c" * 128},
    "empty input": {"input": Payload(b"", "application/octet-stream")},
    "tags": {"tags": {f"a.k{index}": "" for index in range(64)}},
    "tag key": {"tags": {"a." + "k" * 126: "v"}},
    "tag value": {"tags": {"a.b": "v" * 1_024}},
    "capability tokens": {"policy": requiring(*(f"t{index}" for index in range(256)))},
    "capability bytes": {"policy": requiring("t" * 4_096)},
    "capability characters": {"policy": requiring("é\u00a0ü:=/")},
    "retries": {"policy": policy(retry_policy=RetryPolicy(max_retries=10_000))},
    "no retries": {"policy": policy(retry_policy=RetryPolicy(max_retries=0))},
    "multiplier": {
        "policy": policy(retry_policy=RetryPolicy(backoff=ExponentialBackoff(multiplier=1_000.0)))
    },
    "attempt timeout": {"policy": policy(timeout_policy=timing(attempt_timeout_ms=1))},
    "maxlen": {"policy": policy(stream_policy=StreamPolicy(retention_maxlen=1_000_000))},
    "delay": {"delay_until_ms": limits.TIMESTAMP_MAX_MS},
    "deadline": {"deadline_at_ms": limits.TIMESTAMP_MAX_MS},
}

PAST_LIMIT: dict[str, tuple[dict[str, Any], type[Refused]]] = {
    "empty lane": ({"lane": ""}, InvalidInput),
    "lane": ({"lane": "l" * 65}, InvalidInput),
    "lane characters": ({"lane": "a b"}, InvalidInput),
    "lane braces": ({"lane": "{a}"}, InvalidInput),
    "namespace": ({"namespace": "n" * 129}, InvalidInput),
    "empty namespace": ({"namespace": ""}, InvalidInput),
    "kind": ({"kind": "k" * 129}, InvalidInput),
    "empty kind": ({"kind": ""}, InvalidInput),
    "kind newline": ({"kind": "k\n"}, InvalidInput),
    "key": ({"idempotency_key": "k" * 513}, InvalidInput),
    "empty key": ({"idempotency_key": ""}, InvalidInput),
    "key NUL": ({"idempotency_key": "a\x00"}, InvalidInput),
    "key surrogate": ({"idempotency_key": "\ud800"}, InvalidInput),
    "creator": ({"creator": "c" * 129}, InvalidInput),
    "input": ({"input": Payload(b"x" * (limits.PAYLOAD_BYTES_MAX + 1))}, InvalidInput),
    "content type": ({"input": Payload(b"", "text")}, InvalidInput),
    "traceparent": ({"traceparent": "00-xyz"}, InvalidInput),
    "tags": ({"tags": {f"a.k{index}": "" for index in range(65)}}, InvalidInput),
    "tag value": ({"tags": {"a.b": "v" * 1_025}}, InvalidInput),
    "tag value NUL": ({"tags": {"a.b": "\x00"}}, InvalidInput),
    "tag key": ({"tags": {"a." + "k" * 127: "v"}}, InvalidTagKey),
    "tag without dot": ({"tags": {"name": "v"}}, InvalidTagKey),
    "tag with capital": ({"tags": {"a.B": "v"}}, InvalidTagKey),
    "tag dot first": ({"tags": {".a": "v"}}, InvalidTagKey),
    "tag two dots": ({"tags": {"a..b": "v"}}, InvalidTagKey),
    "tag ends in dot": ({"tags": {"a.": "v"}}, InvalidTagKey),
    "tag digit first": ({"tags": {"1.a": "v"}}, InvalidTagKey),
    "capability tokens": ({"policy": requiring(*(f"t{index}" for index in range(257)))}, InvalidCapabilities),
    "capability bytes": ({"policy": requiring("t" * 4_097)}, InvalidCapabilities),
    "capability comma": ({"policy": requiring("a,b")}, InvalidCapabilities),
    "capability blank": ({"policy": requiring("a b")}, InvalidCapabilities),
    "capability control": ({"policy": requiring("a\x7f")}, InvalidCapabilities),
    "capability empty": ({"policy": requiring("")}, InvalidCapabilities),
    "retries": ({"policy": policy(retry_policy=RetryPolicy(max_retries=10_001))}, InvalidPolicy),
    "negative retries": ({"policy": policy(retry_policy=RetryPolicy(max_retries=-1))}, InvalidPolicy),
    "backoff": (
        {"policy": policy(retry_policy=RetryPolicy(backoff=FixedBackoff(delay_ms=-1)))},
        InvalidPolicy,
    ),
    "multiplier": (
        {"policy": policy(retry_policy=RetryPolicy(backoff=ExponentialBackoff(multiplier=0.5)))},
        InvalidPolicy,
    ),
    "multiplier NaN": (
        {"policy": policy(retry_policy=RetryPolicy(backoff=ExponentialBackoff(multiplier=float("nan"))))},
        InvalidPolicy,
    ),
    "categories": (
        {"policy": policy(retry_policy=RetryPolicy(retryable_categories=("c",) * 65))},
        InvalidPolicy,
    ),
    "attempt timeout": ({"policy": policy(timeout_policy=timing(attempt_timeout_ms=0))}, InvalidPolicy),
    "reclaims": ({"policy": policy(max_reclaim_count=-1)}, InvalidPolicy),
    "grace": ({"policy": policy(reclaim_grace_ms=limits.DURATION_MAX_MS + 1)}, InvalidPolicy),
    "retention": ({"policy": policy(retention_ms=-1)}, InvalidPolicy),
    "maxlen": ({"policy": policy(stream_policy=StreamPolicy(retention_maxlen=0))}, InvalidPolicy),
    "delay": ({"delay_until_ms": limits.TIMESTAMP_MAX_MS + 1}, InvalidInput),
    "negative delay": ({"delay_until_ms": -1}, InvalidInput),
    "deadline": ({"deadline_at_ms": limits.TIMESTAMP_MAX_MS + 1}, InvalidInput),
}

BARE_UUID = "00000000-0000-4000-8000-000000000000"
MALFORMED_IDS = [
    "",
    BARE_UUID,
    f"fp:1:{BARE_UUID}",
    f"{{fp:}}:{BARE_UUID}",
    f"{{fp:x}}:{BARE_UUID}",
    f"{{fp:-1}}:{BARE_UUID}",
    f"{{fp:01}}:{BARE_UUID}",
    f"{{fp:1}}{BARE_UUID}",
    f"{{fp:1}}:{BARE_UUID.upper().replace('0', 'A')}",
    f"{{fp:1}}:{BARE_UUID}\n",
    f" {{fp:1}}:{BARE_UUID}",
    "{fp:1}:not-a-uuid",
    f"{{fp:70000}}:{BARE_UUID}",
]


@pytest.mark.parametrize("fields", AT_LIMIT.values(), ids=AT_LIMIT)
async def test_a_field_at_its_bound_is_accepted(world: World, fields: dict[str, Any]) -> None:
    """Every field is accepted up to and including its bound."""
    execution_id = await world.create(**fields)
    given: ExecutionPolicy | None = fields.get("policy")
    if given is not None and given.routing_requirements is not None:
        wanted = tuple(sorted(given.routing_requirements.required_capabilities))
        assert (await world.describe(execution_id)).required_capabilities == wanted


async def test_the_largest_input_is_accepted(local: World) -> None:
    """An input of 1 MiB is accepted and comes back."""
    data = Payload(b"x" * limits.PAYLOAD_BYTES_MAX, "application/octet-stream")
    execution_id = await local.create(input=data)
    assert (await local.execution.read_context(execution_id)).input == data


@pytest.mark.parametrize(("fields", "refusal"), PAST_LIMIT.values(), ids=PAST_LIMIT)
async def test_a_field_past_its_bound_is_refused(
    world: World, fields: dict[str, Any], refusal: type[Refused]
) -> None:
    """Every field that is malformed or past its bound is refused with its code, and nothing is created.

    Acceptance: create-refuses-malformed-fields
    Acceptance: required-capabilities-are-validated
    Acceptance: malformed-policy-is-never-unconstrained
    Acceptance: tag-keys-are-checked-at-create
    """
    await world.refused(refusal, world.execution.create(**{"kind": "k", **fields}))


@pytest.mark.parametrize("execution_id", MALFORMED_IDS)
async def test_a_malformed_id_is_refused(world: World, execution_id: str) -> None:
    """Only the one spelling of an execution id is accepted.

    Acceptance: execution-id-is-parsed-strictly
    """
    await world.refused(InvalidInput, world.execution.create(kind="k", execution_id=execution_id))


BAD_INPUT: dict[str, Any] = {"kind": ""}
BAD_TAG: dict[str, Any] = {"tags": {"x": ""}}
BAD_CAPABILITY: dict[str, Any] = {"policy": requiring("")}
BAD_POLICY: dict[str, Any] = {"policy": policy(retention_ms=-1)}
CONFLICT: dict[str, Any] = {"idempotency_key": "taken", "input": payload("2")}


@pytest.mark.parametrize(
    ("first", "second", "refusal"),
    [
        (BAD_INPUT, BAD_TAG, InvalidInput),
        (BAD_INPUT, BAD_POLICY, InvalidInput),
        (BAD_TAG, BAD_CAPABILITY, InvalidTagKey),
        (BAD_TAG, BAD_POLICY, InvalidTagKey),
        (BAD_TAG, CONFLICT, InvalidTagKey),
        (BAD_CAPABILITY, CONFLICT, InvalidCapabilities),
        (BAD_POLICY, CONFLICT, InvalidPolicy),
        (CONFLICT, {}, IdempotencyConflict),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value),
)
async def test_guards_answer_in_their_order(
    world: World, first: dict[str, Any], second: dict[str, Any], refusal: type[Refused]
) -> None:
    """When two guards fail, the earlier one in the declared order is the answer."""
    await world.create(idempotency_key="taken")
    await world.refused(refusal, world.execution.create(**{"kind": "k", **second, **first}))


async def test_capabilities_are_checked_before_the_rest_of_the_policy(world: World) -> None:
    """Of a malformed capability and a number out of range in one policy, the capability is the answer."""
    requirements = requiring("").routing_requirements
    both = policy(routing_requirements=requirements, retention_ms=-1)
    await world.refused(InvalidCapabilities, world.execution.create(kind="k", policy=both))
