"""The fault table: what becomes of a call, and how often it was executed, for each thing that can go wrong.

The truth is always asked of the server itself. A call that ended well was executed exactly once, one that ended with
`Unavailable` never, one that ended with `OutcomeUnknown` at most once; with `repeatable` a call may run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import hiredis
import pytest

from flowfabric.backends.valkey.wire import Answer, Client
from flowfabric.backends.valkey.wire.connection import IN_FLIGHT_MAX
from flowfabric.contract.errors import OutcomeUnknown, Unavailable
from tests.backends.valkey.wire.between import Proxy, proxied, until
from tests.backends.valkey.wire.conftest import Connects
from tests.backends.valkey.wire.servers import Line, Server
from tests.valkey.servers import eventually

DONE, UNKNOWN, NOT_DONE = "done", "unknown", "not done"
INCR = [("INCR", "count")]


@dataclass(frozen=True)
class Scene:
    """What a fault may act on."""

    server: Server
    proxy: Proxy
    client: Client
    background: list[asyncio.Task[list[Answer]]]

    def count(self) -> int:
        return int(self.server.call("GET", "count") or 0)


@dataclass(frozen=True)
class Fault:
    """`prepare` sets the trap, `strike` acts while the call waits; then the outcome and number of executions.

    The pairs are for calls that are not repeatable, and for those that are.
    """

    name: str
    prepare: Callable[[Scene], Awaitable[None]]
    strike: Callable[[Scene], Awaitable[None]]
    once: tuple[str, int]
    repeatable: tuple[str, int]
    timeout_s: float = 5


async def nothing(scene: Scene) -> None:
    """Do nothing."""


async def clog(scene: Scene) -> None:
    """Stop reading, and fill the socket until the client has to keep what comes next to itself."""
    scene.proxy.reads_requests.clear()
    for _ in range(4):
        filler = scene.client.execute(0, [("ECHO", b"x" * 8 * 1024 * 1024)], timeout_s=5)
        scene.background.append(asyncio.create_task(filler))
    await asyncio.sleep(0.05)


async def cut_clogged(scene: Scene) -> None:
    await asyncio.sleep(0.05)
    scene.proxy.cut()
    scene.proxy.reads_requests.set()


async def hold_requests(scene: Scene) -> None:
    scene.proxy.pass_requests.clear()


async def cut_requests(scene: Scene) -> None:
    before = scene.proxy.requested
    await until(lambda: scene.proxy.requested > before, "the request is on its way")
    scene.proxy.cut()
    scene.proxy.pass_requests.set()


async def hold_replies(scene: Scene) -> None:
    scene.proxy.pass_replies.clear()


async def cut_replies(scene: Scene) -> None:
    await until(lambda: scene.count() == 1, "the call was executed")
    scene.proxy.cut()
    scene.proxy.pass_replies.set()


async def cut_within_reply(scene: Scene) -> None:
    scene.proxy.reply_budget = 2


async def shut(scene: Scene) -> None:
    await scene.proxy.shut()
    await asyncio.sleep(0.05)  # until the client has seen it: what it writes before that is lost


async def reopen(scene: Scene) -> None:
    await asyncio.sleep(0.1)
    await scene.proxy.open()


async def cut_twice(scene: Scene) -> None:
    await cut_requests(scene)
    accepted = scene.proxy.accepted
    await until(lambda: scene.proxy.accepted > accepted, "the client is back")
    scene.proxy.cut()


FAULTS = [
    Fault("never written, connection cut", clog, cut_clogged, (DONE, 1), (DONE, 1)),
    Fault("never written, deadline", clog, nothing, (NOT_DONE, 0), (NOT_DONE, 0), timeout_s=0.3),
    Fault("written but never read, cut", hold_requests, cut_requests, (UNKNOWN, 0), (DONE, 1)),
    Fault("cut, and once more", hold_requests, cut_twice, (UNKNOWN, 0), (DONE, 1)),
    Fault(
        "written but never read, deadline", hold_requests, nothing, (UNKNOWN, 0), (UNKNOWN, 0), timeout_s=0.3
    ),
    Fault("executed, reply lost", hold_replies, cut_replies, (UNKNOWN, 1), (DONE, 2)),
    Fault("executed, reply late", hold_replies, nothing, (UNKNOWN, 1), (UNKNOWN, 1), timeout_s=0.3),
    Fault("executed, reply torn", cut_within_reply, nothing, (UNKNOWN, 1), (DONE, 2)),
    Fault("nobody there", shut, nothing, (NOT_DONE, 0), (NOT_DONE, 0), timeout_s=0.3),
    Fault("nobody there for a while", shut, reopen, (DONE, 1), (DONE, 1)),
]


@pytest.mark.parametrize("repeatable", [False, True], ids=["once", "repeatable"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_fault(server: Server, connects: Connects, fault: Fault, repeatable: bool) -> None:
    """A call's outcome tells the truth about its execution; the client works again afterwards."""
    async with proxied(server.port) as proxy:
        client = await connects(proxy.url, connections_per_node=1)
        scene = Scene(server, proxy, client, [])
        await fault.prepare(scene)
        call = asyncio.create_task(client.execute(0, INCR, timeout_s=fault.timeout_s, repeatable=repeatable))
        await fault.strike(scene)
        outcome, executions = fault.repeatable if repeatable else fault.once
        assert await _outcome(call) == outcome
        proxy.reads_requests.set()
        proxy.pass_requests.set()
        proxy.pass_replies.set()
        if fault.prepare is shut and fault.strike is not reopen:
            await proxy.open()
        for task in scene.background:
            await _outcome(task)
        assert await client.execute(0, [("ECHO", "still here")], repeatable=True) == [b"still here"]
        late = 1 if fault.prepare is hold_requests and fault.strike is nothing else 0
        assert scene.count() == executions + late


