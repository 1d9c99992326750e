"""Opening a store file, which only SQLite has: what may be opened, and that everything else stays as it was."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from flowfabric.backends import ManualClock, connect
from flowfabric.backends.sqlite import opening
from flowfabric.backends.sqlite.backend import SqliteBackend
from flowfabric.contract.errors import Corrupt, FlowFabricError, Misuse, Unavailable
from flowfabric.contract.execution import ExecutionReadState
from flowfabric.contract.ids import PartitionCounts
from tests.backends.sqlite.store import create, create_many, fingerprint, opened, tamper, url_of


async def refused(path: Path, kind: type[FlowFabricError], words: str) -> None:
    """Opening is refused with these words, and no file beside or under the path has changed."""
    before = fingerprint(path)
    with pytest.raises(kind, match=words):
        await connect(url_of(path))
    assert fingerprint(path) == before
    assert not path.with_name(path.name + "-wake").exists()


async def test_a_store_is_made_on_first_use(tmp_path: Path) -> None:
    """Opening a file that does not exist makes it, with its folder; opening it again finds what was created."""
    path = tmp_path / "new" / "folder" / "store.db"
    async with opened(path) as store:
        execution_id = await create(store)
    assert path.stat().st_mode & 0o077 == 0
    async with opened(path) as store:
        await store.execution.read_state(ExecutionReadState(execution_id=execution_id))


async def test_closing_leaves_one_file(tmp_path: Path) -> None:
    """After the last close nothing but the store's file is left."""
    async with opened(tmp_path / "store.db") as store:
        await create(store)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store.db"]


async def test_a_relative_url_is_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sqlite:///name.db` lies in the working folder, also when that changes later."""
    monkeypatch.chdir(tmp_path)
    store = await connect("sqlite:///kept/here.db")
    monkeypatch.chdir("/")
    assert isinstance(store, SqliteBackend)
    await create(store)
    await store.close()
    assert (tmp_path / "kept" / "here.db").is_file()
    assert store.url == "sqlite:///kept/here.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:////tmp/",
        "sqlite:///a.db?mode=ro",
        "sqlite:///a%00b",
        "mysql://x",
        "x",
    ],
)
async def test_a_malformed_url_is_misuse(url: str) -> None:
    """A URL that names no store is refused."""
    with pytest.raises(Misuse):
        await connect(url)


async def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """A text file is not opened and not changed."""
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 50)
    await refused(path, Misuse, "no SQLite file")


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    """A folder is not a store."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(Misuse, match="folder"):
        await connect(url_of(tmp_path / "folder"))


async def test_a_file_of_another_application_is_refused(tmp_path: Path) -> None:
    """A SQLite file that is not a store is not opened and not changed."""
    path = tmp_path / "theirs.db"
    tamper(path, "CREATE TABLE theirs (x)")
    await refused(path, Misuse, "another application")


async def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """A store that a newer FlowFabric migrated is not opened and not changed."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create(store)
    tamper(path, f"PRAGMA user_version = {len(opening.MIGRATIONS) + 1}")
    await refused(path, Misuse, "newer FlowFabric")


async def test_a_migration_that_changed_is_refused(tmp_path: Path) -> None:
    """A store whose schema came from other migrations than those known here is not served."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create(store)
    tamper(path, "UPDATE migration SET checksum = 'other'")
    with pytest.raises(Corrupt, match="migration 1"):
        await connect(url_of(path))


@pytest.mark.parametrize("size", [50, 100, 4_096, 20_000])
async def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    """A store that lost its end is reported as damaged and not changed."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create_many(store, 200)
    path.write_bytes(path.read_bytes()[:size])
    await refused(path, Corrupt, "truncated")


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """A store with overwritten pages is reported as damaged and not changed."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create_many(store, 500)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4_096 * 4_096
    content[middle : middle + 8_192] = b"\xa5" * 8_192
    path.write_bytes(content)
    await refused(path, Corrupt, "damaged")


async def test_partition_counts_are_fixed(tmp_path: Path) -> None:
    """Other partition counts than those the store was made with are refused; none given means its own."""
    path = tmp_path / "store.db"
    counts = PartitionCounts(flow=8, budget=2, quota=2)
    async with opened(path, partitions=counts) as store:
        assert (await store.capabilities()).partitions == counts
    with pytest.raises(Misuse, match="8/2/2"):
        await connect(url_of(path), partitions=PartitionCounts())
    async with opened(path) as store:
        assert (await store.capabilities()).partitions == counts


async def test_a_missing_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    """A path below a file cannot be created."""
    (tmp_path / "file").write_text("x")
    with pytest.raises((Unavailable, Misuse)):
        await connect(url_of(tmp_path / "file" / "store.db"))


async def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Several openings of a file that does not exist yet all succeed and see one store."""
    path = tmp_path / "store.db"
    stores = await asyncio.gather(*(connect(url_of(path)) for _ in range(8)))
    first = stores[0]
    assert isinstance(first, SqliteBackend)
    execution_id = await create(first)
    for store in stores:
        await store.execution.read_state(ExecutionReadState(execution_id=execution_id))
        await store.close()


async def test_time_never_goes_back(tmp_path: Path) -> None:
    """A store opened with a clock that is behind goes on from the latest instant it stored."""
    path = tmp_path / "store.db"
    async with opened(path, clock=ManualClock(2_000_000)) as store:
        await create(store)
    async with opened(path, clock=ManualClock(1_000_000)) as store:
        await create(store)
        assert await store.now_ms() == 2_000_000
        assert not (await store.maintenance.fsck()).findings


def test_network_file_systems_are_recognised() -> None:
    """The file system of a folder is that of the longest mount point above it."""
    mounts = (
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "40 22 0:50 / /mnt/far\\040away rw - nfs4 host:/x rw\n"
        "41 40 0:51 / /mnt/far\\040away/near rw - tmpfs tmpfs rw\n"
    )
    assert opening.file_system_of(Path("/mnt/far away/deep"), mounts) == "nfs4"
    assert opening.file_system_of(Path("/mnt/far away/near/x"), mounts) == "tmpfs"
    assert opening.file_system_of(Path("/mnt/far"), mounts) == "ext4"
    assert "nfs4" in opening.NETWORK


def test_the_header_names_the_application(tmp_path: Path) -> None:
    """The number in the statements is the one that is looked for."""
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.execute(opening.statement("application_id"))
    (found,) = connection.execute("PRAGMA application_id").fetchone()
    connection.close()
    assert found == opening.APPLICATION_ID
