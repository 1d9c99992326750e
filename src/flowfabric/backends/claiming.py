"""What surrounds looks for work, for stores whose looks take a while: claims that wait, are repeated, or are given up.

The store brings the look itself. What must stay true: a lease whose caller is gone is handed back, unless the caller
comes again with the same claim id; and claims of one id in one process go one after another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from flowfabric.backends.bells import Bells, ClaimWaiter, Topic
from flowfabric.contract.errors import OutcomeUnknown
from flowfabric.contract.ids import ClaimId
from flowfabric.contract.lease import Lease, LeaseClaim, LeaseRelease, LeasesClaimed

HAND_BACK_WITHIN_S: Final = 1.0
"""How long closing waits for leases to be handed back whose callers are gone."""

_Key = tuple[str, str, ClaimId]


class ClaimWakes(Protocol):
    """What wakes waiting claims."""

    def enter(self, command: LeaseClaim) -> ClaimWaiter:
        """Register a claim that waits for work."""
        ...

    def leave(self, waiter: ClaimWaiter, *, served: bool) -> None:
        """Forget a claim that ends; `served`: its latest look was carried out."""
        ...

    async def sleep(self, waiter: ClaimWaiter, timeout_s: float) -> None:
        """Sleep until work may exist for the claim, or the timeout."""
        ...


class Look(Protocol):
    """Claims once, without waiting for work."""

    def __call__(
        self, command: LeaseClaim, *, is_again: bool, woken: Topic | None, until: float | None
    ) -> Coroutine[Any, Any, tuple[Lease, ...]]:
        """Lease what there is, best first.

        `is_again`: an earlier look of this call found nothing; `woken`: the work whose bell made it look; `until`: the
        monotonic instant at which the caller stops waiting, None when it does not wait.
        """
        ...


class _Open:
    """A claim id that is in use: how many callers use it now, and how many ever did while it was."""

    __slots__ = ("calls", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.calls = 0


class Claiming:
    """Carries out claims by looking, and sleeping in between."""

    def __init__(
        self,
        *,
        bells: Bells,
        wakes: ClaimWakes,
        look: Look,
        release: Callable[[LeaseRelease], Awaitable[object]],
        closed: str,
    ) -> None:
        self._bells = bells
        self._wakes = wakes
        self._look_once = look
        self._release = release
        self._closed = closed
        self._open: Final[dict[_Key, _Open]] = {}
        self._looking: Final[set[asyncio.Task[Any]]] = set()
        self._handing_back: Final[set[asyncio.Task[None]]] = set()

    async def claim(self, command: LeaseClaim) -> LeasesClaimed:
        """Lease eligible executions, waiting for work."""
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
            leases = await self._look(command, used, is_again=False, woken=None, until=None)
            return LeasesClaimed(leases=leases)
        deadline = time.monotonic() + command.wait_ms / 1_000
        waiter = self._wakes.enter(command)
        served, is_again = False, False
        try:
            while True:
                served = False
                self._bells.look(waiter)
                leases = await self._look(
                    command, used, is_again=is_again, woken=waiter.looking, until=deadline
                )
                served, is_again = True, True
                left_s = deadline - time.monotonic()
                if leases or left_s <= 0:
                    return LeasesClaimed(leases=leases)
                await self._wakes.sleep(waiter, left_s)
        finally:
            self._wakes.leave(waiter, served=served)

    async def _look(
        self,
        command: LeaseClaim,
        used: _Open | None,
        *,
        is_again: bool,
        woken: Topic | None,
        until: float | None,
    ) -> tuple[Lease, ...]:
        """Claim once. What is leased to a caller that goes away meanwhile is handed back."""
        if used is not None:
            await used.lock.acquire()
            # Another call with this id may have been granted what this one would have to answer with.
            is_again = is_again and used.calls == 1
        task = asyncio.create_task(self._look_once(command, is_again=is_again, woken=woken, until=until))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)
        try:
            leases = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise OutcomeUnknown(f"{self._closed}; the call may have been sent") from None
            handing_back = asyncio.create_task(self._abandoned(command, task, used))
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
        await self._release(
            LeaseRelease(execution_id=lease.execution_id, fence=lease.fence, reason="caller_gone")
        )

    def _forget(self, key: _Key, used: _Open) -> None:
        if used.users == 0 and not used.lock.locked() and self._open.get(key) is used:
            del self._open[key]

    async def close(self) -> None:
        """Hand back what is leased to callers that are gone, as far as the store answers soon; end the other claims."""
        if self._handing_back:
            await asyncio.wait(set(self._handing_back), timeout=HAND_BACK_WITHIN_S)
        ending = [*self._looking, *self._handing_back]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
