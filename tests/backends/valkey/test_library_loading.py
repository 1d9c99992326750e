"""Functions live in the server, so they have to be where they are called: at open, after a restart, after a join."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.library_loading import UNUSED_AFTER_MS, Loader
from flowfabric.backends.valkey.store import Store
from flowfabric.contract.errors import Misuse, OutcomeUnknown, Unavailable
from flowfabric.contract.execution import ExecutionDefinition
from flowfabric.contract.ids import ExecutionId, Kind, Lane, Namespace
from tests.backends.valkey.conftest import Opens
from tests.backends.valkey.wire.servers import Cluster, Server, eventually

OTHER = "#!lua name={0}\nredis.register_function('{0}_f', function() return 1 end)"


def _libraries(server: Server) -> set[str]:
    found = (dict(zip(entry[::2], entry[1::2], strict=True)) for entry in server.call("FUNCTION", "LIST"))
    return {entry[b"library_name"].decode() for entry in found}


async def _call_each_partition(store: Store) -> None:
    """Call a function on every partition, as many at once as there are."""
    await asyncio.gather(
        *(
            store.calls.call(partition, "worker_count_held", (partition.own,), namespace="n", instances=["i"])
            for partition in store.partitions.all
        )
    )


async def test_opening_loads_it_on_every_primary(cluster: Cluster, opens: Opens) -> None:
    """Once a store is open every primary has the library; opening it again changes nothing."""
    store = await opens(cluster.url)
    await opens(cluster.url)
    for node in cluster.nodes[:3]:
        assert _libraries(node) == {store.library.name}


async def test_a_call_that_finds_it_missing_loads_it(place: str, opens: Opens) -> None:
    """A server that lost its functions gets them back by the next call, which is carried out once."""
    store = await opens(place)
    await store.client.on_primaries([("FUNCTION", "FLUSH")])
    await _call_each_partition(store)
    await store.client.on_primaries([("FUNCTION", "FLUSH")])
    names = [await store.catalog.register(_definition(number)) for number in range(3)]
    assert len(set(names)) == 3
    assert (await store.calls.read(None, [("HGET", keys.META, "catalog")])) == [b"3"]


async def test_it_comes_back_after_a_restart(opens: Opens) -> None:
    """A server that was killed and started without its data has the library and the layout again by itself."""
    with Server() as server:
        store = await opens(server.url)
        server.kill()
        server.start()
        async with asyncio.timeout(20):
            with contextlib.suppress(OutcomeUnknown):  # sent before the old connection was known to be gone
                await _call_each_partition(store)
            await _call_each_partition(store)
            while not server.call("HEXISTS", keys.META, "layout"):  # noqa: ASYNC110 - the store tells nobody
                await asyncio.sleep(0.02)  # sleeps: until the background has settled
        assert _libraries(server) == {store.library.name}


async def test_versions_live_side_by_side(single: Server, opens: Opens, clock: ManualClock) -> None:
    """A production process and one of another version load different libraries, and neither disturbs the other."""
    one, other = await opens(single.url), await opens(single.url, clock=clock)
    assert one.library.name != other.library.name
    assert _libraries(single) == {one.library.name, other.library.name}
    await asyncio.gather(_call_each_partition(one), _call_each_partition(other))


async def test_a_library_that_nobody_names_is_removed(place: str, opens: Opens, clock: ManualClock) -> None:
    """Old libraries go when no process has named them for a while; foreign ones and those in use stay."""
    store = await opens(place, clock=clock)
    for name in ("ff_old", "ff_live", "foreign"):
        await store.client.on_primaries([("FUNCTION", "LOAD", OTHER.format(name))])
    now_ms = clock.now_ms()
    named = {"ff_old": now_ms - UNUSED_AFTER_MS - 1, "ff_live": now_ms - UNUSED_AFTER_MS}
    await store.calls.read(None, [("HSET", keys.LIBRARIES, *(x for pair in named.items() for x in pair))])
    assert await store.registration.remove_unused() == ["ff_old"]
    left = {store.library.name, "ff_live", "foreign"}
    for (listed,) in (await store.client.on_primaries([("FUNCTION", "LIST")])).values():
        assert isinstance(listed, list)
        assert {entry[b"library_name"].decode() for entry in listed} == left  # pyright: ignore
    assert await store.registration.remove_unused() == []
    clock.advance(2 * UNUSED_AFTER_MS)
    assert await store.registration.remove_unused() == ["ff_live"]
    await _call_each_partition(store)


async def test_who_may_not_load_needs_it_loaded(single: Server, opens: Opens) -> None:
    """A user who may not load functions is refused by name, unless somebody else has loaded this version."""
    single.call("ACL", "SETUSER", "caller", "on", ">secret", "~*", "&*", "+@all", "-function|load")
    url = f"valkey://caller:secret@127.0.0.1:{single.port}/0"
    with pytest.raises(Misuse, match="FUNCTION LOAD"):
        await opens(url)
    await opens(single.url)
    await _call_each_partition(await opens(url))


async def test_many_callers_load_once(single: Server, opens: Opens) -> None:
    """Callers that find it missing at the same time share one load, and one that is cancelled stops nobody."""
    store = await opens(single.url)
    loader = Loader(store.client, store.library)
    single.call("CONFIG", "RESETSTAT")
    given_up, *others = [asyncio.create_task(loader.load()) for _ in range(20)]
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(*others)
    stats = single.call("INFO", "commandstats").decode()
    assert "cmdstat_function|load:calls=1," in stats
    await loader.close()


def _definition(number: int) -> ExecutionDefinition:
    return ExecutionDefinition(
        execution_id=ExecutionId("{fp:0}:00000000-0000-4000-8000-000000000000"),
        namespace=Namespace("n"),
        lane=Lane("lane"),
        kind=Kind(f"k{number}"),
        route=f"k{number}|",
        digest="",
        created_at_ms=0,
    )


async def test_a_node_that_joins_gets_it(opens: Opens) -> None:
    """A server that joins the cluster without the library is given it when it serves its first slot."""
    cluster = Cluster()
    try:
        store = await opens(cluster.url)
        with Server("--cluster-enabled", "yes") as joined:
            joined.call("CLUSTER", "MEET", "127.0.0.1", cluster.nodes[0].port)
            nodes = [joined, *cluster.nodes]
            eventually(lambda: all(_knows(node, 7) for node in nodes), "everybody knows the new one")
            partition = store.partitions.all[0]
            source, identity = cluster.owner(partition.slot), joined.call("CLUSTER", "MYID")
            for node in (joined, source, *cluster.nodes[:3]):
                node.call("CLUSTER", "SETSLOT", partition.slot, "NODE", identity)
            async with asyncio.timeout(20):
                await _call_each_partition(store)
            assert store.library.name in _libraries(joined)
            assert _loads(joined) <= 5
    finally:
        cluster.close()


async def test_it_survives_a_failover(opens: Opens) -> None:
    """When a primary is killed its replica takes over with the library, and calls go on."""
    cluster = Cluster()
    try:
        store = await opens(cluster.url)
        cluster.nodes[0].kill()
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(Unavailable):
                    await _call_each_partition(store)
                    break
        assert store.library.name in _libraries(cluster.nodes[3])
    finally:
        cluster.close()


def _knows(node: Server, count: int) -> bool:
    lines = node.call("CLUSTER", "NODES").decode().splitlines()
    return sum("handshake" not in line for line in lines) == count


def _loads(node: Server) -> int:
    stats = node.call("INFO", "commandstats").decode()
    found = re.search(r"cmdstat_function\|load:calls=(\d+)", stats)
    return int(found[1]) if found else 0
