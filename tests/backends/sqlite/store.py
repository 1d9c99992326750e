"""Short ways to use a SQLite store in tests."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from flowfabric.backends.clock import Clock, SystemClock
from flowfabric.backends.sqlite.backend import SqliteBackend, open_backend
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import ExecutionId, Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload

ROOT: Final = Path(__file__).resolve().parents[3]
PATIENCE_S: Final = 30.0
MEMORY: Final = "sqlite:///:memory:"


def url_of(path: Path) -> str:
    """Return the URL of a store in a file."""
    return f"sqlite:///{path}"


@asynccontextmanager
async def opened(
    path: Path | None, *, clock: Clock | None = None, **more: Any
) -> AsyncIterator[SqliteBackend]:
    """Open a store in a file (None: in memory) and close it again."""
    url = MEMORY if path is None else url_of(path)
    store = await open_backend(url, clock=clock or SystemClock(), **more)
    try:
        yield store
    finally:
        await store.close()


async def create(store: SqliteBackend, **fields: Any) -> ExecutionId:
    """Create an execution of kind `k`, unless told otherwise."""
    fields.setdefault("kind", Kind("k"))
    return (await store.execution.create(ExecutionCreate(**fields))).execution_id


async def create_many(store: SqliteBackend, count: int, data: bytes = b"null") -> None:
    """Create executions of kind `k`, in batches."""
    for start in range(0, count, 1_000):
        items = (ExecutionCreate(kind=Kind("k"), input=Payload(data)),) * min(1_000, count - start)
        await store.execution.create_many(ExecutionCreateMany(executions=items))


def claiming(worker: str = "w", **fields: Any) -> LeaseClaim:
    """Build a claim from lane `default`, unless told otherwise."""
    fields.setdefault("lanes", (Lane("default"),))
    return LeaseClaim(worker_id=WorkerId(worker), worker_instance=WorkerInstance(worker), **fields)


async def claim(store: SqliteBackend, worker: str = "w", **fields: Any) -> tuple[Lease, ...]:
    """Claim."""
    return (await store.lease.claim(claiming(worker, **fields))).leases


async def complete(store: SqliteBackend, lease: Lease, data: bytes = b"null") -> None:
    """Complete with a result."""
    await store.execution.complete(
        ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=Payload(data))
    )


def fingerprint(path: Path) -> dict[str, str]:
    """Return the digest of every file in the folder of a store."""
    return {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()
        for entry in sorted(path.parent.iterdir())
        if entry.is_file()
    }


def tamper(path: Path, *statements: str) -> None:
    """Change a closed store's rows behind its back."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for statement in statements:
            connection.execute(statement)
    finally:
        connection.close()


async def until(happened: Callable[[], bool]) -> None:
    """Wait until something can be seen to have happened."""
    async with asyncio.timeout(PATIENCE_S):
        while not happened():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.001)


async def settled(times: int = 20) -> None:
    """Let everything that is ready to run on this loop run."""
    for _ in range(times):
        await asyncio.sleep(0)
