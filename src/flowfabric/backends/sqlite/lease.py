"""Leases in SQLite: claims that wait for work, grants, renewals and how a lease ends."""

from __future__ import annotations

import random
import time
from typing import Any, Final

from flowfabric.backends import assets
from flowfabric.backends.bells import Bells, deliver
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.apply import answer, apply
from flowfabric.backends.sqlite.claim import claim, grant_best, view
from flowfabric.backends.sqlite.execution import former_of
from flowfabric.backends.sqlite.readers import Readers
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.backends.sqlite.worker import renewed
from flowfabric.backends.sqlite.writer import Transaction, Writer
from flowfabric.backends.waiting import LOOK_AGAIN_S
from flowfabric.contract import ids, limits
from flowfabric.contract.errors import InvalidOffset
from flowfabric.contract.ids import AttemptId, LeaseId
from flowfabric.contract.lease import (
    ExpiredLease,
    ExpiredLeasePage,
    LeaseAlreadyGone,
    LeaseClaim,
    LeaseClaimGranted,
    LeaseExpire,
    LeaseExpireDone,
    LeaseGrant,
    LeaseGranted,
    LeaseHistory,
    LeaseHistoryPage,
    LeaseListExpired,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseRenewed,
    LeaseRevoke,
    LeaseRevokedReply,
    LeasesClaimed,
    LeaseTaken,
    NothingToGrant,
    ReclaimCapExceeded,
)
from flowfabric.rules import lease as rules

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/lease.sql")


class SqliteLeases:
    """Operations on leases."""

    def __init__(self, writer: Writer, readers: Readers, bells: Bells) -> None:
        self._writer = writer
        self._readers = readers
        self._bells = bells

    async def claim(self, command: LeaseClaim) -> LeasesClaimed:
        """Lease eligible executions, waiting for work."""
        command.check()
        if command.wait_ms == 0:
            return await self._claim_now(command)
        deadline = time.monotonic() + command.wait_ms / 1_000
        waiter = self._bells.add_claim(command)
        served = False
        try:
            while True:
                served = False
                self._bells.look(waiter)
                claimed = await self._claim_now(command)
                served = True
                left_s = deadline - time.monotonic()
                if claimed.leases or left_s <= 0:
                    return claimed
                await self._bells.sleep(waiter, min(left_s, LOOK_AGAIN_S * (0.8 + 0.4 * random.random())))  # noqa: S311 (jitter, no secret)
        finally:
            deliver(self._bells.remove_claim(waiter, served=served))

    async def _claim_now(self, command: LeaseClaim) -> LeasesClaimed:
        return await self._writer.write(
            lambda transaction: claim(transaction, command),
            weight=command.max_tasks,
            abandoned=self._hand_back,
        )

    def _hand_back(self, claimed: LeasesClaimed) -> None:
        """Return what was leased to a caller that has gone away."""
        for lease in claimed.leases:
            command = LeaseRelease(execution_id=lease.execution_id, fence=lease.fence, reason="caller_gone")

            def run(transaction: Transaction, command: LeaseRelease = command) -> None:
                row = rows.find(transaction, command.execution_id)
                if row is not None:
                    apply(transaction, row, rules.release(row.loaded, command, transaction.now_ms))

            self._writer.post(run)

    async def grant(self, command: LeaseGrant) -> LeaseGranted | NothingToGrant | ReclaimCapExceeded:
        """Permit one worker to take one execution."""
        command.check()

        def run(transaction: Transaction) -> Any:
            if command.execution_id is None:
                return grant_best(transaction, command)
            row = rows.load(transaction, command.execution_id)
            lane_state = transaction.catalog.lane_state(transaction, row.loaded.definition.lane)
            decision = rules.grant(row.loaded, command, lane_state=lane_state, now_ms=transaction.now_ms)
            return answer(transaction, row, decision)

        return await self._writer.write(run)

    async def claim_granted(self, command: LeaseClaimGranted) -> LeaseTaken | ReclaimCapExceeded:
        """Use a grant."""
        command.check()

        def run(transaction: Transaction) -> LeaseTaken | ReclaimCapExceeded:
            row = rows.load(transaction, command.execution_id)
            decision = rules.claim_granted(
                row.loaded,
                command,
                lease_id=command.lease_id or LeaseId(ids.mint_uuid()),
                attempt_id=command.attempt_id or AttemptId(ids.mint_uuid()),
                now_ms=transaction.now_ms,
            )
            after = apply(transaction, row, decision)
            if decision.refusal is not None:
                raise decision.refusal
            if isinstance(decision.reply, ReclaimCapExceeded):
                return decision.reply
            return LeaseTaken(lease=view(transaction, after, rows.load_input(transaction, row.seq)))

        return await self._writer.write(run)

    async def renew(self, command: LeaseRenew) -> LeaseRenewed:
        """Extend a live lease; it counts as the worker's heartbeat."""
        command.check()

        def run(transaction: Transaction) -> LeaseRenewed:
            row = rows.load(transaction, command.execution_id)
            decision = rules.renew(row.loaded, command, transaction.now_ms)
            reply: LeaseRenewed = answer(transaction, row, decision)
            lease = row.loaded.record.lease
            if lease is not None:
                renewed(transaction, row.loaded.definition.namespace, lease.worker_instance)
            return reply

        return await self._writer.write(run)

    async def release(self, command: LeaseRelease) -> LeaseReleased:
        """Hand an execution back."""
        command.check()

        def run(transaction: Transaction) -> LeaseReleased:
            row = rows.load(transaction, command.execution_id)
            former = former_of(transaction, row, command.fence)
            return answer(transaction, row, rules.release(row.loaded, command, transaction.now_ms, former))

        return await self._writer.write(run)

    async def revoke(self, command: LeaseRevoke) -> LeaseRevokedReply | LeaseAlreadyGone:
        """Take an execution away from its worker."""
        command.check()

        def run(transaction: Transaction) -> Any:
            row = rows.load(transaction, command.execution_id)
            return answer(transaction, row, rules.revoke(row.loaded, command, transaction.now_ms))

        return await self._writer.write(run)

    async def expire(self, command: LeaseExpire) -> LeaseExpireDone:
        """Record a lease or grant that ran out."""
        command.check()

        def run(transaction: Transaction) -> LeaseExpireDone:
            row = rows.load(transaction, command.execution_id)
            return answer(transaction, row, rules.expire(row.loaded, command, transaction.now_ms))

        return await self._writer.write(run)

    async def list_expired(self, command: LeaseListExpired) -> ExpiredLeasePage:
        """List lost leases, oldest first."""
        command.check()
        return await self._readers.read(lambda snapshot: _list_expired(snapshot, command))

    async def history(self, command: LeaseHistory) -> LeaseHistoryPage:
        """Read the lease history, oldest first."""
        command.check()
        return await self._readers.read(lambda snapshot: _history(snapshot, command))


