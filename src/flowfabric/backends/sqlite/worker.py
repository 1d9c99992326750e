"""The worker registry in SQLite."""

from __future__ import annotations

from typing import Any, Final

from flowfabric.backends import assets
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.apply import apply
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.backends.sqlite.writer import Transaction, Writer
from flowfabric.contract import limits
from flowfabric.contract.worker import (
    WorkerExpire,
    WorkerExpired,
    WorkerHeartbeat,
    WorkerList,
    WorkerMarkDead,
    WorkerMarkedDead,
    WorkerPage,
    WorkerRecord,
    WorkerRefreshed,
    WorkerRegister,
    WorkerRegistered,
    info,
    is_alive,
)
from flowfabric.rules import lease as lease_rules, worker as rules

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/worker.sql")
_LIVE_MAX: Final = 10 * limits.PAGE_MAX
_DEAD_BATCH: Final = 256


class SqliteWorkers:
    """Operations on the worker registry."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def register(self, command: WorkerRegister) -> WorkerRegistered:
        """Register an instance, and publish the defaults of its kinds."""
        command.check()

        def run(transaction: Transaction) -> WorkerRegistered:
            existing = find_worker(transaction, command.namespace, command.worker_instance)
            reply: WorkerRegistered = _store(
                transaction, rules.register(existing, command, transaction.now_ms)
            )
            for defaults in command.defaults:
                transaction.catalog.store_defaults(transaction, command.namespace, defaults)
            return reply

        return await self._writer.write(run)

    async def heartbeat(self, command: WorkerHeartbeat) -> WorkerRefreshed:
        """Say that an instance is alive."""
        command.check()

        def run(transaction: Transaction) -> WorkerRefreshed:
            existing = find_worker(transaction, command.namespace, command.worker_instance)
            return _store(transaction, rules.heartbeat(existing, transaction.now_ms))

        return await self._writer.write(run)

    async def mark_dead(self, command: WorkerMarkDead) -> WorkerMarkedDead:
        """Remove an instance and expire its leases at once."""
        command.check()

        def run(transaction: Transaction) -> tuple[bool, int]:
            existing = find_worker(transaction, command.namespace, command.worker_instance)
            if existing is not None:
                transaction.execute(_SQL["remove"], (command.namespace, command.worker_instance))
            return existing is not None, _expire_leases(transaction, command)

        known, expired = await self._writer.write(run)
        done = expired
        while done == _DEAD_BATCH:
            done = await self._writer.write(
                lambda transaction: _expire_leases(transaction, command), weight=_DEAD_BATCH
            )
            expired += done
        return WorkerMarkedDead(status="marked" if known else "not_registered", leases_expired=expired)

    async def expire(self, command: WorkerExpire) -> WorkerExpired:
        """Mark an overdue registration as lapsed, or forget one that lapsed long ago."""
        command.check()

        def run(transaction: Transaction) -> WorkerExpired:
            existing = find_worker(transaction, command.namespace, command.worker_instance)
            decision = rules.expire(existing, transaction.now_ms)
            if decision.remove:
                transaction.execute(_SQL["remove"], (command.namespace, command.worker_instance))
            return _store(transaction, decision)

        return await self._writer.write(run)

    async def list(self, command: WorkerList) -> WorkerPage:
        """List the instances of a namespace by name."""
        command.check()
        return await self._readers.read(lambda snapshot: _list(snapshot, command))


def _expire_leases(transaction: Transaction, command: WorkerMarkDead) -> int:
    """Expire leases of an instance at once, at most a batch of them; return how many."""
    held = transaction.all(_SQL["held_by"], (f"{command.namespace} {command.worker_instance}", _DEAD_BATCH))
    for (seq,) in held:
        row = rows.load_seq(transaction, seq)
        if row is not None:
            apply(transaction, row, lease_rules.mark_dead(row.loaded, transaction.now_ms, command.reason))
    return len(held)


def find_worker(snapshot: Snapshot, namespace: str, instance: str) -> WorkerRecord | None:
    """Read a registered instance."""
    found = snapshot.first(_SQL["find"], (namespace, instance))
    return None if found is None else rows.decode_worker(found[0])


def live_workers(snapshot: Snapshot, namespace: str) -> list[WorkerRecord]:
    """Read the instances of a namespace whose heartbeat has not lapsed (the first 10,000 by name)."""
    found = [
        rows.decode_worker(stored) for (stored,) in snapshot.all(_SQL["of_namespace"], (namespace, _LIVE_MAX))
    ]
    return [worker for worker in found if is_alive(worker, snapshot.now_ms)]


def renewed(transaction: Transaction, namespace: str, instance: str) -> None:
    """Count a lease's renewal as the worker's heartbeat; a worker that is not registered stays so."""
    existing = find_worker(transaction, namespace, instance)
    decision = rules.heartbeat(existing, transaction.now_ms)
    if decision.refusal is None:
        _store(transaction, decision)


def _store(transaction: Transaction, decision: rules.WorkerDecision) -> Any:
    record = decision.record
    if record is not None:
        due_at_ms = rules.due_ms(record)
        transaction.execute(
            _SQL["store"], (record.namespace, record.worker_instance, due_at_ms, rows.encode(record))
        )
        transaction.news.due(due_at_ms)
    if decision.refusal is not None:
        raise decision.refusal
    return decision.reply


def _list(snapshot: Snapshot, command: WorkerList) -> WorkerPage:
    """The cursor is the name of the last instance on the page."""
    found = snapshot.all(_SQL["page"], (command.namespace, command.cursor or "", command.limit + 1))
    workers = [rows.decode_worker(stored) for (stored,) in found[: command.limit]]
    return WorkerPage(
        workers=tuple(
            info(
                worker,
                snapshot.first(_SQL["count_held"], (f"{worker.namespace} {worker.worker_instance}",))[0],
                snapshot.now_ms,
            )
            for worker in workers
        ),
        next_cursor=workers[-1].worker_instance if len(found) > command.limit else None,
    )
