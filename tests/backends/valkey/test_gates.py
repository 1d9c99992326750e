"""What a server must be before a store is opened on it: the boot gates are about Valkey's own settings."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.backends.valkey import durability, gates, opening
from flowfabric.backends.valkey.durability import Persistence
from flowfabric.backends.valkey.gates import Server as Seen
from flowfabric.backends.valkey.store import open_store
from flowfabric.contract.errors import Corrupt, Misuse, Unavailable
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability
from tests.backends.valkey.conftest import Opens
from tests.backends.valkey.wire.servers import Server

VALKEY_8 = "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n"
VALKEY_7 = "redis_version:7.2.5\r\nserver_name:valkey\r\n"
REDIS = "redis_version:7.4.1\r\nredis_mode:standalone\r\n"


@pytest.mark.parametrize(
    ("info", "hello", "version"),
    [
        (VALKEY_8, {}, (8, 0, 1)),
        (VALKEY_7, {}, (7, 2, 5)),
        ("", {"server": "valkey", "version": "9.1.2"}, (9, 1, 2)),
        (VALKEY_8, {"server": "redis", "version": "7.2.4"}, (8, 0, 1)),
    ],
)
def test_valkey_is_let_in(info: str, hello: dict[str, str], version: gates.Version) -> None:
    """A server that says it is Valkey 7.2 or newer is accepted, whatever it greets as."""
    seen = gates.server_of("h:1", gates.parse_info(info), hello)
    assert (seen.product, seen.version) == ("valkey", version)
    gates.check_server(seen)


@pytest.mark.parametrize(
    ("info", "hello"), [(REDIS, {}), ("", {"server": "redis", "version": "7.2.4"}), ("", {})]
)
def test_redis_is_refused_by_name(info: str, hello: dict[str, str]) -> None:
    """Redis, and what does not say what it is, is refused with the published reason."""
    with pytest.raises(Misuse, match=r"Valkey-native .* against Redis.*server_name:valkey"):
        gates.check_server(gates.server_of("h:1", gates.parse_info(info), hello))


def test_an_old_valkey_is_refused() -> None:
    """Before 7.2 there is too little to build on."""
    with pytest.raises(Misuse, match=r"7\.0\.15.*requires Valkey 7\.2"):
        gates.check_server(Seen(address="h:1", product="valkey", version=(7, 0, 15)))


@pytest.mark.parametrize(
    ("version", "vulnerable"),
    [
        ((7, 2, 10), True),
        ((7, 2, 11), False),
        ((8, 0, 1), True),
        ((8, 0, 5), True),
        ((8, 0, 6), False),
        ((8, 1, 3), True),
        ((8, 1, 4), False),
        ((9, 0, 0), False),
        ((9, 1, 2), False),
    ],
)
def test_the_releases_without_the_fix_are_known(version: gates.Version, *, vulnerable: bool) -> None:
    """Each series has its own first release with the fix for the escape from the Lua sandbox."""
    assert gates.is_vulnerable(version) is vulnerable


async def test_a_server_that_evicts_is_refused(opens: Opens) -> None:
    """A store is not opened where the server would drop keys when memory is short; nothing is written."""
    with Server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        with pytest.raises(Misuse, match=r"maxmemory-policy allkeys-lru.*noeviction"):
            await opens(server.url)
        assert server.call("DBSIZE") == 0
        assert server.call("FUNCTION", "LIST") == []


ACL = "~* &* +@all -config"


async def test_without_config_the_policy_comes_from_info(opens: Opens) -> None:
    """A user who may not read the configuration is let in by what INFO says, and durability is taken for the worse."""
    with Server("--appendonly", "yes", "--appendfsync", "always") as server:
        server.call("ACL", "SETUSER", "limited", "on", ">secret", *ACL.split())
        url = f"valkey://limited:secret@127.0.0.1:{server.port}/0"
        store = await opens(url)
        assert store.found.promise.level is Durability.MEMORY
        assert "appendfsync" in store.found.promise.window
        assert (await opens(server.url)).found.promise.level is Durability.FSYNC


async def test_counts_are_fixed_when_the_store_is_made(place: str, opens: Opens) -> None:
    """The first process writes the partition counts; later ones take them, and a differing wish is refused."""
    first = await opens(place, partitions=PartitionCounts(flow=8, budget=2, quota=3))
    later = await opens(place, partitions=None)
    assert later.layout == first.layout
    with pytest.raises(Misuse, match=r"8/2/3.*16/32/32"):
        await opens(place, partitions=PartitionCounts(flow=16))


async def test_processes_that_start_at_once_agree(place: str, opens: Opens) -> None:
    """Of two that make the store at the same time one decides, and the other finds its wish refused."""
    outcomes = await asyncio.gather(
        *(opens(place, partitions=PartitionCounts(flow=flow)) for flow in (4, 8, 4, 8)),
        return_exceptions=True,
    )
    layouts = {outcome.layout for outcome in outcomes if not isinstance(outcome, BaseException)}
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(layouts) == 1
    assert [type(outcome) for outcome in refused] == [Misuse, Misuse]


async def test_a_newer_layout_is_refused(single: Server, opens: Opens) -> None:
    """A store made by a newer version is left alone, and one that cannot be read is said to be damaged."""
    newer = '{"layout":2,"flow":4,"budget":4,"quota":4,"created_at_ms":1}'
    single.call("HSET", "{w}:meta", gates.LAYOUT_FIELD, newer)
    with pytest.raises(Misuse, match="newer FlowFabric"):
        await opens(single.url)
    single.call("HSET", "{w}:meta", gates.LAYOUT_FIELD, "{}")
    with pytest.raises(Corrupt, match="does not say what it is"):
        await opens(single.url)


# Durability -------------------------------------------------------------------------------------------------------


def _primary(*, fsync: str | None = "always", append_only: bool = True, replicas: int = 0) -> Persistence:
    return Persistence(address="h:1", append_only=append_only, fsync=fsync, replicas=replicas)


@pytest.mark.parametrize(
    ("primaries", "level"),
    [
        ([_primary()], Durability.FSYNC),
        ([_primary(fsync="everysec")], Durability.MEMORY),
        ([_primary(fsync="no")], Durability.MEMORY),
        ([_primary(append_only=False)], Durability.MEMORY),
        ([_primary(fsync=None)], Durability.MEMORY),
        ([_primary(), _primary(fsync="everysec")], Durability.MEMORY),
        ([_primary(replicas=2), _primary(replicas=2)], Durability.FSYNC),
    ],
)
def test_the_weakest_primary_counts(primaries: list[Persistence], level: Durability) -> None:
    """A store promises what its weakest primary does, and says what a crash loses."""
    promise = durability.promise_of(primaries, None)
    assert promise.level is level
    assert promise.window
    assert not promise.waits


def test_more_than_found_is_refused() -> None:
    """Asking for more than the servers are set to is refused with what to set."""
    with pytest.raises(Misuse, match="appendonly yes and appendfsync always"):
        durability.promise_of([_primary(fsync="everysec")], Durability.FSYNC)
    with pytest.raises(Unavailable, match="no connected replica"):
        durability.promise_of([_primary(replicas=1), _primary()], Durability.REPLICATED)
    assert durability.promise_of([_primary(replicas=1)], Durability.REPLICATED).waits


def test_the_url_asks_for_durability() -> None:
    """The option is the engine's and is taken out of what the connection is told."""
    assert opening.parse("valkey://h/0").durability is None
    target = opening.parse("valkey://h/0?durability=replicated")
    assert target.durability is Durability.REPLICATED
    assert opening.parse("valkeys://h/0?insecure=1&durability=fsync").address.tls is not None
    for url in (
        "valkey://h?durability=most",
        "valkey://h?durability=fsync&durability=fsync",
        "valkey://h?x=1",
    ):
        with pytest.raises(Misuse):
            opening.parse(url)


async def test_nobody_there_is_unavailable() -> None:
    """A store that cannot be reached is unavailable, not wrong."""
    with Server() as server:
        url = server.url
    with pytest.raises(Unavailable):
        async with asyncio.timeout(30):
            await open_store(url)
