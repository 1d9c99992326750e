"""Leases in Postgres: claims that wait for work, grants, renewals and how a lease ends.

What an operation means is in `sql/functions/lease`; how claims find work is in `claim`, how they wait in
`backends.claiming`. Here are the commands around them: choosing work to grant, and reading what is lost or happened.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from flowfabric.backends.claiming import Claiming
from flowfabric.backends.postgres.batching import Batch
from flowfabric.backends.postgres.catalog import Catalog
from flowfabric.backends.postgres.claim import Claims, lease_from
from flowfabric.backends.postgres.pool import CLOSED
from flowfabric.backends.postgres.record import Named, event_of, execution_id_of, place_of
from flowfabric.backends.postgres.store import Store
from flowfabric.backends.postgres.wakes import Wakes
from flowfabric.contract import limits
from flowfabric.contract.errors import (
    Corrupt,
    ExecutionNotFound,
    InvalidOffset,
    OutcomeUnknown,
    Refused,
    ResourceExhausted,
    Unavailable,
)
from flowfabric.contract.ids import ExecutionId
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
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import GrantPurpose, PublicState

GRANT_LOOKED_AT_MAX: Final = 256
LOST_AT_ONCE: Final = 1_000

RENEW: Final = Batch(
    function="lease_renew",
    types=("integer", "uuid", "uuid", "bigint", "uuid", "text", "text", "bigint"),
    columns=("expires_at_ms", "ttl_ms"),
)
EXPIRE: Final = Batch(function="lease_expire", types=("integer", "uuid"), columns=("status",))


class PostgresLeases:
    """Operations on leases."""

    def __init__(self, store: Store, catalog: Catalog, wakes: Wakes) -> None:
        self._calls = store.calls
        self._catalog = catalog
        self._sql = store.sql("sql/queries/lease.sql")
        self._claiming = Claiming(
            bells=store.bells,
            wakes=wakes,
            look=Claims(store, catalog).claim,
            release=self.release,
            closed=CLOSED,
        )

    async def close(self) -> None:
        """Hand back what is leased to callers that are gone; end the other claims."""
        await self._claiming.close()

    async def claim(self, command: LeaseClaim) -> LeasesClaimed:
        """Lease eligible executions, waiting for work."""
        command.check()
        return await self._claiming.claim(command)

    # Grants -------------------------------------------------------------------------------------------------------

    async def grant(self, command: LeaseGrant) -> LeaseGranted | NothingToGrant | ReclaimCapExceeded:
        """Permit one worker to take one execution."""
        command.check()
        if command.execution_id is None:
            return await self._grant_best(command)
        return await self._grant(command, command.execution_id)

    async def _grant(
        self, command: LeaseGrant, execution_id: ExecutionId
    ) -> LeaseGranted | ReclaimCapExceeded:
        status, *more = await self._calls.call(
            "lease_grant",
            *place_of(execution_id),
            command.worker_id,
            command.worker_instance,
            command.capabilities,
            command.purpose.value if command.purpose is not None else None,
            command.grant_ttl_ms,
        )
        if status == "reclaim_cap_exceeded":
            return ReclaimCapExceeded(execution_id=execution_id, reclaim_count=more[0])
        purpose, expires_at_ms, lane = more
        return LeaseGranted(
            execution_id=execution_id, lane=lane, purpose=GrantPurpose(purpose), expires_at_ms=expires_at_ms
        )

    async def _grant_best(self, command: LeaseGrant) -> LeaseGranted | NothingToGrant:
        """Grant the best eligible execution that this worker may run."""
        while await self._calls.value(self._sql["newest_route"]) > self._catalog.known:
            await self._catalog.refresh()
        routes = await self._catalog.fitting(command)
        for row in await self._calls.rows(self._sql["grantable"], routes, GRANT_LOOKED_AT_MAX):
            try:
                granted = await self._grant(command, execution_id_of(row["partition"], row["id"]))
            except ResourceExhausted:
                raise
            except Refused:
                # It needs another purpose, somebody else was faster, or the lane was stopped.
                continue
            if isinstance(granted, LeaseGranted):
                return granted
        return NothingToGrant()

    async def claim_granted(self, command: LeaseClaimGranted) -> LeaseTaken | ReclaimCapExceeded:
        """Use a grant."""
        command.check()
        status, found = await self._calls.call(
            "lease_claim_granted",
            *place_of(command.execution_id),
            command.worker_id,
            command.worker_instance,
            command.purpose.value if command.purpose is not None else None,
            command.lease_ttl_ms,
            command.lease_id,
            command.attempt_id,
        )
        if status == "reclaim_cap_exceeded":
            return ReclaimCapExceeded(execution_id=command.execution_id, reclaim_count=found)
        try:
            row = await self._calls.row(self._sql["definition"], found["seq"])
        except (Unavailable, ResourceExhausted) as error:
            raise OutcomeUnknown(
                f"the lease was taken, but what was leased was not read: {error.message}"
            ) from error
        if row is None:
            raise Corrupt(f"{command.execution_id} has lost its definition")
        return LeaseTaken(lease=lease_from(found, row["document"], Payload(row["input"], row["input_type"])))

    # Holding ------------------------------------------------------------------------------------------------------

    async def renew(self, command: LeaseRenew) -> LeaseRenewed:
        """Extend a live lease; it counts as the worker's heartbeat."""
        command.check()
        fence = command.fence
        assert fence is not None, "a command without a fence was refused"
        partition, uuid = place_of(command.execution_id)
        row = await self._calls.hot(
            RENEW,
            (
                partition,
                uuid,
                fence.lease_id,
                fence.lease_epoch,
                fence.attempt_id,
                fence.lane,
                fence.route,
                command.lease_ttl_ms,
            ),
            uuid,
        )
        expires_at_ms = row["expires_at_ms"]
        return LeaseRenewed(
            lease_expires_at_ms=expires_at_ms, renewal_deadline_ms=expires_at_ms - row["ttl_ms"] // 3
        )

    async def release(self, command: LeaseRelease) -> LeaseReleased:
        """Hand an execution back."""
        command.check()
        fence = command.fence
        assert fence is not None, "a command without a fence was refused"
        await self._calls.call(
            "lease_release",
            *place_of(command.execution_id),
            fence.lease_id,
            fence.lease_epoch,
            fence.attempt_id,
            fence.lane,
            fence.route,
            command.reason,
        )
        return LeaseReleased(execution_id=command.execution_id, public_state=PublicState.ACTIVE)

    async def revoke(self, command: LeaseRevoke) -> LeaseRevokedReply | LeaseAlreadyGone:
        """Take an execution away from its worker."""
        command.check()
        status, *more = await self._calls.call(
            "lease_revoke",
            *place_of(command.execution_id),
            command.expected_lease_id,
            command.worker_instance,
            command.reason,
        )
        if status == "revoked":
            return LeaseRevokedReply(lease_id=more[0], lease_epoch=more[1])
        return msgspec.convert({"status": status, "reason": more[0]}, LeaseAlreadyGone)

    async def expire(self, command: LeaseExpire) -> LeaseExpireDone:
        """Record a lease or grant that ran out."""
        command.check()
        partition, uuid = place_of(command.execution_id)
        row = await self._calls.hot(EXPIRE, (partition, uuid), uuid)
        status: Literal["expired", "reclaimable", "failed", "grant_expired", "not_due"] = row["status"]
        return LeaseExpireDone(status=status)

    # Reading ------------------------------------------------------------------------------------------------------

    async def list_expired(self, command: LeaseListExpired) -> ExpiredLeasePage:
        """List lost leases, oldest first. The cursor is `<instant>-<uuid in hexadecimal>` of the last one looked at.

        Refuses: invalid_offset.
        """
        command.check()
        place = _after(command.cursor)
        found: list[tuple[tuple[int, str], ExpiredLease]] = []
        looked_at = 0
        is_rest = True
        while is_rest and len(found) <= command.limit and looked_at < limits.LIST_LOOKED_AT_MAX:
            wanted = LOST_AT_ONCE
            if command.namespace is None:
                wanted = min(wanted, command.limit + 1 - len(found))
            rows = await self._calls.rows(self._sql["lost"], *place, wanted)
            looked_at += len(rows)
            is_rest = len(rows) == wanted
            for row in rows:
                place = (row["lost_at_ms"], row["id"])
                if row["is_current"] and command.namespace in (None, row["namespace"]):
                    found.append((place, _expired_lease(row)))
        page = found[: command.limit]
        last = page[-1][0] if len(found) > command.limit else place if is_rest else None
        return ExpiredLeasePage(
            leases=tuple(lease for _, lease in page),
            next_cursor=f"{last[0]}-{last[1].replace('-', '')}" if last is not None else None,
        )

    async def history(self, command: LeaseHistory) -> LeaseHistoryPage:
        """Read the lease history, oldest first. The cursor is the id of the last event on the page."""
        command.check()
        rows = await self._calls.rows(
            self._sql["history"], *place_of(command.execution_id), int(command.cursor or 0), command.limit
        )
        if not rows:
            raise ExecutionNotFound(execution_id=command.execution_id)
        events = tuple(event_of(row) for row in rows if row["n"] is not None)
        return LeaseHistoryPage(
            events=events,
            next_cursor=str(events[-1].event_id)
            if events and events[-1].event_id < rows[0]["history_count"]
            else None,
        )


def _after(cursor: str | None) -> tuple[int, str]:
    """Read a cursor as the place after which to go on."""
    if cursor is None:
        return -1, "00000000-0000-0000-0000-000000000000"
    instant, _, text = cursor.partition("-")
    try:
        after_ms, digits = int(instant), bytes.fromhex(text).hex()
    except ValueError as error:
        raise InvalidOffset("cursor is not one that lease.list_expired returned") from error
    if not 0 <= after_ms <= limits.TIMESTAMP_MAX_MS or len(digits) != 32:
        raise InvalidOffset("cursor is not one that lease.list_expired returned")
    return after_ms, f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _expired_lease(row: Named) -> ExpiredLease:
    return ExpiredLease(
        execution_id=execution_id_of(row["partition"], row["id"]),
        namespace=row["namespace"],
        lease_id=row["lease_id"],
        lease_epoch=row["lease_epoch"],
        worker_instance=row["worker_instance"],
        expires_at_ms=row["lost_at_ms"],
        attempt_index=row["attempt_index"],
        reason=row["lost_reason"] or "lease_expired",
    )
