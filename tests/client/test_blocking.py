"""The blocking client: from scripts, from threads, beside other event loops, across forks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import flowfabric
from flowfabric import BlockingClient, Misuse, SubmitManyFailed, TaskFailed, Unavailable, connect_sync
from flowfabric.contract.lane import LaneList
from flowfabric.contract.states import FailureClass, PublicState
from tests.client.conftest import Served
from tests.client.working import claim_one, complete, fail, write


def exercise(ff: BlockingClient) -> None:
    """Do everything once with a blocking client."""
    ff.ping()
    run = ff.submit("count", path="a.py", idempotency_key="a@1")
    assert ff.submit("count", path="a.py", idempotency_key="a@1").duplicate
    assert run.state() is PublicState.WAITING
    assert run.describe().kind == "count"
    with pytest.raises(TimeoutError):
        run.result(timeout=0)
    lease = ff.call(lambda client: claim_one(client.stores))
    ff.call(lambda client: write(client.stores, lease, 1, 2))
    stream = run.stream()
    first = next(stream)
    assert first.value == 1
    stream.close()
    ff.call(lambda client: complete(client.stores, lease, {"lines": 3}))
    assert [frame.value for frame in run.stream(start=first.cursor)] == [2]
    assert run.result(timeout=10) == {"lines": 3}
    assert ff.run(run.id).result(type=dict[str, int]) == {"lines": 3}
    assert len(run.attempts()) == 1
    assert run.replay().replay_count == 1
    assert not run.cancel("enough").already
    runs = ff.submit_many("count", [{"n": n} for n in range(30)], chunk=10, keys=[f"n{n}" for n in range(30)])
    assert len({one.id for one in runs}) == 30
    with pytest.raises(SubmitManyFailed) as caught:
        ff.submit_many("count", [{"n": -1}, {"n": 99}], keys=["n0", None])
    assert caught.value.runs[1].state() is PublicState.WAITING
    assert len(list(ff.list(kind="count"))) == 32
    failing = ff.submit("other", lane="left")
    lease = ff.call(lambda client: claim_one(client.stores, "left"))
    ff.call(lambda client: fail(client.stores, lease, FailureClass.PERMANENT, "bad", "broken"))
    with pytest.raises(TaskFailed, match="broken"):
        failing.result()
    assert {lane.lane for lane in ff.call(lambda client: client.stores.lane.list(LaneList())).lanes} >= {
        "left"
    }


def test_a_script_needs_no_event_loop(tmp_path: Path) -> None:
    """Over a store, the blocking client does all that the asynchronous one does."""
    with connect_sync(f"sqlite:///{tmp_path}/ff.db") as ff:
        exercise(ff)


async def test_a_server_is_used_the_same_way(served: Served) -> None:
    """Over a server, the blocking client does the same."""

    def script() -> None:
        with connect_sync(served.url) as ff:
            exercise(ff)

    await asyncio.to_thread(script)


async def test_threads_share_one_client(served: Served) -> None:
    """Many threads of a web application submit through one client at once."""

    def application() -> set[str]:
        ff = connect_sync(served.url)
        try:
            with ThreadPoolExecutor(16) as pool:
                return {run.id for run in pool.map(lambda n: ff.submit("count", n=n), range(200))}
        finally:
            ff.close()

    assert len(await asyncio.to_thread(application)) == 200


async def test_a_running_loop_does_not_deadlock(tmp_path: Path) -> None:
    """Used on a thread that runs an event loop, as in a notebook, blocking calls are answered."""
    with connect_sync(f"sqlite:///{tmp_path}/ff.db") as ff:
        assert ff.submit("count").state() is PublicState.WAITING


def test_a_blocking_call_inside_the_clients_own_loop_is_refused(tmp_path: Path) -> None:
    """Calling the blocking client from a coroutine that it runs itself is refused, not hung."""
    with connect_sync(f"sqlite:///{tmp_path}/ff.db") as ff:

        async def inside(client: flowfabric.Client) -> None:
            del client
            ff.submit("count")

        with pytest.raises(Misuse, match="async client"):
            ff.call(inside)


def test_closing_ends_other_threads_waits(tmp_path: Path) -> None:
    """A thread that waits for a result is released with an error when the client is closed."""
    ff = connect_sync(f"sqlite:///{tmp_path}/ff.db")
    run = ff.submit("count")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run.result)
        assert run.state() is PublicState.WAITING
        ff.close()
        with pytest.raises((Misuse, Unavailable)):
            waiting.result(10)
    ff.close()
    with pytest.raises(Misuse, match="closed"):
        ff.submit("count")
    assert not any(thread.name == "flowfabric-client" for thread in threading.enumerate())


FORKING = """
import os, sys, flowfabric
ff = flowfabric.connect_sync(sys.argv[1])
ff.submit("count", by="parent")
child = os.fork()
if child == 0:
    try:
        ff.submit("count", by="child")
        os._exit(0)
    except flowfabric.Misuse as error:
        os._exit(3 if "forked" in str(error) else 4)
    except BaseException:
        os._exit(5)
_, status = os.waitpid(child, 0)
ff.submit("count", by="parent again")
ff.close()
print(os.waitstatus_to_exitcode(status))
"""


async def forked(url: str) -> str:
    """Run a program that uses one client before, in and after a fork; return the child's exit status."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORKING, url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


async def test_a_forked_child_reaches_the_server_anew(served: Served) -> None:
    """A client of a server that was opened before a fork works in the child and in the parent."""
    assert await forked(served.url) == "0"
    async with flowfabric.connect(served.url) as ff:
        assert len([info async for info in ff.list()]) == 3


async def test_a_store_does_not_cross_a_fork(tmp_path: Path) -> None:
    """A client of a store refuses to work in a forked child, and the parent's goes on."""
    assert await forked(f"sqlite:///{tmp_path}/ff.db") == "3"
