"""Counting: how many handlers run, how many more may be claimed, and of which kinds.

A slot is reserved before its claim is sent and given back when the claim is answered; it is in use from a lease to the
end of its handler. Attempts whose report is still on its way hold no slot, but at most as many of them as there are
slots: a store that takes claims and no reports must not pile up work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from flowfabric.contract import limits
from flowfabric.contract.ids import Kind


class Reservation(msgspec.Struct, frozen=True):
    """Slots set aside for one claim, and the kinds it may bring."""

    size: int
    kinds: tuple[Kind, ...]
    capped: tuple[str, ...]


class Slots:
    """The slots of one worker. Belongs to one event loop."""

    def __init__(self, size: int, caps: Mapping[str, int]) -> None:
        """Make `size` slots; `caps` bounds single kinds."""
        self.size: Final = size
        self.running: int = 0
        """Handlers running."""
        self._open: int = 0
        self._reserved: int = 0
        self._caps: Final = dict(caps)
        self._of_kind: dict[str, int] = dict.fromkeys(caps, 0)
        self._waiting: set[asyncio.Future[None]] = set()
        self._capped_claim: asyncio.Task[object] | None = None
        self._capped_kinds: frozenset[str] = frozenset()
        self._restarting: bool = False

    async def reserve(self, claimer: int, kinds: tuple[Kind, ...]) -> Reservation:
        """Wait until something can be claimed and set the slots for it aside.

        Kinds with a cap are left to claimer 0, and are asked for only while they are below it.
        """
        while True:
            # Everything that ends in this turn of the loop is counted before the claim is sized.
            await asyncio.sleep(0)
            found = self._try_reserve(claimer, kinds)
            if found is not None:
                return found
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)

    def give_back(self, reservation: Reservation) -> None:
        """End a reservation: its claim was answered and its leases are begun next."""
        self._reserved -= reservation.size
        for kind in reservation.capped:
            self._of_kind[kind] -= reservation.size
        if reservation.capped or self._capped_claim is not None:
            self._end_capped_claim()
        self._wake()

    def take_restart(self, claimer: int) -> bool:
        """Say, once, whether a claimer's claim was cancelled from here, to be sent again with other kinds."""
        restarting = claimer == 0 and self._restarting
        if restarting:
            self._restarting = False
        return restarting

    def begin(self, kind: str) -> None:
        """Take a slot for a handler."""
        self.running += 1
        self._open += 1
        if kind in self._of_kind:
            self._of_kind[kind] += 1

    def end(self, kind: str) -> None:
        """Free a handler's slot; its report may still be on its way."""
        self.running -= 1
        if kind in self._of_kind:
            self._of_kind[kind] -= 1
            claim = self._capped_claim
            if claim is not None and kind not in self._capped_kinds:
                # The claim that waits for work was sent while this kind was at its cap: ask again, with it.
                self._capped_claim = None
                self._restarting = True
                claim.cancel()
        self._wake()

    def close(self) -> None:
        """Note that an attempt's report is done."""
        self._open -= 1
        self._wake()

    async def wait_idle(self, timeout_s: float, hurry: asyncio.Event | None) -> bool:
        """Wait until no handler runs, or the timeout, or `hurry` is set; say whether none runs."""
        if self.running == 0:
            return True
        loop = asyncio.get_running_loop()
        hurried = loop.create_task(hurry.wait()) if hurry is not None else None
        try:
            async with asyncio.timeout(timeout_s):
                while self.running and not (hurried is not None and hurried.done()):
                    waiter = loop.create_future()
                    self._waiting.add(waiter)
                    try:
                        watched = [waiter] if hurried is None else [waiter, hurried]
                        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        self._waiting.discard(waiter)
        except TimeoutError:
            return self.running == 0
        finally:
            if hurried is not None:
                hurried.cancel()
        return self.running == 0

    def _try_reserve(self, claimer: int, kinds: tuple[Kind, ...]) -> Reservation | None:
        free = min(self.size - self.running, 2 * self.size - self._open) - self._reserved
        if self._caps and claimer != 0 and self._capped_claim is None:
            # Kinds with a cap are claimer 0's alone: a claim that waits for other work must leave it a slot.
            free -= 1
        size = min(free, limits.CLAIM_TASKS_MAX)
        if size <= 0:
            return None
        capped: tuple[str, ...] = ()
        if self._caps:
            room = (
                {kind: self._caps[kind] - self._of_kind[kind] for kind in self._caps} if claimer == 0 else {}
            )
            capped = tuple(kind for kind, left in room.items() if left > 0)
            kinds = tuple(kind for kind in kinds if kind not in self._caps or kind in capped)
            if not kinds:
                return None
            size = min([size, *(room[kind] for kind in capped)])
            for kind in capped:
                self._of_kind[kind] += size
            if claimer == 0:
                self._capped_claim = asyncio.current_task()
                self._capped_kinds = frozenset(capped)
        self._reserved += size
        return Reservation(size, kinds, capped)

    def _end_capped_claim(self) -> None:
        if self._capped_claim is asyncio.current_task():
            self._capped_claim = None

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
