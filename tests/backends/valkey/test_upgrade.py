"""Versions of the function library under load: lost, side by side, removed too early, and on a server that joins."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import flowfabric
from flowfabric.backends.valkey import keys, library
from flowfabric.backends.valkey.keys import GLOBAL_SLOT, Partition
from flowfabric.backends.valkey.library_loading import UNUSED_AFTER_MS
from flowfabric.backends.valkey.store import Store, open_store
from tests.faults.judging import judge
from tests.faults.load import PATIENCE_S, loading
from tests.faults.processes import Target
from tests.faults.scenes import all_working, blocking, end_workers
from tests.faults.valkey.other_version import copy_with_another_library
from tests.valkey import servers, session
from tests.valkey.servers import CLUSTER_OPTIONS, HOST, Cluster, Node

MINE = library.assemble().name


@pytest.fixture
def single() -> Node:
    """A single server without data and functions."""
    node = session.shared_node()
    node.empty(functions=True)
    return node


@pytest.fixture
def cluster() -> Cluster:
    """A cluster without data and functions."""
    found = session.shared_cluster()
    found.empty(functions=True)
    return found


def libraries(server: Node) -> set[str]:
    """Return the names of the libraries that a server has."""
    found = (dict(zip(entry[::2], entry[1::2], strict=True)) for entry in server.call("FUNCTION", "LIST"))
    return {entry[b"library_name"].decode() for entry in found}


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that nobody tells."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.02)  # sleeps: until the server is asked again


@contextlib.asynccontextmanager
async def storing(url: str) -> AsyncIterator[Store]:
    """Open a store for what no operation does."""
    store = await open_store(url)
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def old_worker(folder: Path, url: str) -> Iterator[Target]:
    """Run a worker of another version."""
    copy_with_another_library(Path(flowfabric.__file__).parent, folder / "old")
    (folder / "witness").mkdir()
    worker = [
        "flowfabric.worker",
        "tests.faults.app:app",
        "--url",
        url,
        "--lease-ttl",
        "0.5",
        "--log-level",
        "warning",
    ]
    target = Target("old", ["tests.faults.valkey.other_version", str(folder / "old"), *worker], folder)
    target.start()
    try:
        yield target
    finally:
        target.stop()


async def test_functions_are_flushed_under_load(single: Node) -> None:
    """A server that loses its functions again and again gets them back by the calls that miss them."""
    async with loading(single.url) as load:
        for _ in range(5):
            await load.progress(8)
            single.call("FUNCTION", "FLUSH")
        await load.progress()
        assert libraries(single) == {MINE}
        assert not load.unavailable, "a call that misses its function is made again, not refused"
        await judge(load.backend, await load.finish())


async def test_functions_are_flushed_on_one_primary_under_load(cluster: Cluster) -> None:
    """The same of one primary of a cluster, in turn of each."""
    async with loading(cluster.url) as load:
        for node in cluster.primaries():
            await load.progress()
            node.call("FUNCTION", "FLUSH")
        await load.progress()
        assert not load.unavailable
        await judge(load.backend, await load.finish())


async def test_an_old_and_a_new_version_work_side_by_side(single: Node, tmp_path: Path) -> None:
    """Processes of two versions share a store without errors; the old library goes when nobody names it any more."""
    async with loading(single.url, sdk=True) as load, storing(single.url) as store:
        with old_worker(tmp_path, single.url) as worker:
            await all_working(tmp_path, [worker])
            (old,) = libraries(single) - {MINE}
            named = single.call("HKEYS", keys.LIBRARIES)
            assert {name.decode() for name in named} == {old, MINE}
            # Nobody removes what somebody has named lately.
            assert await store.registration.remove_unused() == []
            await load.progress()
            # Should it be taken for unused by mistake, its users load it again.
            now_ms = await store.calls.now_ms()
            single.call("HSET", keys.LIBRARIES, old, now_ms - UNUSED_AFTER_MS - 1)
            assert await store.registration.remove_unused() == [old]
            await load.progress()
            assert libraries(single) == {old, MINE}
            seen = await load.finish()
            end_workers(load, tmp_path, [worker])
            assert worker.log() == ""
        assert not load.unavailable
        single.call("HSET", keys.LIBRARIES, old, now_ms - UNUSED_AFTER_MS - 1)
        assert await store.registration.remove_unused() == [old]
        assert libraries(single) == {MINE}
        await judge(load.backend, seen)


async def test_a_server_that_joins_has_the_library_when_it_is_given_slots(tmp_path: Path) -> None:
    """Slots may move to a primary that joined after the store was opened: it has the functions when they are needed."""
    with servers.cluster(tmp_path / "cluster") as cluster:
        joined = Node(tmp_path / "joined", dict(CLUSTER_OPTIONS))
        try:
            async with loading(cluster.url) as load:
                await load.progress()
                await blocking(joined.start)
                cluster.nodes.append(joined)
                joined.call("CLUSTER", "MEET", HOST, cluster.nodes[0].port, cluster.nodes[0].bus_port)
                known = joined.call("CLUSTER", "MYID")
                await until(lambda: all(known in node.call("CLUSTER", "NODES") for node in cluster.nodes))
                await blocking(cluster.wait_whole)
                for slot in (Partition(0).slot, GLOBAL_SLOT):
                    await blocking(lambda slot=slot: cluster.move_slot(slot, joined))
                    await load.progress()
                assert libraries(joined) == {MINE}
                assert not load.unavailable
                await judge(load.backend, await load.finish())
        finally:
            joined.kill()
