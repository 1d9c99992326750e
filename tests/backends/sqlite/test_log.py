"""The write-ahead log, which only SQLite has: bounded while a reader stays on an old state, truncated after it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flowfabric.contract.errors import Unavailable
from tests.backends.sqlite.processes import child, line
from tests.backends.sqlite.store import PATIENCE_S, claim, complete, create, create_many, opened, until

MIB = 1024 * 1024


async def test_the_log_stays_bounded(tmp_path: Path) -> None:
    """Writing many times the bound leaves a log below it."""
    path = tmp_path / "store.db"
    log = path.with_name("store.db-wal")
    async with opened(path) as store:
        largest = 0
        for _ in range(60):
            await create_many(store, 64, b'"' + b"x" * 32_000 + b'"')
            largest = max(largest, log.stat().st_size)
        assert path.stat().st_size > 90 * MIB
        assert largest < 64 * MIB


async def test_a_long_reader_stops_creates_only(tmp_path: Path) -> None:
    """Past the bound creates are refused and the reader is named; work goes on; all is well when it is gone."""
    path = tmp_path / "store.db"
    log = path.with_name("store.db-wal")
    async with opened(path, log_bytes_max=4 * MIB) as store:
        await create_many(store, 20)
        async with child("read_long", path) as reader:
            _, pid = await line(reader)
            with pytest.raises(Unavailable, match=f"process {pid} ") as refused:
                for _ in range(1_000):
                    await create(store, input=_payload(64_000))
            assert refused.value.retryable
            assert log.stat().st_size < 8 * MIB
            (lease,) = await claim(store)
            await complete(store, lease)
            assert reader.stdin is not None
            reader.stdin.close()
            await reader.wait()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await create(store)
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
        await until(lambda: log.stat().st_size < 4 * MIB)
        assert not (await store.maintenance.fsck()).findings


async def test_an_idle_store_has_an_empty_log(tmp_path: Path) -> None:
    """A while after the last write everything is in the file itself."""
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await create_many(store, 100)
        before = path.stat().st_size
        await until(lambda: path.stat().st_size != before)


def _payload(size: int):
    from flowfabric.contract.payloads import Payload

    return Payload(b'"' + b"x" * size + b'"')