async def test_a_cancelled_caller_leaves_the_connection_usable(server: Server, connects: Connects) -> None:
    """Replies to cancelled callers are dropped in their place: everybody else gets their own."""
    async with proxied(server.port) as proxy:
        client = await connects(proxy.url, connections_per_node=1)
        proxy.pass_replies.clear()
        calls = [asyncio.create_task(client.execute(0, [("ECHO", n), ("ECHO", -n)])) for n in range(300)]
        await asyncio.sleep(0.02)
        for call in calls[::3]:
            call.cancel()
        proxy.pass_replies.set()
        for number, call in enumerate(calls):
            if number % 3:
                assert await call == [b"%d" % number, b"%d" % -number]
        assert await client.execute(0, [("ECHO", "next")]) == [b"next"]
        assert proxy.accepted == 1


async def test_a_caller_cancelled_before_the_write_is_not_executed(server: Server, client: Client) -> None:
    """A call cancelled in the turn it was made in is never sent."""
    call = asyncio.create_task(client.execute(0, INCR))
    asyncio.get_running_loop().call_soon(call.cancel)
    with pytest.raises(asyncio.CancelledError):
        await call
    await client.execute(0, [("PING",)])
    assert server.call("GET", "count") is None


async def test_cancelling_at_random_never_mixes_replies(server: Server, connects: Connects) -> None:
    """Under 5,000 calls of which a third is cancelled at odd moments, no caller sees another's reply."""
    client = await connects(server.url)

    async def call(number: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.0002 * (number % 50) if number % 3 == 0 else None):
                replies = await client.execute(0, [("ECHO", number), ("ECHO", number + 1)])
                assert replies == [b"%d" % number, b"%d" % (number + 1)]

    for start in range(0, 5_000, 500):
        await asyncio.gather(*(call(number) for number in range(start, start + 500)))


