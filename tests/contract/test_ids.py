"""Identifiers: strict parsing, deterministic minting, stable placement."""

from __future__ import annotations

import itertools
import uuid

import pytest
from hypothesis import given, strategies as st

from flowfabric.contract import ids, limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.ids import PartitionCounts

UUIDS = st.uuids(version=4)
COUNTS = st.integers(1, limits.PARTITIONS_MAX).map(lambda flow: PartitionCounts(flow=flow))


def test_crc16_is_the_one_of_cluster_slots() -> None:
    """CRC16 gives its published check value, and slots of known keys.

    Acceptance: hash-vectors-are-stable
    """
    assert ids.crc16(b"123456789") == 0x31C3
    assert ids.crc16(b"") == 0
    assert ids.crc16(b"foo") % 16_384 == 12_182


def test_placement_is_stable() -> None:
    """Known ids and keys stay in their partitions for ever: stored ids depend on it."""
    value = uuid.UUID("12345678-1234-4234-8234-123456789abc")
    counts = PartitionCounts()
    assert ids.uuid_partition(value, counts) == ids.crc16(value.bytes) % 256
    length_prefixed = b"\x00\x00\x00\x01n\x00\x00\x00\x03key"
    assert ids.key_partition("n", "key", counts) == ids.crc16(length_prefixed) % 256
    assert ids.key_partition("nk", "ey", counts) != ids.key_partition("n", "key", counts)


@given(value=UUIDS, counts=COUNTS)
def test_minting_is_deterministic_and_parses_back(value: uuid.UUID, counts: PartitionCounts) -> None:
    """The same uuid gives the same id, which parses back to its partition and uuid.

    Acceptance: minting-is-deterministic
    """
    minted = ids.mint_execution_id(counts, value=value)
    assert minted == ids.mint_execution_id(counts, value=value)
    partition, text = ids.parse_execution_id(minted)
    assert (partition, text) == (ids.uuid_partition(value, counts), str(value))
    assert 0 <= partition < counts.flow
    assert ids.execution_uuid(minted) == str(value)


@given(namespace=st.text(max_size=20), key=st.text(min_size=1, max_size=20), counts=COUNTS, value=UUIDS)
def test_keyed_ids_are_placed_by_their_key(
    namespace: str, key: str, counts: PartitionCounts, value: uuid.UUID
) -> None:
    """All ids minted under one key are in one partition, whatever their uuid."""
    minted = ids.mint_execution_id(counts, namespace=namespace, idempotency_key=key, value=value)
    assert ids.parse_execution_id(minted)[0] == ids.key_partition(namespace, key, counts)


def test_uuids_spread_over_partitions() -> None:
    """Standalone executions are spread: no partition gets far more than its share.

    Acceptance: standalone-executions-spread-over-partitions
    """
    counts = PartitionCounts(flow=16)
    seen = [0] * 16
    for number in range(16_000):
        seen[ids.uuid_partition(uuid.uuid5(uuid.NAMESPACE_URL, str(number)), counts)] += 1
    assert max(seen) < 1_300 and min(seen) > 700


@given(st.text(max_size=60))
def test_arbitrary_text_is_no_id(text: str) -> None:
    """Text is either refused, or the one canonical spelling of what it parses to."""
    try:
        partition, value = ids.parse_execution_id(text)
    except InvalidInput:
        return
    assert text == f"{{fp:{partition}}}:{value}"


@given(value=UUIDS, partition=st.integers(0, 99_999), at=st.integers(0, 60), character=st.characters())
def test_nearly_an_id_is_no_id(value: uuid.UUID, partition: int, at: int, character: str) -> None:
    """An id with one character inserted is refused, unless it is again a canonical id."""
    good = f"{{fp:{partition}}}:{value}"
    at = min(at, len(good))
    bad = good[:at] + character + good[at:]
    try:
        parsed, text = ids.parse_execution_id(bad)
    except InvalidInput:
        return
    assert bad == f"{{fp:{parsed}}}:{text}"


