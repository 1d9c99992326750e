"""Leases in Valkey: claims that wait for work, grants, renewals and how a lease ends.

What an operation means is in `lua/lease`; how claims find work is in `claim`, how they wait in `backends.claiming`.
Here are the commands around them: choosing work to grant, and reading what is lost or happened.
"""

from __future__ import annotations

from typing import Any, Final

from flowfabric.backends import reply
from flowfabric.backends.claiming import Claiming
from flowfabric.backends.valkey.claim import SHARED_AT_ONCE, Claims
from flowfabric.backends.valkey.hints import Hint, Hints
from flowfabric.backends.valkey.lost import list_expired
from flowfabric.backends.valkey.record import Packed, Static, event_of, unpack
from flowfabric.backends.valkey.routing import Routes, keys_of
from flowfabric.backends.valkey.store import CLOSED, Store
from flowfabric.backends.valkey.wakes import Wakes
from flowfabric.backends.valkey.worker import ValkeyWorkers
from flowfabric.contract import ids, limits
from flowfabric.contract.errors import ExecutionNotFound, LaneNotAccepting, Refused
from flowfabric.contract.ids import ExecutionId, Lane, LeaseId, execution_uuid
from flowfabric.contract.lease import (
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
from flowfabric.contract.payloads import Fence
from flowfabric.contract.states import GrantPurpose, PublicState

GRANT_LOOKED_AT_MAX: Final = 256
"""Indexes that are looked at for a grant."""
GRANT_AT_ONCE: Final = 16
"""Entries of one index that are looked at for a grant."""


class ValkeyLeases:
    """Operations on leases."""

    def __init__(
        self, store: Store, hints: Hints, wakes: Wakes, routes: Routes, workers: ValkeyWorkers
    ) -> None:
        self._store = store
        self._calls = store.calls
        self._catalog = store.catalog
        self._partitions = store.partitions
        self._hints = hints
        self._routes = routes
        self._workers = workers
        self._claims = Claims(store, hints, routes)
        self._claiming = Claiming(
            bells=store.bells, wakes=wakes, look=self._claims.claim, release=self.release, closed=CLOSED
        )

    async def claim(self, command: LeaseClaim) -> LeasesClaimed:
        """Lease eligible executions, waiting for work."""
        command.check()
        return await self._claiming.claim(command)

    async def close(self) -> None:
        """Hand back what is leased to callers that are gone; end the other claims."""
        await self._claiming.close()

    # Grants -------------------------------------------------------------------------------------------------------

    async def grant(self, command: LeaseGrant) -> LeaseGranted | NothingToGrant | ReclaimCapExceeded:
        """Permit one worker to take one execution."""
        command.check()
        if command.execution_id is None:
            return await self._grant_best(command)
        partition = self._partitions.of(command.execution_id)
        uuid = execution_uuid(command.execution_id)
        (stored,) = await self._calls.read(partition, [("HGET", partition.execution(uuid), "d")])
        if stored is None:
            raise ExecutionNotFound(execution_id=command.execution_id)
        static = unpack(stored, Static)
        required = static.route.partition("|")[2]
        missing = sorted(set(required.split(",") if required else ()) - set(command.capabilities))
        return await self._grant(command, command.execution_id, static.rid, missing)

    async def _grant(
        self, command: LeaseGrant, execution_id: ExecutionId, rid: str, missing: list[str]
    ) -> LeaseGranted | ReclaimCapExceeded:
        partition = self._partitions.of(execution_id)
        answer = await self._calls.call(
            partition,
            "lease_grant",
            (*keys_of(partition, execution_id, rid), partition.lanes),
            rid=rid,
            worker_id=command.worker_id,
            worker_instance=command.worker_instance,
            purpose=command.purpose.value if command.purpose is not None else None,
            ttl_ms=command.grant_ttl_ms,
            missing=missing,
        )
        if answer[0] == b"reclaim_cap_exceeded":
            return ReclaimCapExceeded(execution_id=execution_id, reclaim_count=answer[1])
        _, purpose, expires_at_ms, lane = answer
        return LeaseGranted(
            execution_id=execution_id,
            lane=Lane(reply.text(lane)),
            purpose=GrantPurpose(reply.text(purpose)),
            expires_at_ms=expires_at_ms,
        )

    async def _grant_best(self, command: LeaseGrant) -> LeaseGranted | NothingToGrant:
        """Grant the best eligible execution that this worker may run."""
        stopped: set[str] = set()
        seen: set[tuple[str, int]] = set()
        granted: LeaseGranted | None = None
        while granted is None and len(seen) < GRANT_LOOKED_AT_MAX:
            rids = tuple(route.rid for route in self._catalog.fitting(command) if route.rid not in stopped)
            taken = await self._hints.take(rids, SHARED_AT_ONCE if seen else 1) if rids else None
            hints = taken.hints if taken is not None else []
            before = len(seen)
            for hint in hints:
                place = (hint.rid, hint.partition)
                if granted is not None or place in seen or hint.rid in stopped:
                    if not hint.is_shared:
                        self._hints.give_back(hint, int(float(hint.score)), 1)
                    continue
                seen.add(place)
                granted = await self._grant_from(command, hint, stopped)
            if len(seen) == before and (stopped or not await self._catalog.catch_up()):
                break
        return granted or NothingToGrant()

    async def _grant_from(self, command: LeaseGrant, hint: Hint, stopped: set[str]) -> LeaseGranted | None:
        """Grant the best of one index that can be granted, and give its hint back; adds to `stopped`."""
        partition = self._partitions.all[hint.partition]
        index = partition.eligible(hint.rid)
        (entries,) = await self._calls.read(partition, [("ZRANGE", index, "0", GRANT_AT_ONCE - 1)])
        granted: LeaseGranted | None = None
        for uuid in entries:
            execution_id = ExecutionId(f"{partition.tag}{uuid.decode()}")
            try:
                found = await self._grant(command, execution_id, hint.rid, [])
            except LaneNotAccepting:
                stopped.add(hint.rid)
                break
            except Refused:
                continue  # somebody else was faster, or it is not for this purpose
            if isinstance(found, LeaseGranted):
                granted = found
                break
        head, depth = await self._calls.read(
            partition, [("ZRANGE", index, "0", "0", "WITHSCORES"), ("ZCARD", index)]
        )
        self._hints.give_back(hint, int(head[0][1]) if head else None, depth)
        return granted

    async def claim_granted(self, command: LeaseClaimGranted) -> LeaseTaken | ReclaimCapExceeded:
        """Use a grant."""
        command.check()
        status, found = await self._routes.call(
            "lease_claim_granted",
            command.execution_id,
            worker_id=command.worker_id,
            worker_instance=command.worker_instance,
            purpose=command.purpose.value if command.purpose is not None else None,
            ttl_ms=command.lease_ttl_ms,
            own_lease_id=command.lease_id is not None,
            own_attempt_id=command.attempt_id is not None,
            lease_id=command.lease_id or ids.mint_uuid(),
            attempt_id=command.attempt_id or ids.mint_uuid(),
        )
        if status == b"reclaim_cap_exceeded":
            return ReclaimCapExceeded(execution_id=command.execution_id, reclaim_count=found)
        (taken,) = await self._claims.leases(self._partitions.of(command.execution_id), found)
        return LeaseTaken(lease=taken.lease)

    # Holding ------------------------------------------------------------------------------------------------------

    async def renew(self, command: LeaseRenew) -> LeaseRenewed:
        """Extend a live lease; it counts as the worker's heartbeat."""
        command.check()
        expires_at_ms, ttl_ms, namespace, instance = await self._fenced(
            "lease_renew", command.execution_id, command.fence, ttl_ms=command.lease_ttl_ms
        )
        await self._workers.renewed(reply.text(namespace), reply.text(instance))
        return LeaseRenewed(
            lease_expires_at_ms=expires_at_ms, renewal_deadline_ms=expires_at_ms - ttl_ms // 3
        )

    async def release(self, command: LeaseRelease) -> LeaseReleased:
        """Hand an execution back."""
        command.check()
        await self._fenced("lease_release", command.execution_id, command.fence, reason=command.reason)
        return LeaseReleased(execution_id=command.execution_id, public_state=PublicState.ACTIVE)

    async def _fenced(
        self, name: str, execution_id: ExecutionId, fence: Fence | None, **given: Any
    ) -> list[Any]:
        assert fence is not None, "a command without a fence was refused"
        return await self._routes.call(
            name,
            execution_id,
            fence=fence,
            lease_id=fence.lease_id,
            lease_epoch=fence.lease_epoch,
            attempt_id=fence.attempt_id,
            lane=fence.lane,
            route=fence.route,
            **given,
        )

    async def revoke(self, command: LeaseRevoke) -> LeaseRevokedReply | LeaseAlreadyGone:
        """Take an execution away from its worker."""
        command.check()
        status, *more = await self._routes.call(
            "lease_revoke",
            command.execution_id,
            expected_lease_id=command.expected_lease_id,
            instance=command.worker_instance,
            reason=command.reason,
        )
        if status == b"revoked":
            return LeaseRevokedReply(lease_id=LeaseId(reply.text(more[0])), lease_epoch=more[1])
        return _GONE[more[0]]

    async def expire(self, command: LeaseExpire) -> LeaseExpireDone:
        """Record a lease or grant that ran out."""
        command.check()
        (status,) = await self._routes.call("lease_expire", command.execution_id)
        return _EXPIRED[status]

    # Reading ------------------------------------------------------------------------------------------------------

    async def list_expired(self, command: LeaseListExpired) -> ExpiredLeasePage:
        """List lost leases, oldest first."""
        command.check()
        return await list_expired(self._calls, self._partitions, command)

    async def history(self, command: LeaseHistory) -> LeaseHistoryPage:
        """Read the lease history, oldest first. The cursor is the id of the last event on the page."""
        command.check()
        partition = self._partitions.of(command.execution_id)
        name = partition.execution(execution_uuid(command.execution_id))
        (stored,) = await self._calls.read(partition, [("HGET", name, "v")])
        if stored is None:
            raise ExecutionNotFound(execution_id=command.execution_id)
        last = unpack(stored, Packed).history_count
        first = max(int(command.cursor or 0) + 1, last - limits.HISTORY_KEPT + 1)
        numbers = range(first, min(first + command.limit, last + 1))
        events: list[bytes | None] = []
        if numbers:
            fields = [f"e{number}" for number in numbers]
            (events,) = await self._calls.read(partition, [("HMGET", name, *fields)])
        return LeaseHistoryPage(
            events=tuple(
                event_of(number, data)
                for number, data in zip(numbers, events, strict=True)
                if data is not None
            ),
            next_cursor=str(numbers[-1]) if numbers and numbers[-1] < last else None,
        )


_GONE: Final = {
    b"no_active_lease": LeaseAlreadyGone(reason="no_active_lease"),
    b"already_revoked": LeaseAlreadyGone(reason="already_revoked"),
    b"already_expired": LeaseAlreadyGone(reason="already_expired"),
    b"different_worker_instance": LeaseAlreadyGone(reason="different_worker_instance"),
}
_EXPIRED: Final = {
    b"expired": LeaseExpireDone(status="expired"),
    b"reclaimable": LeaseExpireDone(status="reclaimable"),
    b"failed": LeaseExpireDone(status="failed"),
    b"grant_expired": LeaseExpireDone(status="grant_expired"),
    b"not_due": LeaseExpireDone(status="not_due"),
}