async def test_a_restarted_server_is_found_again(connects: Connects) -> None:
    """Calls made while the server is away wait for it, and the restart is announced, once."""
    with Server() as server:
        client = await connects(server.url)
        restarts: list[int] = []
        client.on_topology_change(lambda: restarts.append(1))
        await client.execute(0, [("SET", "a", 1)])
        server.kill()
        calls = [asyncio.create_task(client.execute(0, [("INCR", "a")], timeout_s=10)) for _ in range(50)]
        await asyncio.sleep(0.05)
        assert not any(call.done() and call.exception() is None for call in calls)
        await asyncio.to_thread(server.start)
        outcomes = [await _outcome(call) for call in calls]
        done = outcomes.count(DONE)
        assert done >= 49 or set(outcomes) == {UNKNOWN}  # what was written before the death was noticed
        assert int(server.call("GET", "a") or 0) == done
        await client.execute(0, [("PING",)])
        assert restarts == [1]


async def test_reconnecting_to_the_same_server_is_no_restart(server: Server, client: Client) -> None:
    """A killed connection to a server that did not restart is replaced quietly."""
    seen: list[int] = []
    client.on_topology_change(lambda: seen.append(1))
    for _ in range(3):
        server.call("CLIENT", "KILL", "TYPE", "NORMAL")
        assert await client.execute(0, [("PING",)], repeatable=True) == [b"PONG"]
    assert seen == []


async def test_a_storm_of_kills(server: Server, connects: Connects) -> None:
    """While connections are killed all the time, counters agree with what callers were told.

    What was acknowledged was executed, what was reported as not executed was not, nothing ran twice.
    """
    client = await connects(server.url)
    is_over = asyncio.Event()
    acknowledged, unknown = [0] * 40, [0] * 40

    async def count(caller: int) -> None:
        while not is_over.is_set():
            try:
                await client.execute(0, [("INCR", f"c{caller}")])
                acknowledged[caller] += 1
            except OutcomeUnknown:
                unknown[caller] += 1

    callers = [asyncio.create_task(count(caller)) for caller in range(40)]
    for _ in range(60):
        await asyncio.sleep(0.02)
        server.call("CLIENT", "KILL", "TYPE", "NORMAL")
    is_over.set()
    await asyncio.gather(*callers)
    assert sum(acknowledged) > 500
    assert sum(unknown) > 0
    for caller in range(40):
        executed = int(server.call("GET", f"c{caller}") or 0)
        assert acknowledged[caller] <= executed <= acknowledged[caller] + unknown[caller]


async def test_a_slow_server_keeps_deadlines(server: Server, connects: Connects) -> None:
    """While the server does not answer, calls end by their deadlines; afterwards all is well, and nothing is lost."""
    client = await connects(server.url)
    sleep = asyncio.create_task(client.execute(0, [("DEBUG", "SLEEP", "0.8")]))
    await asyncio.sleep(0.05)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    short = [asyncio.create_task(client.execute(0, INCR, timeout_s=0.2)) for _ in range(20)]
    long = [asyncio.create_task(client.execute(0, INCR, timeout_s=5)) for _ in range(20)]
    assert [await _outcome(call) for call in short] == [UNKNOWN] * 20
    assert loop.time() - begun < 0.4
    assert [await _outcome(call) for call in long] == [DONE] * 20
    assert await sleep == [b"OK"]
    assert await client.execute(0, [("GET", "count")]) == [b"40"]


async def test_a_stopped_server_is_unavailable_in_time(connects: Connects) -> None:
    """A process that is stopped (it accepts, it answers nothing) costs callers their deadline and no more."""
    with Server() as server:
        client = await connects(server.url)
        await client.execute(0, [("PING",)])
        server.send_signal(signal.SIGSTOP)
        try:
            begun = asyncio.get_running_loop().time()
            first = [asyncio.create_task(client.execute(0, INCR, timeout_s=1.2)) for _ in range(10)]
            assert [await _outcome(call) for call in first] == [UNKNOWN] * 10
            # Nothing was heard, so that connection is not used any more.
            assert await _outcome(asyncio.create_task(client.execute(0, INCR, timeout_s=0.2))) == NOT_DONE
            assert asyncio.get_running_loop().time() - begun < 2
        finally:
            server.send_signal(signal.SIGCONT)
        await client.execute(0, [("PING",)])


