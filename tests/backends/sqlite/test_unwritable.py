"""A disk that is full or a file that is read-only: typed, nothing half-written, and over as soon as it is mended."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from flowfabric.contract.errors import FlowFabricError, Unavailable
from flowfabric.contract.execution import ExecutionList
from tests.backends.sqlite.processes import child, line, rest
from tests.backends.sqlite.store import claim, complete, create, create_many, opened


async def test_a_full_store_resumes(tmp_path: Path) -> None:
    """At the size limit every create is refused whole; reads go on; with room again everything works."""
    from flowfabric.contract.payloads import Payload

    big = Payload(b'"' + b"x" * 200_000 + b'"')
    async with opened(tmp_path / "store.db") as store:
        await create(store)
        (pages,) = await store.writer.alone(
            lambda connection: connection.execute("PRAGMA page_count").fetchone()
        )
        await store.writer.alone(
            lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 100}").fetchall()
        )
        created = 1
        with pytest.raises(Unavailable, match="disk is full"):
            for _ in range(100):
                await create(store, input=big)
                created += 1
        listed = await store.execution.list(ExecutionList(limit=1_000))
        assert len(listed.executions) == created
        assert not (await store.maintenance.fsck()).findings
        await store.writer.alone(
            lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchall()
        )
        await create(store, input=big)


@pytest.mark.skipif(sys.platform != "linux", reason="file-size limits are raised by signal elsewhere")
async def test_a_disk_that_takes_no_more_resumes(tmp_path: Path) -> None:
    """When the system refuses to let files grow, creates are refused; without the limit the store goes on, intact."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create(store)
    async with child("create_limited", path, 300_000) as other:
        verb, code, created = await line(other)
        assert verb == "refused" and code in {"unavailable", "outcome_unknown"} and int(created) > 0
        verb, claimed = await line(other)
        assert verb == "resumed" and int(claimed) in {min(256, int(created) + 2), min(256, int(created) + 3)}
        assert await line(other) == ["findings", "0"]
        assert await rest(other) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
async def test_a_store_that_may_only_be_read_is_unavailable(tmp_path: Path) -> None:
    """A process without the right to write gets Unavailable and changes nothing."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create(store)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != folder.parent and folder.stat().st_uid == 0 and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    path.chmod(0o644)
    before = path.read_bytes()
    async with child("use_as_nobody", path) as other:
        code, *message = await line(other)
        assert code == "unavailable", message
        assert "read-only:" in message
    assert path.read_bytes() == before


async def test_a_store_turned_read_only_resumes(tmp_path: Path) -> None:
    """While nothing can be written changes are Unavailable and reads are served; afterwards changes are too."""
    async with opened(tmp_path / "store.db") as store:
        await create_many(store, 2)
        (lease,) = await claim(store)

        async def switch(value: str) -> None:
            await store.writer.alone(lambda connection: connection.execute(f"PRAGMA query_only = {value}"))

        await switch("ON")
        with pytest.raises(FlowFabricError) as refused:
            await create(store)
        assert isinstance(refused.value, Unavailable) and refused.value.retryable
        assert len((await store.execution.list(ExecutionList())).executions) == 2
        await switch("OFF")
        await complete(store, lease)


async def test_a_lost_file_is_unavailable(tmp_path: Path) -> None:
    """A failing connection is opened again; a file that is gone is not made anew under a running store."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create(store)
        kept = path.rename(tmp_path / "moved.db")
        await store.writer.alone(lambda connection: connection.close())
        for _ in range(2):
            with pytest.raises(FlowFabricError):
                await create(store)
        assert not path.exists()
        kept.rename(path)
        await create(store)
