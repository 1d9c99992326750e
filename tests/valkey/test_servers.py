"""The servers that other tests rely on do what they are told: nodes die, take over, come back, and slots move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest

from tests.valkey.servers import Cluster, Node, cluster, server_version, single_node

KEYS = 500


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that the tests of this module may do anything to, one after the other."""
    with cluster(tmp_path_factory.mktemp("own")) as found:
        yield found


@pytest.fixture
def filled(own: Cluster) -> Iterator[Cluster]:
    """The cluster, whole and with some keys of one slot."""
    for node in own.nodes:
        node.start()
    own.wait_whole()
    own.empty()
    owner = own.owner(own.slot_of("{x}"))
    for number in range(KEYS):
        owner.call("SET", f"{{x}}{number}", number)
    owner.call("WAIT", 1, 5_000)
    yield own


def keys_of(node: Node) -> int:
    """Count the keys of the slot that a node answers for."""
    return node.call("CLUSTER", "COUNTKEYSINSLOT", node.call("CLUSTER", "KEYSLOT", "{x}"))


def test_a_single_node(tmp_path: Path) -> None:
    """It is as old as its version says, takes options, can be stopped in its tracks, and leaves nothing behind."""
    with single_node(tmp_path / "node", maxmemory_policy="noeviction") as node:
        assert node.info("server")["valkey_version"] == ".".join(map(str, server_version()))
        assert node.is_primary() and not node.is_cluster
        node.pause()
        with pytest.raises(TimeoutError):
            node.call("PING", timeout_s=0.2)
        node.resume()
        assert node.call("PING") == b"PONG"
        with pytest.raises(hiredis.ReplyError, match="unknown command"):
            node.call("NOTHING")
        node.call("SET", "key", 1)
        node.empty()
        assert node.call("DBSIZE") == 0
    assert not (tmp_path / "node").exists()


def test_a_cluster_is_whole(own: Cluster) -> None:
    """Three primaries serve all slots between them, each followed by one replica."""
    primaries = own.primaries()
    assert len(primaries) == 3 and len(own.nodes) == 6
    assert [len(own.replicas_of(primary)) for primary in primaries] == [1, 1, 1]
    assert {own.owner(slot) for slot in (0, 8_000, 16_383)} == set(primaries)
    assert own.url.count(",") == 5


def test_a_killed_primary_is_replaced(filled: Cluster) -> None:
    """Its replica takes over with the data; when it comes back it follows the new one."""
    slot = filled.slot_of("{x}")
    old = filled.owner(slot)
    new = filled.kill_primary(old)
    assert filled.owner(slot) is new and keys_of(new) == KEYS
    assert new.call("GET", "{x}7") == b"7"
    old.start()
    filled.wait_whole()
    assert not old.is_primary() and filled.replicas_of(new) == [old]


@pytest.mark.parametrize("mode", ["", "FORCE", "TAKEOVER"])
def test_a_failover_on_request(filled: Cluster, mode: str) -> None:
    """A replica takes over and the old primary follows it."""
    slot = filled.slot_of("{x}")
    old = filled.owner(slot)
    new = filled.fail_over(old, mode=mode)
    assert filled.owner(slot) is new is not old and keys_of(new) == KEYS
    assert filled.replicas_of(new) == [old]


def test_a_slot_moves_key_by_key(filled: Cluster) -> None:
    """While it moves, absent keys are asked for at the target; afterwards the target owns slot and keys."""
    slot = filled.slot_of("{x}")
    target = next(node for node in filled.primaries() if node is not filled.owner(slot))
    source = filled.begin_move(slot, target)
    assert filled.move_keys(slot, source, target, count=10) == 10
    with pytest.raises(hiredis.ReplyError, match="ASK"):
        source.call("GET", "{x}absent")
    assert 0 < keys_of(source) < KEYS
    while filled.move_keys(slot, source, target, count=100):
        pass
    filled.end_move(slot, source, target)
    filled.wait_whole()
    assert filled.owner(slot) is target and (keys_of(source), keys_of(target)) == (0, KEYS)
    filled.move_slot(slot, source)
    assert filled.owner(slot) is source and (keys_of(source), keys_of(target)) == (KEYS, 0)


def test_slots_move_as_a_whole(filled: Cluster) -> None:
    """Servers that can, move slots in one go; others say that they cannot."""
    slot = filled.slot_of("{x}")
    source = filled.owner(slot)
    target = next(node for node in filled.primaries() if node is not source)
    if not filled.can_move_atomically:
        with pytest.raises(hiredis.ReplyError):
            filled.move_slots_atomically(slot, slot, target)
        return
    filled.move_slots_atomically(slot, slot, target)
    assert filled.owner(slot) is target and (keys_of(source), keys_of(target)) == (0, KEYS)
    filled.move_slots_atomically(slot, slot, source)
    assert filled.owner(slot) is source and keys_of(source) == KEYS
