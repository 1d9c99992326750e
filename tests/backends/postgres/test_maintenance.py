"""Stores that the server's own tools copied, that live in another schema, that are checked with few rights."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.contract.errors import Unavailable
from flowfabric.contract.ids import PartitionCounts
from tests.backends.filling import Filling
from tests.backends.postgres.work import FEW
from tests.conformance.world import World
from tests.postgres import session


async def _fill(url: str) -> int:
    """Make a store with executions in many states; return how many."""
    backend = await backends.connect(url, partitions=FEW)
    try:
        filling = Filling(backend)
        await filling.fill()
        return len(filling.made)
    finally:
        await backend.close()


async def _check(url: str, *, partitions: PartitionCounts | None = None) -> int:
    """Check that a store is sound; return how many executions it has."""
    backend = await backends.connect(url, partitions=partitions)
    try:
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings
        return report.executions
    finally:
        await backend.close()


async def test_a_dump_is_a_whole_store(tmp_path: Path) -> None:
    """What pg_dump copies of the schema, and pg_restore puts into an empty database, is the store and goes on."""
    binaries = (session.shared_node().binaries / "postgres").resolve().parent
    with session.own_database() as source, session.own_database() as target:
        made = await _fill(source)
        dump = tmp_path / "ff.dump"
        for words in (
            ["pg_dump", "--format=custom", "--schema=ff", f"--file={dump}", source],
            ["pg_restore", "--exit-on-error", f"--dbname={target}", str(dump)],
        ):
            subprocess.run([binaries / words[0], *words[1:]], check=True, timeout=60)
        assert await _check(target) == made
        backend = await backends.connect(target)
        try:
            world = World(backend, ManualClock())
            lease = await world.leased(kind="after", lane="after")
            await world.execution.complete(lease)
        finally:
            await backend.close()
        assert await _check(target) == made + 1


async def test_a_store_in_another_schema() -> None:
    """A store in a schema of another name is checked there, beside one in the usual schema."""
    with session.own_database() as url:
        await _fill(url)
        assert await _fill(f"{url}?schema=other_one") == await _check(f"{url}?schema=other_one")


async def test_checking_needs_no_more_rights_than_working() -> None:
    """A role that may use the store may check it; repairing is for who may write its tables, and others are told so."""
    node = session.shared_node()
    with session.own_database() as url:
        made = await _fill(url)
        database = url.rpartition("/")[2]
        node.call("DROP ROLE IF EXISTS worker")
        node.call("CREATE ROLE worker LOGIN PASSWORD 'of-a-test'")
        for statement in (
            "GRANT USAGE ON SCHEMA ff TO worker",
            "GRANT SELECT ON ALL TABLES IN SCHEMA ff TO worker",
            "GRANT SELECT ON ALL SEQUENCES IN SCHEMA ff TO worker",
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ff TO worker",
        ):
            node.call(statement, database=database)
        theirs = f"postgresql://worker:of-a-test@127.0.0.1:{node.port}/{database}"
        try:
            assert await _check(theirs) == made
            node.call("DELETE FROM ff.ready", database=database)
            backend = await backends.connect(theirs)
            try:
                with pytest.raises(Unavailable, match="permission denied"):
                    await backend.maintenance.fsck(repair=True)
            finally:
                await backend.close()
            backend = await backends.connect(url)
            try:
                assert all(found.repaired for found in (await backend.maintenance.fsck(repair=True)).findings)
            finally:
                await backend.close()
            assert await _check(theirs) == made
        finally:
            node.drop_connections(database)
            node.call("DROP OWNED BY worker", database=database)
            node.call("DROP ROLE worker")