def _list_expired(snapshot: Snapshot, command: LeaseListExpired) -> ExpiredLeasePage:
    """The cursor is `<instant>-<uuid in hexadecimal>` of the last entry looked at."""
    after_ms, after_uuid = -1, b""
    if command.cursor is not None:
        instant, _, text = command.cursor.partition("-")
        try:
            after_ms, after_uuid = int(instant), bytes.fromhex(text)
        except ValueError as error:
            raise InvalidOffset("cursor is not one that lease.list_expired returned") from error
        if not 0 <= after_ms <= limits.TIMESTAMP_MAX_MS or len(after_uuid) != 16:
            raise InvalidOffset("cursor is not one that lease.list_expired returned")
    looked_at = limits.LIST_LOOKED_AT_MAX
    found = snapshot.all(
        _SQL["lost_page"],
        (after_ms, after_uuid, looked_at, command.namespace, command.namespace, command.limit + 1),
    )
    page = found[: command.limit]
    leases: list[ExpiredLease] = []
    for _, _, definition, record in page:
        loaded = rows.loaded_from(definition, record)
        lease, attempt = loaded.record.lease, loaded.record.attempt
        if lease is None or attempt is None:
            continue
        leases.append(
            ExpiredLease(
                execution_id=loaded.definition.execution_id,
                namespace=loaded.definition.namespace,
                lease_id=lease.lease_id,
                lease_epoch=lease.lease_epoch,
                worker_instance=lease.worker_instance,
                expires_at_ms=lease.lost_at_ms if lease.lost_at_ms is not None else lease.expires_at_ms,
                attempt_index=attempt.attempt_index,
                reason=lease.lost_reason or "lease_expired",
            )
        )
    last: tuple[int, bytes] | None = None
    if len(found) > command.limit:
        last = page[-1][0], page[-1][1]
    else:
        last = snapshot.first(_SQL["lost_last"], (after_ms, after_uuid, looked_at - 1))
    return ExpiredLeasePage(
        leases=tuple(leases), next_cursor=f"{last[0]}-{last[1].hex()}" if last is not None else None
    )


def _history(snapshot: Snapshot, command: LeaseHistory) -> LeaseHistoryPage:
    """The cursor is the id of the last event on the page."""
    row = rows.load(snapshot, command.execution_id)
    after = int(command.cursor) if command.cursor is not None else 0
    found = snapshot.all(_SQL["history_page"], (row.seq, after, command.limit + 1))
    page = found[: command.limit]
    return LeaseHistoryPage(
        events=tuple(rows.decode_event(body) for _, body in page),
        next_cursor=str(page[-1][0]) if len(found) > command.limit else None,
    )
