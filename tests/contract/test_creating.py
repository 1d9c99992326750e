"""Creating: what counts as the same create, and how defaults are filled in."""

from __future__ import annotations

from typing import Any

from hypothesis import given, strategies as st
from msgspec.structs import replace

from flowfabric.contract.creating import deadline_ms, digest, effective_policy, place, route_of
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import PartitionCounts, mint_execution_id
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy, KindDefaults
from tests.contract.test_policies import POLICIES

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
COMMANDS = st.builds(
    ExecutionCreate,
    kind=st.sampled_from(["k", "k2"]),
    namespace=st.sampled_from(["default", "n"]),
    input=st.builds(Payload, st.binary(max_size=8), st.sampled_from(["application/json", "text/plain"])),
    priority=st.none() | st.integers(-1, 2),
    creator=TEXT,
    idempotency_key=st.none() | TEXT,
    tags=st.dictionaries(TEXT, TEXT, max_size=3),
    policy=st.none() | POLICIES,
)


@given(one=COMMANDS, two=COMMANDS)
def test_equal_digests_mean_equal_content(one: ExecutionCreate, two: ExecutionCreate) -> None:
    """Two creates have the same digest exactly when their content is the same."""
    assert (digest(one) == digest(two)) == (one == two)


@given(command=COMMANDS, at_ms=st.integers(0, 10**12))
def test_ids_and_instants_are_not_content(command: ExecutionCreate, at_ms: int) -> None:
    """The digest leaves out the id, the instants and the trace."""
    other = replace(
        command,
        execution_id=mint_execution_id(PartitionCounts()),
        delay_until_ms=at_ms,
        deadline_at_ms=at_ms,
        traceparent=f"00-{'1' * 32}-{'2' * 16}-00",
    )
    assert digest(other) == digest(command)


def test_tags_in_any_order_are_the_same_content() -> None:
    """The order in which tags were written does not matter."""
    one = ExecutionCreate(kind="k", tags={"a.a": "1", "a.b": "2"})  # type: ignore[arg-type]
    two = ExecutionCreate(kind="k", tags={"a.b": "2", "a.a": "1"})  # type: ignore[arg-type]
    assert digest(one) == digest(two)


@given(command=COMMANDS, counts=st.builds(PartitionCounts, flow=st.integers(1, 500)))
def test_minted_ids_are_always_placed_right(command: ExecutionCreate, counts: PartitionCounts) -> None:
    """An id minted from the command's namespace and key passes the placement check."""
    minted = mint_execution_id(
        counts, namespace=command.namespace, idempotency_key=command.idempotency_key or None
    )
    if command.idempotency_key != "":
        assert place(replace(command, execution_id=minted), counts) is None


@given(given_=st.none() | POLICIES, published=st.none() | POLICIES)
def test_given_fields_win_over_published_ones(
    given_: ExecutionPolicy | None, published: ExecutionPolicy | None
) -> None:
    """Each policy field is the command's, else the kind's, else unset; retention is always set."""
    defaults = KindDefaults(kind="k", policy=published) if published is not None else None  # type: ignore[arg-type]
    result = effective_policy(given_, defaults, 123)
    for field in ExecutionPolicy.__struct_fields__:
        candidates: list[Any] = [
            getattr(policy, field) for policy in (given_, published) if policy is not None
        ]
        expected = next((value for value in candidates if value is not None), None)
        if field == "retention_ms" and expected is None:
            expected = 123
        assert getattr(result, field) == expected


@given(policy=POLICIES, absolute=st.none() | st.integers(0, 10**12), started=st.integers(0, 10**12))
def test_the_deadline_is_the_earlier_one(policy: ExecutionPolicy, absolute: int | None, started: int) -> None:
    """The deadline is the earlier of the absolute and the relative one, or none."""
    relative = policy.timeout_policy.execution_deadline_ms if policy.timeout_policy is not None else None
    candidates = [absolute, started + relative if relative is not None else None]
    expected = min((value for value in candidates if value is not None), default=None)
    assert deadline_ms(policy, absolute, started) == expected


def test_routes_are_one_to_one() -> None:
    """Different kinds and capability sets never share a route."""
    routes = {
        route_of(kind, tokens)
        for kind in ("a", "a:b", "a/b")
        for tokens in ((), ("x",), ("x", "y"), ("xy",), ("x|y",))
    }
    assert len(routes) == 15
