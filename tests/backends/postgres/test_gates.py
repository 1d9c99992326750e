"""What servers are refused, and what is said about their durability: only Postgres has these settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from flowfabric import backends
from flowfabric.backends.postgres import gates, opening
from flowfabric.backends.postgres.gates import Server
from flowfabric.contract.errors import Misuse
from flowfabric.contract.states import Durability
from tests.postgres.servers import Node, single_node
from tests.postgres.session import own_database, shared_node

GOOD = Server(
    number=150_000,
    version="15.0",
    encoding="UTF8",
    fsync="on",
    synchronous_commit="on",
    standbys="",
    statement_timeout="30s",
    lock_timeout="5s",
    is_standby=False,
    read_only="off",
)


def like(**changes: object) -> Server:
    return msgspec.structs.replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"number": 149_999, "version": "14.9"}, "requires Postgres 15 or newer"),
        ({"number": 90_624}, "requires Postgres 15"),
        ({"fsync": "off"}, "fsync=off"),
        ({"encoding": "SQL_ASCII"}, "ENCODING 'UTF8'"),
        ({"encoding": "LATIN1"}, "ENCODING 'UTF8'"),
        ({"is_standby": True}, "standby"),
        ({"read_only": "on"}, "default_transaction_read_only"),
    ],
)
def test_unfit_servers(changes: dict[str, object], said: str) -> None:
    """A server that is too old, forgetful, a standby or speaks another encoding is refused with what would help."""
    with pytest.raises(Misuse, match=said) as refused:
        gates.check_server("host", like(**changes))
    assert "host" in refused.value.message or "database" in refused.value.message


def test_fit_servers() -> None:
    """Postgres 15 is the oldest that is accepted; newer ones are."""
    for number in (150_000, 160_004, 190_000):
        gates.check_server("host", like(number=number))


@pytest.mark.parametrize(
    ("commit", "standbys", "level"),
    [
        ("off", "", Durability.MEMORY),
        ("off", "*", Durability.MEMORY),
        ("local", "*", Durability.FSYNC),
        ("on", "", Durability.FSYNC),
        ("remote_write", "", Durability.FSYNC),
        ("remote_apply", "  ", Durability.FSYNC),
        ("on", "FIRST 1 (a)", Durability.REPLICATED),
        ("remote_write", "*", Durability.REPLICATED),
        ("remote_apply", "*", Durability.REPLICATED),
    ],
)
def test_durability(commit: str, standbys: str, level: Durability) -> None:
    """An acknowledgement promises what synchronous_commit says; replicas only when standbys are named."""
    assert like(synchronous_commit=commit, standbys=standbys).durability is level


def test_durability_that_is_asked_for() -> None:
    """Less than what was asked is refused, more is not."""
    gates.check_durability("host", GOOD, None)
    gates.check_durability("host", GOOD, Durability.MEMORY)
    gates.check_durability("host", GOOD, Durability.FSYNC)
    with pytest.raises(Misuse, match="synchronous_standby_names"):
        gates.check_durability("host", GOOD, Durability.REPLICATED)
    with pytest.raises(Misuse, match="synchronous_commit=on"):
        gates.check_durability("host", like(synchronous_commit="off"), Durability.FSYNC)
    assert gates.strongest(None, Durability.MEMORY, Durability.FSYNC) is Durability.FSYNC
    assert gates.strongest(None, None) is None


# Real servers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("forgetful")
    folder.chmod(0o711)
    with single_node(folder / "node", fsync="off") as node:
        yield node


async def test_fsync_off_is_refused(forgetful: Node) -> None:
    """A real server that does not flush what it acknowledges is refused before anything is made."""
    with pytest.raises(Misuse, match="fsync=off"):
        await backends.connect(forgetful.url)
    assert forgetful.one("SELECT to_regnamespace('ff') IS NULL")


async def test_standby_is_refused(tmp_path: Path) -> None:
    """A real standby is refused, and says that the primary is wanted."""
    tmp_path.chmod(0o711)
    with single_node(tmp_path / "node") as node:
        node.stop()
        (node.data / "standby.signal").touch()
        node.start()
        with pytest.raises(Misuse, match="standby"):
            await backends.connect(node.url)


async def test_encoding_is_refused() -> None:
    """A database that does not check its text is refused."""
    node = shared_node()
    node.call("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII'")
    try:
        with pytest.raises(Misuse, match="SQL_ASCII"):
            await backends.connect(node.url_of("bytes"))
    finally:
        node.drop_database("bytes")


async def test_durability_of_a_real_server() -> None:
    """What the role is set to counts, is reported, and can be required."""
    with own_database() as url:
        database = url.rpartition("/")[2]
        backend = await backends.connect(url)
        assert (await backend.capabilities()).durability is Durability.FSYNC
        await backend.close()
        shared_node().call(f"ALTER DATABASE {database} SET synchronous_commit = off")
        backend = await backends.connect(url)
        assert (await backend.capabilities()).durability is Durability.MEMORY
        await backend.close()
        with pytest.raises(Misuse, match="durability=fsync"):
            await backends.connect(f"{url}?durability=fsync")


async def test_replicated_is_read_from_the_server(tmp_path: Path) -> None:
    """With standbys that must confirm, acknowledgements promise replication."""
    tmp_path.chmod(0o711)
    with single_node(tmp_path / "node", synchronous_standby_names="*") as node:
        target = opening.parse(node.url)
        connection = await opening.connect(target.where)
        try:
            server = await opening.look(connection, target)
        finally:
            await connection.close()
    assert server.durability is Durability.REPLICATED
