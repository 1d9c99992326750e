"""A lane's state is copied to every partition here, so a crash in between, and races, have to come out right."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.catalog import StoredLane
from flowfabric.backends.valkey.lane import ValkeyLanes
from flowfabric.backends.valkey.record import unpack
from flowfabric.backends.valkey.store import Store
from flowfabric.contract.errors import InvalidInput, OutcomeUnknown, Unavailable
from flowfabric.contract.ids import Lane
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.states import LaneState
from tests.backends.valkey.conftest import Opens
from tests.backends.valkey.wire.servers import Server

LANE = Lane("lane")


def lanes_of(store: Store, resumed: Callable[[str], Awaitable[None]] | None = None) -> ValkeyLanes:
    """The lane operations of a store without hints."""

    async def nothing(lane: str) -> None:
        del lane

    return ValkeyLanes(store.calls, store.partitions, store.catalog, resumed or nothing)


async def set_state(store: Store, state: LaneState) -> None:
    """Set the lane's state."""
    await lanes_of(store).set_state(LaneSetState(lane=LANE, state=state))


async def record(store: Store) -> StoredLane:
    """Read the lane's global record."""
    (stored,) = await store.calls.read(None, [("HGET", keys.LANES, LANE)])
    return unpack(stored, StoredLane)


async def copies(store: Store) -> set[tuple[bytes | None, bytes | None]]:
    """Read what partitions know of the lane: its state and version, each combination once."""
    found = await asyncio.gather(
        *(
            store.calls.read(partition, [("HMGET", partition.lanes, LANE, f"@{LANE}")])
            for partition in store.partitions.all
        )
    )
    return {tuple(values) for (values,) in found}


async def decide_only(store: Store, state: LaneState) -> StoredLane:
    """Do what is left when the process dies after the decision."""
    _, stored = await store.calls.call(
        None, "lane_set_state", (keys.META, keys.LANES), lane=LANE, state=state.value, version=None
    )
    return unpack(stored, StoredLane)


async def test_every_partition_knows_when_it_is_answered(place: str, opens: Opens) -> None:
    """Once set_state has answered every partition has the state; an active lane has no entry anywhere."""
    store = await opens(place)
    await set_state(store, LaneState.PAUSED)
    found = await record(store)
    assert found.copied == found.version > 0
    assert await copies(store) == {(b"paused", str(found.version).encode())}
    await set_state(store, LaneState.ACTIVE)
    assert await copies(store) == {(None, str((await record(store)).version).encode())}


async def test_a_lane_that_was_always_active_has_no_copies(place: str, opens: Opens) -> None:
    """Making a lane known as active costs the partitions nothing."""
    store = await opens(place)
    await set_state(store, LaneState.ACTIVE)
    assert (await record(store)).version == 0
    assert await copies(store) == {(None, None)}


@pytest.mark.parametrize("thoroughly", [False, True])
async def test_a_crash_in_between_is_finished(place: str, opens: Opens, *, thoroughly: bool) -> None:
    """A state that was decided but not copied everywhere is copied by the repair; a second one finds nothing."""
    store = await opens(place)
    stored = await decide_only(store, LaneState.DISABLED)
    partition = store.partitions.all[1]
    await store.calls.call(
        partition, "lane_copy_state", (partition.lanes,), lane=LANE, state="disabled", version=stored.version
    )
    assert await lanes_of(store).repair(thoroughly=thoroughly) == 1
    assert await copies(store) == {(b"disabled", str(stored.version).encode())}
    assert await lanes_of(store).repair(thoroughly=thoroughly) == 0


async def test_repeating_it_finishes_it(place: str, opens: Opens) -> None:
    """Setting the state that was decided before a crash changes nothing but finishes the copies."""
    store = await opens(place)
    stored = await decide_only(store, LaneState.PAUSED)
    await set_state(store, LaneState.PAUSED)
    assert await copies(store) == {(b"paused", str(stored.version).encode())}
    assert (await record(store)).version == stored.version


