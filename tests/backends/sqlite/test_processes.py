"""Several processes on one file, which only SQLite has to arrange by itself: exclusion, wake-ups, sudden death."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

from flowfabric.backends.sqlite import wake
from flowfabric.contract.execution import ExecutionList, ExecutionReadState
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.states import PublicState
from tests.backends.sqlite.processes import child, line, rest
from tests.backends.sqlite.store import PATIENCE_S, claim, complete, create, create_many, opened, until


async def test_each_execution_is_done_once(tmp_path: Path) -> None:
    """Three processes that claim from one file at the same time share the work without a collision."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create_many(store, 300)
        async with child("work", path, "a") as first, child("work", path, "b") as second:
            mine: list[str] = []
            while leases := await claim(store, "mine", max_tasks=2):
                for lease in leases:
                    await complete(store, lease)
                    mine.append(lease.execution_id)
            theirs = [words[0] for each in (first, second) for words in await rest(each)]
        assert len(mine) + len(theirs) == 300
        assert len({*mine, *theirs}) == 300
        assert not (await store.maintenance.fsck()).findings


async def test_a_worker_elsewhere_is_woken(tmp_path: Path) -> None:
    """A create wakes a claim that waits in another process, long before the slow poll would."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        best_ms = 10_000.0
        for _ in range(5):
            async with child("wait_for_work", path) as other:
                assert await line(other) == ["ready"]
                await asyncio.sleep(0.1)
                started = time.monotonic_ns()
                execution_id = await create(store)
                got, at = await line(other)
                assert got == execution_id
                best_ms = min(best_ms, (int(at) - started) / 1e6)
                assert await rest(other) == []
        assert best_ms < 500


async def test_a_waiter_here_is_woken_from_elsewhere(tmp_path: Path) -> None:
    """A result that another process writes ends the wait for it in this one."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create(store)
        async with child("work", path, "a") as other:
            done = asyncio.create_task(_result(store))
            ((execution_id,),) = await rest(other)
            async with asyncio.timeout(PATIENCE_S):
                assert await done == execution_id


async def _result(store) -> str:
    from flowfabric.contract.execution import ExecutionReadResult

    (known,) = (await store.execution.list(ExecutionList())).executions
    ended = await store.execution.read_result(
        ExecutionReadResult(execution_id=known.execution_id, wait_ms=30_000)
    )
    return ended.execution_id


async def test_a_lost_datagram_is_made_good(tmp_path: Path) -> None:
    """Without any wake-up from the other process the slow poll finds what it wrote."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        waiting = asyncio.create_task(claim(store, wait_ms=20_000))
        await until(lambda: store.bells.claims_sleeping == 1)
        async with opened(path) as other:
            assert other.post is not None
            other.post.close()
            execution_id = await create(other)
            (lease,) = await waiting
        assert lease.execution_id == execution_id


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """A process killed at any moment leaves every create that it acknowledged, and a store without a fault."""
    path = tmp_path / "store.db"
    acknowledged: list[str] = []
    for round_ in range(4):
        async with child("create_forever", path) as other:
            for _ in range(10 + 40 * round_):
                acknowledged += await line(other)
            other.send_signal(signal.SIGKILL)
            acknowledged += [words[0] for words in await rest(other)]
    async with opened(path) as store:
        for execution_id in acknowledged:
            state = await store.execution.read_state(
                ExecutionReadState(execution_id=ExecutionId(execution_id))
            )
            assert state.public_state is PublicState.WAITING
        assert not (await store.maintenance.fsck()).findings
        assert len(await claim(store, max_tasks=10)) == 10


async def test_sockets_of_the_dead_are_removed(tmp_path: Path) -> None:
    """The socket that a killed process left behind is removed by the next that announces something."""
    path = tmp_path / "store.db"
    folder = wake.folder_of(path)
    async with child("create_forever", path) as other:
        await line(other)
        other.kill()
    left = list(folder.iterdir())
    assert len(left) == 1
    async with opened(path) as store:
        async with asyncio.timeout(PATIENCE_S):
            while left[0] in list(folder.iterdir()):
                await create(store)
    assert not folder.exists()


def test_a_long_path_uses_the_temporary_folder(tmp_path: Path) -> None:
    """Where the path beside the file is too long for a socket, the folder is a short one of the same store."""
    deep = tmp_path / ("x" * 60) / ("y" * 60) / "store.db"
    folder = wake.folder_of(deep)
    assert len(os.fsencode(folder)) < 80
    assert folder == wake.folder_of(deep.parent / "." / "store.db")
    assert wake.folder_of(Path("/tmp/store.db")) == Path("/tmp/store.db-wake").resolve()


async def test_a_peer_without_unix_sockets_is_reached(tmp_path: Path) -> None:
    """A process that listens on a loopback port gets the same datagrams."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create(store)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(PATIENCE_S)
            entry = wake.folder_of(path) / f"{os.getpid()}-0.port"
            entry.write_text(str(peer.getsockname()[1]))
            await create(store)
            data = await asyncio.get_running_loop().run_in_executor(None, peer.recv, 65_536)
            entry.unlink()
        assert b"default" in data


async def test_what_cannot_be_read_means_look_at_everything(tmp_path: Path) -> None:
    """A datagram from anybody wakes, and does no harm."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        (entry,) = wake.folder_of(path).iterdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            for data in (b"", b"*", b"\xff" * 100, b"\x94\x90\x90\x90\xc0"):
                stranger.sendto(data, str(entry))
        await create(store)
        assert len(await claim(store, wait_ms=1_000)) == 1
