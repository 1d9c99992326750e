"""Leases in Valkey: claims that wait for work, grants, renewals and how a lease ends.

What an operation means is in `lua/lease`; how claims find work is in `claim`. Here is what surrounds them: repeated
claims, callers that go away, and choosing work to grant. What must stay true: a lease whose caller is gone is handed
back, unless the caller comes again with the same claim id; and claims of one id in one process go one after another.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from flowfabric.backends import reply
from flowfabric.backends.bells import Topic
from flowfabric.backends.valkey.claim import Claims
from flowfabric.backends.valkey.hints import Hints
from flowfabric.backends.valkey.lost import list_expired
from flowfabric.backends.valkey.record import Packed, Static, event_of, unpack
from flowfabric.backends.valkey.routing import Routes, keys_of
from flowfabric.backends.valkey.store import CLOSED, Store
from flowfabric.backends.valkey.wakes import Wakes
from flowfabric.backends.valkey.worker import ValkeyWorkers
from flowfabric.contract import ids, limits
from flowfabric.contract.errors import ExecutionNotFound, Refused, Unavailable
from flowfabric.contract.ids import ClaimId, ExecutionId, Lane, LeaseId, execution_uuid
from flowfabric.contract.lease import (
    ExpiredLeasePage,
    Lease,
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
GRANT_AT_ONCE: Final = 16
"""Entries of one index that are looked at for a grant."""
HAND_BACK_WITHIN_S: Final = 1.0

_Key = tuple[str, str, ClaimId]


class _Open:
    """A claim id that is in use: how many callers use it now, and how many ever did while it was."""

    __slots__ = ("calls", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.calls = 0


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
        self._wakes = wakes
        self._routes = routes
        self._workers = workers
        self._claims = Claims(store, hints, routes)
        self._open: Final[dict[_Key, _Open]] = {}
        self._looking: Final[set[asyncio.Task[Any]]] = set()
        self._handing_back: Final[set[asyncio.Task[Any]]] = set()

    # Claiming -----------------------------------------------------------------------------------------------------

    async def claim(self, command: LeaseClaim) -> LeasesClaimed:
        """Lease eligible executions, waiting for work."""
        command.check()
        if command.claim_id is None:
            return await self._claim(command, None)
        key = (command.namespace, command.worker_instance, command.claim_id)
        used = self._open.setdefault(key, _Open())
        used.users += 1
        used.calls += 1
        try:
            return await self._claim(command, used)
        finally:
            used.users -= 1
            self._forget(key, used)

    async def _claim(self, command: LeaseClaim, used: _Open | None) -> LeasesClaimed:
        if command.wait_ms == 0:
            return LeasesClaimed(leases=await self._look(command, used, is_again=False, woken=None))
        deadline = time.monotonic() + command.wait_ms / 1_000
        waiter = self._wakes.enter(command)
        served, is_again = False, False
        try:
            while True:
                served = False
                self._store.bells.look(waiter)
                leases = await self._look(command, used, is_again=is_again, woken=waiter.looking)
                served, is_again = True, True
                left_s = deadline - time.monotonic()
                if leases or left_s <= 0:
                    return LeasesClaimed(leases=leases)
                await self._wakes.sleep(waiter, left_s)
        finally:
            self._wakes.leave(waiter, served=served)

    async def _look(
        self, command: LeaseClaim, used: _Open | None, *, is_again: bool, woken: Topic | None
    ) -> tuple[Lease, ...]:
        """Claim once. What is leased to a caller that goes away meanwhile is handed back."""
        if used is not None:
            await used.lock.acquire()
            # Another call with this id may have been granted what this one would have to answer with.
            is_again = is_again and used.calls == 1
        task = asyncio.create_task(self._claims.claim(command, is_again=is_again, woken=woken))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)
        try:
            leases = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unavailable(CLOSED) from None
            handing_back = self._store.spawn(self._abandoned(command, task, used))
            self._handing_back.add(handing_back)
            handing_back.add_done_callback(self._handing_back.discard)
            used = None
            raise
        finally:
            if used is not None:
                used.lock.release()
        return leases

    async def _abandoned(
        self, command: LeaseClaim, task: asyncio.Task[tuple[Lease, ...]], used: _Open | None
    ) -> None:
        """Hand back what was leased to a caller that has gone, unless somebody asks with its claim id."""
        try:
            (leases,) = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(leases, BaseException) and (used is None or used.users == 0):
                await asyncio.gather(*(self._hand_back(lease) for lease in leases), return_exceptions=True)
        finally:
            if used is not None and command.claim_id is not None:
                used.lock.release()
                self._forget((command.namespace, command.worker_instance, command.claim_id), used)

    async def _hand_back(self, lease: Lease) -> None:
        await self.release(
            LeaseRelease(execution_id=lease.execution_id, fence=lease.fence, reason="caller_gone")
        )

    def _forget(self, key: _Key, used: _Open) -> None:
        if used.users == 0 and not used.lock.locked() and self._open.get(key) is used:
            del self._open[key]

    async def close(self) -> None:
        """Hand back what is leased to callers that are gone, as far as the store answers soon; end the other claims."""
        if self._handing_back:
            await asyncio.wait(set(self._handing_back), timeout=HAND_BACK_WITHIN_S)
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)

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
        refused: set[str] = set()
        looked_at = 0
        while looked_at < GRANT_LOOKED_AT_MAX:
            rids = tuple(route.rid for route in self._catalog.fitting(command) if route.rid not in refused)
            taken = await self._hints.take(rids, 1) if rids else None
            if taken is None or not taken.hints:
                if refused or not await self._catalog.catch_up():
                    break
                continue
            hint, *_ = taken.hints
            partition = self._partitions.all[hint.partition]
            index = partition.eligible(hint.rid)
            (entries,) = await self._calls.read(partition, [("ZRANGE", index, "0", GRANT_AT_ONCE - 1)])
            granted: LeaseGranted | None = None
            for uuid in entries:
                looked_at += 1
                granted = await self._try_grant(
                    command, ExecutionId(f"{partition.tag}{uuid.decode()}"), hint.rid
                )
                if granted is not None:
                    break
            head, depth = await self._calls.read(
                partition, [("ZRANGE", index, "0", "0", "WITHSCORES"), ("ZCARD", index)]
            )
            self._hints.give_back(hint, int(head[0][1]) if head else None, depth)
            if granted is not None:
                return granted
            if entries:
                refused.add(hint.rid)
            looked_at += 1
        return NothingToGrant()

    async def _try_grant(
        self, command: LeaseGrant, execution_id: ExecutionId, rid: str
    ) -> LeaseGranted | None:
        try:
            granted = await self._grant(command, execution_id, rid, [])
        except Refused:
            # Somebody else was faster, or the lane was stopped.
            return None
        return granted if isinstance(granted, LeaseGranted) else None

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
