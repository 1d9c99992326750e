"""A cluster: routing, slots that move under load, primaries that die. Redirections never reach a caller."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Self

import pytest

from flowfabric.backends.valkey.wire import Client, Command, ServerError, connect, parse_url, slot_of
from flowfabric.contract.errors import OutcomeUnknown, Unavailable
from tests.backends.valkey.wire.between import until
from tests.backends.valkey.wire.conftest import Connects
from tests.backends.valkey.wire.servers import Cluster, Server, eventually, free_port


@pytest.fixture
async def cluster(one_cluster: Cluster) -> Cluster:
    """The session's cluster without data; which node is a primary is not the same for each test."""
    for node in one_cluster.nodes:
        if b"role:master" in node.call("INFO", "replication"):
            node.call("FLUSHALL")
    return one_cluster


@pytest.fixture
async def client(cluster: Cluster, connects: Connects) -> Client:
    """A client of the cluster."""
    return await connects(cluster.url)


class Counters:
    """Callers that add to counters in one slot all the time, and know what they were told."""

    def __init__(self, client: Client, tag: str, *, callers: int = 16, with_wait: bool = False) -> None:
        self.acknowledged = [0] * callers
        self.unknown = [0] * callers
        self.refused = 0
        self.errors: list[ServerError] = []
        self._client = client
        self._tag = tag
        self._with_wait = with_wait
        self._is_over = asyncio.Event()
        self._tasks = [asyncio.create_task(self._count(caller)) for caller in range(callers)]

    async def stop(self) -> None:
        self._is_over.set()
        await asyncio.gather(*self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _count(self, caller: int) -> None:
        slot = slot_of(f"{{{self._tag}}}".encode())
        key = f"{{{self._tag}}}c{caller}"
        # As the engine does it: a payload is staged, then a function works on it and on other keys of the slot.
        script = "return server.call('INCR', KEYS[1])"
        group: list[Command] = [
            ("SET", f"{{{self._tag}}}staged{caller}", "payload", "PX", 60_000),
            ("EVAL", script, 2, key, f"{{{self._tag}}}staged{caller}"),
        ]
        if self._with_wait:
            group.append(("WAIT", 1, 50))
        while not self._is_over.is_set():
            try:
                replies = await self._client.execute(slot, group, decisive=1)
            except OutcomeUnknown:
                self.unknown[caller] += 1
            except Unavailable:
                self.refused += 1
            else:
                errors = [reply for reply in replies if isinstance(reply, ServerError)]
                self.errors += errors
                if not errors and (not self._with_wait or replies[2] == 1):
                    self.acknowledged[caller] += 1
                else:
                    self.unknown[caller] += 1

    async def go_on(self) -> None:
        """Wait until callers were told of 100 more successes."""
        so_far = sum(self.acknowledged)
        await until(lambda: sum(self.acknowledged) > so_far + 100, "callers count")

    async def check(self) -> None:
        """Compare what callers were told with what is stored."""
        slot = slot_of(f"{{{self._tag}}}".encode())
        for caller, acknowledged in enumerate(self.acknowledged):
            (stored,) = await self._client.execute(slot, [("GET", f"{{{self._tag}}}c{caller}")])
            executed = int(stored) if isinstance(stored, bytes) else 0
            assert acknowledged <= executed <= acknowledged + self.unknown[caller]


async def test_calls_go_to_the_owner_of_their_slot(cluster: Cluster, client: Client) -> None:
    """Keys all over the slots are written to their owners without a single redirection."""
    before = _answered(cluster, "MOVED")
    keys = [f"key{number}" for number in range(300)]
    await asyncio.gather(*(client.execute(slot_of(key.encode()), [("SET", key, key)]) for key in keys))
    replies = await asyncio.gather(*(client.execute(slot_of(key.encode()), [("GET", key)]) for key in keys))
    assert replies == [[key.encode()] for key in keys]
    assert _answered(cluster, "MOVED") == before
    assert client.is_cluster
    assert set(client.primaries()) == {cluster.owner(slot).name for slot in (0, 8_000, 16_383)}
    for slot in (0, 5_460, 5_461, 16_383):
        assert client.node_of(slot) == cluster.owner(slot).name


async def test_every_primary_is_reached(cluster: Cluster, client: Client) -> None:
    """`on_primaries` asks each of the three; `on_node` returns a redirection instead of following it."""
    replies = await client.on_primaries([("CLUSTER", "MYID")])
    assert len({str(reply) for reply in replies.values()}) == len(replies) == 3
    owner = client.node_of(slot_of(b"{fp:0}"))
    elsewhere = next(name for name in client.primaries() if name != owner)
    (reply,) = await client.on_node(elsewhere, [("GET", "{fp:0}")])
    (stays,) = await client.on_node(owner, [("GET", "{fp:0}")])
    assert isinstance(reply, ServerError)
    assert reply.code == "MOVED"
    assert stays is None


async def test_any_seed_will_do(cluster: Cluster, connects: Connects) -> None:
    """A client finds the cluster through a replica, and past seeds that are dead."""
    client = await connects(f"valkey+cluster://127.0.0.1:{free_port()},{cluster.nodes[3].name}")
    assert await client.execute(0, [("PING",)]) == [b"PONG"]
    with pytest.raises(Unavailable):
        await connect(parse_url(f"valkey+cluster://127.0.0.1:{free_port()}"), timeout_s=0.1)


async def test_a_moved_slot_is_followed_and_learnt(cluster: Cluster, client: Client) -> None:
    """The first call after a slot moved is redirected unseen; later ones go straight to the new owner."""
    slot = slot_of(b"{moved}")
    with Moving(cluster, slot) as (source, target):
        assert await client.execute(slot, [("SET", "{moved}a", 1)]) == [b"OK"]
        cluster.begin_move(slot, target)
        cluster.move_keys(slot, source, target, count=10)
        cluster.end_move(slot, source, target)
        assert await client.execute(slot, [("INCR", "{moved}a")]) == [2]
        assert client.node_of(slot) == target.name
        before = _answered(cluster, "MOVED")
        for _ in range(20):
            await client.execute(slot, [("INCR", "{moved}a")])
        assert _answered(cluster, "MOVED") == before


async def test_absent_keys_of_a_migrating_slot_are_asked_for(cluster: Cluster, client: Client) -> None:
    """While a slot migrates, a group on keys that are not here is executed, whole, where they go; ASK is not seen."""
    slot = slot_of(b"{ask}")
    with Moving(cluster, slot) as (source, target):
        await client.execute(slot, [("SET", "{ask}here", 1)])
        cluster.begin_move(slot, target)
        assert await client.execute(slot, [("SET", "{ask}new", 5), ("INCR", "{ask}new")]) == [b"OK", 6]
        assert await client.execute(slot, [("INCR", "{ask}here")]) == [2]
        assert source.call("EXISTS", "{ask}here") == 1
        assert client.node_of(slot) == source.name
        assert _answered(cluster, "ASK") > 0
        waiting = await client.blocking(slot)
        bell = asyncio.create_task(waiting.call(("BLPOP", "{ask}bell", 5), 6))
        await asyncio.sleep(0.05)
        await client.execute(slot, [("RPUSH", "{ask}bell", "token")])
        assert await bell == [b"{ask}bell", b"token"]
        cluster.move_keys(slot, source, target, count=10)
        cluster.end_move(slot, source, target)
        assert await client.execute(slot, [("GET", "{ask}here"), ("GET", "{ask}new")]) == [b"2", b"6"]


async def test_a_slot_migrates_under_load(cluster: Cluster, client: Client) -> None:
    """A classic migration under load loses nothing and repeats nothing; TRYAGAIN and ASK are not seen by callers."""
    slot = slot_of(b"{load}")
    with Moving(cluster, slot) as (source, target):
        for number in range(200):
            await client.execute(slot, [("SET", f"{{load}}ballast{number}", number)])
        async with Counters(client, "load") as counters:
            await counters.go_on()
            cluster.begin_move(slot, target)
            await asyncio.sleep(0.05)
            while cluster.move_keys(slot, source, target, count=7):  # noqa: ASYNC110 - it is the work that is asked
                await asyncio.sleep(0.002)
            cluster.end_move(slot, source, target)
            await counters.go_on()
        assert counters.errors == []
        assert counters.refused == sum(counters.unknown) == 0
        await counters.check()
        assert client.node_of(slot) == target.name
    assert _answered(cluster, "TRYAGAIN") > 0


async def test_slots_migrate_atomically_under_load(cluster: Cluster, client: Client) -> None:
    """An atomic migration (Valkey 9) under load loses nothing and repeats nothing."""
    slot = slot_of(b"{atomic}")
    source = cluster.owner(slot)
    target = cluster.owner(0) if cluster.owner(0) is not source else cluster.owner(16_383)
    if not source.call("COMMAND", "DOCS", "CLUSTER|MIGRATESLOTS"):
        pytest.skip("this server has no CLUSTER MIGRATESLOTS")
    for here, there in ((source, target), (target, source)):
        async with Counters(client, "atomic") as counters:
            await counters.go_on()
            destination = there.call("CLUSTER", "MYID")
            here.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", destination)
            await until(lambda: cluster.owner(slot) is there, "the slot moved")  # noqa: B023
            await counters.go_on()
        assert counters.errors == []
        assert counters.refused == sum(counters.unknown) == 0
        await counters.check()
        await client.execute(slot, [("DEL", *(f"{{atomic}}c{caller}" for caller in range(16)))])


async def test_waiting_calls_and_subscriptions_follow_their_slot(cluster: Cluster, client: Client) -> None:
    """A blocked call goes on waiting at the slot's new owner, and channels are subscribed to there."""
    slot = slot_of(b"{follow}")
    got: list[bytes] = []
    with Moving(cluster, slot) as (source, target):
        await client.subscriber().add(b"{follow}ch", slot, got.append)
        await client.execute(slot, [("SPUBLISH", "{follow}ch", "one")])
        await until(lambda: got == [b"one"], "the first message came")
        waiting = await client.blocking(slot)
        bell = asyncio.create_task(waiting.call(("BLPOP", "{follow}bell", 8), 9))
        await asyncio.sleep(0.05)
        cluster.begin_move(slot, target)
        cluster.end_move(slot, source, target)
        await until(lambda: got == [b"one", b""], "the interruption was told")
        await client.execute(slot, [("SPUBLISH", "{follow}ch", "two"), ("RPUSH", "{follow}bell", "token")])
        await until(lambda: got == [b"one", b"", b"two"], "the second message came")
        assert await bell == [b"{follow}bell", b"token"]
        assert target.call("PUBSUB", "SHARDCHANNELS") == [b"{follow}ch"]


async def test_a_slot_nobody_serves_is_waited_for(cluster: Cluster, connects: Connects) -> None:
    """CLUSTERDOWN is not seen by callers: they wait for the slot, or are told at their deadline."""
    slot = slot_of(b"{down}")
    owner = cluster.owner(slot)
    client = await connects(cluster.url)
    await client.execute(slot, [("SET", "{down}a", 1)])
    for node in cluster.nodes:
        node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
    owner.call("CLUSTER", "DELSLOTS", slot)
    try:
        with pytest.raises(Unavailable, match=r"CLUSTERDOWN|no server serves"):
            await client.execute(slot, [("INCR", "{down}a")], timeout_s=0.4)
        late = asyncio.create_task(client.execute(slot, [("INCR", "{down}a")], timeout_s=5))
        await asyncio.sleep(0.1)
        other = next(node for node in cluster.nodes if node.name in client.primaries() and node is not owner)
        assert await client.on_node(other.name, [("PING",)]) == [b"PONG"]
    finally:
        owner.call("CLUSTER", "ADDSLOTS", slot)
    assert isinstance((await late)[0], int)
    eventually(cluster.is_whole, "the cluster is whole again")


async def test_a_planned_failover_loses_nothing(cluster: Cluster, client: Client) -> None:
    """When a replica takes over in agreement with its primary, every call succeeds and counts once."""
    slot = slot_of(b"{plan}")
    primary = cluster.owner(slot)
    replica = _replica_of(cluster, primary)
    changes: list[int] = []
    client.on_topology_change(lambda: changes.append(1))
    async with Counters(client, "plan") as counters:
        await counters.go_on()
        replica.call("CLUSTER", "FAILOVER")
        await until(lambda: client.node_of(slot) == replica.name, "the client knows the new primary")
        await counters.go_on()
    assert counters.errors == []
    assert counters.refused == sum(counters.unknown) == 0
    await counters.check()
    await until(lambda: bool(changes), "the new primary was announced")
    assert set(await client.on_primaries([("PING",)])) == set(client.primaries())
    assert replica.name in client.primaries()
    await asyncio.to_thread(eventually, cluster.is_whole, "the old primary follows the new one")


async def test_a_killed_primary_is_replaced(connects: Connects) -> None:
    """After kill -9 the replica takes over: calls wait for it, what a replica confirmed is there, callbacks fire.

    Calls to the other primaries are served all the while; subscriptions and blocked calls are taken up again.
    """
    cluster = Cluster()
    try:
        client = await connects(cluster.url)
        slot, undisturbed = slot_of(b"{kill}"), slot_of(b"{fp:3}")
        primary = cluster.owner(slot)
        assert cluster.owner(undisturbed) is not primary
        changes: list[int] = []
        got: list[bytes] = []
        client.on_topology_change(lambda: changes.append(1))
        await client.subscriber().add(b"{kill}ch", slot, got.append)
        async with (
            Counters(client, "kill", callers=4, with_wait=True) as counters,
            Counters(client, "fp:3", callers=2) as others,
        ):
            await counters.go_on()
            primary.kill()
            waiting = await client.blocking(slot)
            bell = asyncio.create_task(waiting.call(("BLPOP", "{kill}bell", 8), 15))
            done = await client.execute(slot, [("SET", "{kill}a", 1)], timeout_s=15, repeatable=True)
            assert done == [b"OK"]
            await until(lambda: bool(changes), "the new primary was announced")
            assert client.node_of(slot) != primary.name
            assert primary.name not in client.primaries()
            await client.execute(slot, [("RPUSH", "{kill}bell", "token")])
            assert await bell == [b"{kill}bell", b"token"]
            await until(lambda: b"" in got, "the interruption was told")
            await others.go_on()
        await counters.check()
        await others.check()
        assert counters.errors == others.errors == []
        assert others.refused == sum(others.unknown) == 0
    finally:
        cluster.close()


async def test_a_joining_primary_is_found(cluster: Cluster, client: Client) -> None:
    """A primary without slots is announced and counted at the next look at the cluster, and asked when told to."""
    changes: list[int] = []
    client.on_topology_change(lambda: changes.append(1))
    with Server("--cluster-enabled", "yes", "--cluster-node-timeout", "1000") as joining:
        cluster.nodes[0].call("CLUSTER", "MEET", "127.0.0.1", joining.port)
        try:
            await asyncio.to_thread(
                eventually, lambda: all(_knows(node, joining) for node in cluster.nodes), "all know it"
            )
            # A lost connection is reason enough to look.
            cluster.owner(0).call("CLIENT", "KILL", "TYPE", "NORMAL")
            await until(lambda: joining.name in client.primaries(), "the client knows it")
            assert changes
            assert joining.name in await client.on_primaries([("PING",)])
            slot = slot_of(b"{join}")
            source = cluster.owner(slot)
            cluster.begin_move(slot, joining)
            assert await client.execute(slot, [("SET", "{join}a", 1), ("INCR", "{join}a")]) == [b"OK", 2]
            assert await client.execute(slot, [("DEL", "{join}a")]) == [1]
            for node in (source, joining):
                node.call("CLUSTER", "SETSLOT", slot, "STABLE")
        finally:
            identity = joining.call("CLUSTER", "MYID")
            for node in cluster.nodes:
                node.call("CLUSTER", "FORGET", identity)
            joining.kill()
    cluster.owner(0).call("CLIENT", "KILL", "TYPE", "NORMAL")
    await until(lambda: len(client.primaries()) == 3, "the client forgot it")


class Moving:
    """A source and a target for a slot, and the way back afterwards."""

    def __init__(self, cluster: Cluster, slot: int) -> None:
        self._cluster = cluster
        self._slot = slot
        self._source = cluster.owner(slot)
        owners = [cluster.owner(other) for other in (0, 8_000, 16_383)]
        self._target = next(owner for owner in owners if owner is not self._source)

    def __enter__(self) -> tuple[Server, Server]:
        return self._source, self._target

    def __exit__(self, *_: object) -> None:
        here, there = self._target, self._source
        if self._cluster.owner(self._slot) is here:
            self._cluster.begin_move(self._slot, there)
        while self._cluster.move_keys(self._slot, here, there, count=100):
            pass
        self._cluster.end_move(self._slot, here, there)


def _answered(cluster: Cluster, code: str) -> int:
    total = 0
    for node in cluster.nodes:
        for line in node.call("INFO", "errorstats").splitlines():
            name, _, count = line.partition(b":count=")
            if name == f"errorstat_{code}".encode():
                total += int(count)
    return total


def _replica_of(cluster: Cluster, primary: Server) -> Server:
    port = f"master_port:{primary.port}\r".encode()
    return next(node for node in cluster.nodes if port in node.call("INFO", "replication"))


def _knows(node: Server, other: Server) -> bool:
    lines: Iterator[str] = iter(node.call("CLUSTER", "NODES").decode().splitlines())
    return any(f":{other.port}@" in line and "handshake" not in line for line in lines)