async def test_what_is_in_flight_is_bounded(server: Server, connects: Connects) -> None:
    """Beyond the cap calls wait unwritten, and are not executed when their deadline passes first."""
    async with proxied(server.port) as proxy:
        client = await connects(proxy.url, connections_per_node=1)
        proxy.pass_replies.clear()
        calls = [
            asyncio.create_task(client.execute(0, INCR, timeout_s=0.5)) for _ in range(IN_FLIGHT_MAX + 100)
        ]
        outcomes = [await _outcome(call) for call in calls]
        assert outcomes == [UNKNOWN] * IN_FLIGHT_MAX + [NOT_DONE] * 100
        proxy.pass_replies.set()
        assert await client.execute(0, [("GET", "count")]) == [b"%d" % IN_FLIGHT_MAX]


async def test_the_queue_is_bounded(server: Server, connects: Connects) -> None:
    """More callers than may queue wait their turn: all are served, or told by their deadline."""
    async with proxied(server.port) as proxy:
        client = await connects(proxy.url, connections_per_node=1)
        calls = [asyncio.create_task(client.execute(0, INCR, timeout_s=20)) for _ in range(20_000)]
        await asyncio.gather(*calls)
        assert server.call("GET", "count") == b"20000"


async def test_a_busy_server_is_waited_out(connects: Connects) -> None:
    """BUSY answers do not reach callers: the call is made when the server is free again, exactly once."""
    with (
        Server("--busy-reply-threshold", "20") as server,
        Line(server.port) as script,
        Line(server.port) as line,
    ):
        client = await connects(server.url)
        endless = asyncio.create_task(asyncio.to_thread(script, "EVAL", "while true do end", 0))
        await asyncio.sleep(0.1)
        calls = [asyncio.create_task(client.execute(0, INCR)) for _ in range(10)]
        with pytest.raises(Unavailable, match="BUSY"):
            await client.execute(0, INCR, timeout_s=0.15)
        assert line("SCRIPT", "KILL") == b"OK"
        with pytest.raises(hiredis.ReplyError):
            await endless
        await asyncio.gather(*calls)
        assert line("GET", "count") == b"10"


async def test_a_loading_server_is_waited_out(connects: Connects) -> None:
    """LOADING answers do not reach callers: the call is made when the data are back."""
    with Server("--appendonly", "yes", "--key-load-delay", "200") as server:
        for number in range(4_000):
            server.call("SET", f"k{number}", number)
        server.kill()
        await asyncio.to_thread(server.start)
        client = await connects(server.url)
        assert await client.execute(0, [("GET", "k3999")], timeout_s=10) == [b"3999"]
        assert b"errorstat_LOADING" in server.call("INFO", "errorstats")


async def test_a_replica_is_not_written_to(server: Server, connects: Connects) -> None:
    """READONLY answers do not reach callers: the call waits for a primary, and says so when none comes."""
    with Server("--replicaof", f"127.0.0.1 {server.port}") as replica:
        linked = b"master_link_status:up"
        await asyncio.to_thread(
            eventually, lambda: linked in replica.call("INFO", "replication"), "it follows"
        )
        client = await connects(replica.url)
        with pytest.raises(Unavailable, match="READONLY"):
            await client.execute(0, INCR, timeout_s=1.5)
        call = asyncio.create_task(client.execute(0, INCR))
        await asyncio.sleep(0.05)
        replica.call("REPLICAOF", "NO", "ONE")
        assert await call == [1]


async def test_nothing_is_left_behind(server: Server, connects: Connects) -> None:
    """Closed clients leave no task, no connection and no unread exception, even after faults."""
    async with proxied(server.port) as proxy:
        client = await connects(proxy.url)
        calls = [asyncio.create_task(client.execute(0, INCR)) for _ in range(10)]
        proxy.cut()
        for call in calls:
            await _outcome(call)
        await client.close()
    gc.collect()
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert rest == []


async def _outcome(call: asyncio.Task[list[Answer]]) -> str:
    try:
        await call
    except OutcomeUnknown:
        return UNKNOWN
    except Unavailable:
        return NOT_DONE
    return DONE
