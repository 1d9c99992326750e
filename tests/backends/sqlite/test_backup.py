"""Copying the file while it is in use, which is how SQLite is backed up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flowfabric.contract.errors import Misuse, Unavailable
from flowfabric.contract.execution import ExecutionList
from tests.backends.sqlite.store import claim, complete, create, create_many, opened


@pytest.mark.parametrize("memory", [False, True], ids=["file", "memory"])
async def test_a_backup_is_one_consistent_state(tmp_path: Path, memory: bool) -> None:
    """A copy made while others write opens as a store without a fault, with all that was there when it began."""
    async with opened(None if memory else tmp_path / "store.db") as store:
        await create_many(store, 500, b'"' + b"x" * 4_000 + b'"')
        stop = asyncio.Event()

        async def busy() -> None:
            while not stop.is_set():
                await create(store)
                for lease in await claim(store, max_tasks=3):
                    await complete(store, lease)

        writers = [asyncio.create_task(busy()) for _ in range(4)]
        pages: list[tuple[int, int]] = []
        copy = tmp_path / "copy.db"
        report = await store.maintenance.backup(
            copy, progress=lambda done, total: pages.append((done, total))
        )
        stop.set()
        await asyncio.gather(*writers)
    assert report.path == str(copy)
    assert report.bytes == copy.stat().st_size > 500 * 4_000
    assert pages[-1][0] == pages[-1][1]
    assert (
        sorted(entry.name for entry in tmp_path.iterdir()) == ["copy.db"]
        if memory
        else ["copy.db", "store.db"]
    )
    async with opened(copy) as store:
        found = await store.maintenance.fsck()
        assert found.executions >= 500 and not found.findings
        await create(store)


async def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    """A backup to a file that exists is refused, and the file stays."""
    async with opened(tmp_path / "store.db") as store:
        other = tmp_path / "other"
        other.write_text("precious")
        with pytest.raises(Misuse, match="exists"):
            await store.maintenance.backup(other)
        with pytest.raises(Misuse, match="exists"):
            await store.maintenance.backup(tmp_path / "store.db")
        assert other.read_text() == "precious"


async def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """A destination that cannot be written is Unavailable and leaves nothing behind."""
    async with opened(tmp_path / "store.db") as store:
        with pytest.raises(Unavailable):
            await store.maintenance.backup(tmp_path / "missing" / "copy.db")
        await create(store)
        assert len((await store.execution.list(ExecutionList())).executions) == 1