async def test_an_older_state_never_overwrites_a_newer_one(place: str, opens: Opens) -> None:
    """Copies that arrive late are ignored, in whatever order they come."""
    store = await opens(place)
    partition = store.partitions.all[0]
    for order in itertools.permutations(((1, "paused"), (2, "active"), (3, "draining"))):
        await store.client.execute(partition.slot, [("DEL", partition.lanes)])
        for version, state in order:
            await store.calls.call(
                partition, "lane_copy_state", (partition.lanes,), lane=LANE, state=state, version=version
            )
        (found,) = await store.calls.read(partition, [("HMGET", partition.lanes, LANE, f"@{LANE}")])
        assert found == [b"draining", b"3"]


async def test_racing_changes_end_in_one_state(place: str, opens: Opens) -> None:
    """However many set the state at once, record and all copies agree afterwards."""
    stores = [await opens(place) for _ in range(3)]
    for _ in range(5):
        await asyncio.gather(
            *(set_state(store, state) for store, state in zip(stores * 4, list(LaneState) * 3, strict=True))
        )
        found = await record(stores[0])
        state = None if found.state is LaneState.ACTIVE else found.state.value.encode()
        assert await copies(stores[0]) == {(state, str(found.version).encode())}


async def test_a_lost_copy_is_restored(place: str, opens: Opens) -> None:
    """What a failover lost in a partition is copied again by a thorough repair."""
    store = await opens(place)
    await set_state(store, LaneState.PAUSED)
    whole = await copies(store)
    for partition in store.partitions.all[3:7]:
        await store.client.execute(partition.slot, [("DEL", partition.lanes)])
    assert await lanes_of(store).repair(thoroughly=True) == 1
    assert await copies(store) == whole


async def test_a_lost_record_is_restored(place: str, opens: Opens, clock: ManualClock) -> None:
    """When the record is older than what partitions know, the newest state counts for all."""
    store = await opens(place, clock=clock)
    await set_state(store, LaneState.DRAINING)
    (before,) = await store.calls.read(None, [("HGET", keys.LANES, LANE)])
    clock.advance(1_000)
    await set_state(store, LaneState.PAUSED)
    whole = await copies(store)
    for commands in ([("HSET", keys.LANES, LANE, before)], [("HDEL", keys.LANES, LANE)]):
        await store.client.execute(keys.GLOBAL_SLOT, commands)
        assert await lanes_of(store).repair(thoroughly=True) == 1
        assert (await record(store)).state is LaneState.PAUSED
        assert await copies(store) == whole


async def test_only_lanes_that_give_work_out_again_are_announced(place: str, opens: Opens) -> None:
    """Waiting claims are woken when a lane gives work out that did not before, and only then."""
    store = await opens(place)
    announced: list[str] = []

    async def resumed(lane: str) -> None:
        announced.append(lane)

    lanes = lanes_of(store, resumed)
    for state in ("active", "paused", "disabled", "draining", "active", "draining", "paused", "active"):
        await lanes.set_state(LaneSetState(lane=LANE, state=LaneState(state)))
    assert announced == [LANE, LANE]


async def test_a_state_that_is_none_is_refused(place: str, opens: Opens) -> None:
    """The functions themselves accept only states, and write nothing otherwise."""
    store = await opens(place)
    partition = store.partitions.all[0]
    with pytest.raises(InvalidInput):
        await store.calls.call(
            None, "lane_set_state", (keys.META, keys.LANES), lane=LANE, state="asleep", version=None
        )
    with pytest.raises(InvalidInput):
        await store.calls.call(
            partition, "lane_copy_state", (partition.lanes,), lane=LANE, state="asleep", version=1
        )
    assert await copies(store) == {(None, None)}


async def test_a_store_that_goes_away_leaves_the_outcome_unknown(opens: Opens) -> None:
    """When the copies cannot be finished the answer says so, and that repeating it is safe."""
    with Server() as server:
        store = await opens(server.url)
        await decide_only(store, LaneState.PAUSED)
        lanes = lanes_of(store)
        server.call("ACL", "SETUSER", "default", "-fcall")
        with pytest.raises(Unavailable):
            await lanes.set_state(LaneSetState(lane=LANE, state=LaneState.PAUSED))
        server.call("ACL", "SETUSER", "default", "+fcall", "resetkeys", "~{w}*")
        with pytest.raises(OutcomeUnknown, match="repeating it is safe"):
            await lanes.set_state(LaneSetState(lane=LANE, state=LaneState.PAUSED))
        server.call("ACL", "SETUSER", "default", "~*")
        await lanes.set_state(LaneSetState(lane=LANE, state=LaneState.PAUSED))
