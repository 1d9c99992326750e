"""What a backend is: the stores of all concepts, what it can physically do, and the engine's seam to it.

`Stores` is what everybody above a backend uses, and what the HTTP client has too. `Backend` adds what only an embedded
store has: the due-time index for timers, health, maintenance.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from flowfabric.contract.attempt import AttemptStore
from flowfabric.contract.execution import ExecutionStore
from flowfabric.contract.ids import ExecutionId, Namespace, PartitionCounts, WorkerInstance
from flowfabric.contract.lane import LaneStore
from flowfabric.contract.lease import LeaseStore
from flowfabric.contract.states import Durability
from flowfabric.contract.stream import StreamStore
from flowfabric.contract.worker import WorkerStore


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a store physically is. Every operation works on every backend, so none is listed here."""

    family: str
    """`sqlite`, `valkey` or `postgres`."""
    version: str
    """Of the store itself."""
    flowfabric: str
    """Version of FlowFabric in front of it."""
    durability: Durability
    several_nodes: bool
    push: bool
    partitions: PartitionCounts


class Stores(Protocol):
    """The stores of all concepts."""

    @property
    def execution(self) -> ExecutionStore:
        """Operations on executions."""
        ...

    @property
    def lease(self) -> LeaseStore:
        """Operations on leases."""
        ...

    @property
    def attempt(self) -> AttemptStore:
        """Reads of attempts."""
        ...

    @property
    def stream(self) -> StreamStore:
        """Operations on streams."""
        ...

    @property
    def worker(self) -> WorkerStore:
        """Operations on the worker registry."""
        ...

    @property
    def lane(self) -> LaneStore:
        """Operations on lanes."""
        ...

    async def capabilities(self) -> Capabilities:
        """Say what the store physically is."""
        ...

    async def ping(self) -> None:
        """Reach the store, or raise `Unavailable`."""
        ...

    async def close(self) -> None:
        """Let go of every resource. Waiting calls end with `Unavailable`."""
        ...


class DueKind(StrEnum):
    """What is due; each kind is handled by one operation."""

    LEASE_EXPIRY = "lease_expiry"
    DELAYED = "delayed"
    ATTEMPT_TIMEOUT = "attempt_timeout"
    EXECUTION_DEADLINE = "execution_deadline"
    RETENTION = "retention"
    GRANT_EXPIRY = "grant_expiry"
    WORKER_LIVENESS = "worker_liveness"


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is due."""

    kind: DueKind
    due_at_ms: int
    execution_id: ExecutionId | None = None
    namespace: Namespace | None = None
    worker_instance: WorkerInstance | None = None


class DueBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What is due now, earliest first, and when the next thing will be."""

    now_ms: int
    due: tuple[Due, ...]
    next_due_at_ms: int | None


class TimerStore(Protocol):
    """The engine's view of the due-time index."""

    async def read_due(self, limit: int) -> DueBatch:
        """Read what is due on the store's clock, at most `limit` entries."""
        ...

    async def wait_change(self, until_ms: int | None, timeout_s: float) -> None:
        """Wait until the store's clock reaches `until_ms`, something is due earlier than that, or the timeout."""
        ...

    async def sweep(self) -> int:
        """Do bounded housekeeping (forgotten keys, free space); return how many entries were cleaned."""
        ...


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One disagreement that fsck found."""

    invariant: str
    """Number and name in docs/reference/invariants.md."""
    subject: str
    message: str
    repaired: bool = False


class FsckReport(msgspec.Struct, frozen=True, kw_only=True):
    """What fsck looked at and found."""

    executions: int
    attempts: int
    frames: int
    findings: tuple[Finding, ...]


class BackupReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was copied."""

    path: str
    bytes: int
    elapsed_ms: int


class Maintenance(Protocol):
    """What operators do to a store."""

    async def fsck(
        self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> FsckReport:
        """Check every stored invariant; with `repair`, rebuild index entries that disagree with their record.

        `progress` is called with (executions checked, executions in all).
        """
        ...

    async def backup(
        self, destination: Path, *, progress: Callable[[int, int], None] | None = None
    ) -> BackupReport:
        """Copy the store to a new file while it is in use; the copy is a consistent state."""
        ...


class Backend(Stores, Protocol):
    """An embedded store."""

    @property
    def timers(self) -> TimerStore:
        """The engine's view of the due-time index."""
        ...

    @property
    def maintenance(self) -> Maintenance:
        """What operators do to a store."""
        ...

    @property
    def url(self) -> str:
        """The URL it was opened with, without credentials."""
        ...

    async def now_ms(self) -> int:
        """The store's clock."""
        ...

    async def another(self) -> Stores:
        """Return the store for calls from the running event loop; the caller closes it, unless it is this very object.

        A store that takes calls from any event loop is its own; one whose connections belong to a loop is opened again.
        """
        ...
