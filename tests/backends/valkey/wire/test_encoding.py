"""Slots of keys, and commands as bytes."""

from __future__ import annotations

import pytest

from flowfabric.backends.valkey.wire import slot_of
from flowfabric.backends.valkey.wire.commands import Command, encode
from flowfabric.contract.errors import Misuse
from tests.backends.valkey.wire.servers import Cluster


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"a",
        b"foo{bar}baz",
        b"{fp:12}:x:1",
        b"{}a",
        b"{a",
        b"a}b{c}",
        b"{{a}}",
        b"{a}{b}",
        bytes(range(256)),
    ],
)
def test_slots_are_those_of_the_server(one_cluster: Cluster, key: bytes) -> None:
    """A key's slot is what CLUSTER KEYSLOT says, hash tags included."""
    assert slot_of(key) == one_cluster.nodes[0].call("CLUSTER", "KEYSLOT", key)


def test_arguments_are_written_as_text() -> None:
    """Bytes go as they are, text as UTF-8, numbers in decimal."""
    assert encode([("SET", b"k\x00", "é", 12, -1.5)]) == (
        b"*5\r\n$3\r\nSET\r\n$2\r\nk\x00\r\n$2\r\n\xc3\xa9\r\n$2\r\n12\r\n$4\r\n-1.5\r\n"
    )


@pytest.mark.parametrize(
    "commands",
    [[], [()], [("PING",), ()], [("SET", None)], [("SET", True)], [("SET", "\ud800")], [("SET", [1])]],
)
def test_what_cannot_be_written_is_refused(commands: list[Command]) -> None:
    """No command, an empty one, or an argument of another type is `Misuse`, before anything is sent."""
    with pytest.raises(Misuse):
        encode(commands)