@pytest.mark.parametrize("partition", [0, limits.PARTITIONS_MAX - 1])
def test_partitions_at_their_bounds(partition: int) -> None:
    """Partitions from 0 to one below the maximum are in range; the next one is not."""
    value = uuid.uuid4()
    assert ids.parse_execution_id(f"{{fp:{partition}}}:{value}")[0] == partition
    with pytest.raises(InvalidInput):
        ids.parse_execution_id(f"{{fp:{limits.PARTITIONS_MAX}}}:{value}")


@pytest.mark.parametrize("count", [0, -1, limits.PARTITIONS_MAX + 1])
@pytest.mark.parametrize("family", ["flow", "budget", "quota"])
def test_partition_counts_are_bounded(family: str, count: int) -> None:
    """A store has 1 to 65,535 partitions of each family."""
    with pytest.raises(InvalidInput):
        PartitionCounts(**{family: count})
    assert getattr(PartitionCounts(**{family: limits.PARTITIONS_MAX}), family) == limits.PARTITIONS_MAX


@pytest.mark.parametrize("text", ["a", "A.b_c:d-e", "9" * 64])
def test_lane_names(text: str) -> None:
    """Lane names are 1 to 64 of a small set of characters.

    Acceptance: lane-name-is-bounded
    """
    ids.check_lane(text)
    for bad in ("", text + "{", text + "/", text + "\n", "x" * 65, "\u00e9"):
        with pytest.raises(InvalidInput):
            ids.check_lane(bad)


@given(st.text(max_size=200))
def test_names_never_hold_what_moves_a_key(text: str) -> None:
    """No accepted name holds braces, white space, controls or anything outside ASCII."""
    for check in (ids.check_lane, lambda value: ids.check_name(value, "kind")):
        try:
            check(text)
        except InvalidInput:
            continue
        assert text.isascii() and text.isprintable()
        assert not set(text) & set("{} ,|\r\n\x00")


@pytest.mark.parametrize("key", ["a.b", "a_1.b", "app.customer.name", "a.0", "a." + "b" * 126])
def test_tag_keys(key: str) -> None:
    """A tag key is a name, a dot and a rest, lower case, at most 128 characters."""
    assert ids.is_tag_key(key)


@pytest.mark.parametrize(
    "key", ["", "a", "a.", ".a", "A.b", "a.B", "1.b", "_a.b", "a..b", "a.-", "a.b\n", "a." + "b" * 127]
)
def test_malformed_tag_keys(key: str) -> None:
    """Anything else is no tag key."""
    assert not ids.is_tag_key(key)


@pytest.mark.parametrize("text", ["text/plain", "application/vnd.x+json", "a/b; charset=utf-8"])
def test_content_types(text: str) -> None:
    """Media types are accepted, anything else refused."""
    ids.check_content_type(text)
    for bad in ("", "text", "/", "a/", text + "\r\nX: y", "a/b" + ";" + "x" * 300):
        with pytest.raises(InvalidInput):
            ids.check_content_type(bad)


def test_clipping_keeps_details_short() -> None:
    """Caller-supplied text in details is shortened."""
    assert ids.clip("x" * 120) == "x" * 120
    assert len(ids.clip("x" * 5_000)) == 120


@given(flow=st.integers(1, limits.PARTITIONS_MAX), many=st.integers(1, 2_000))
def test_ids_of_a_batch_lie_together(flow: int, many: int) -> None:
    """Ids of a batch are placed by their own uuid like any other; of a large batch some in a row lie together."""
    counts = PartitionCounts(flow=flow)
    minted = list(itertools.islice(ids.mint_execution_ids(counts, many), 100))
    assert len(set(minted)) == 100
    row = max(1, min(ids.IN_A_ROW, many // ids.SPREAD_MIN))
    partitions: list[int] = []
    for execution_id in minted:
        partition, text = ids.parse_execution_id(execution_id)
        value = uuid.UUID(text)
        assert value.version == 4 and value.variant == uuid.RFC_4122
        assert ids.uuid_partition(value, counts) == partition
        partitions.append(partition)
    for start in range(0, 100, row):
        assert len(set(partitions[start : start + row])) == 1
    if flow > 1_000 and row == 1:
        assert len(set(partitions)) > 50
