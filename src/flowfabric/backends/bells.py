"""Bells: what waits inside this process, and waking exactly what has to be woken.

A bell only wakes; whoever is woken looks again. Three kinds of waiters exist: claims (woken one per piece of work),
watchers of an execution (all woken when it changes) and timers (woken when something is due earlier than they know).
Waiting holds no thread and no connection. Ringing is safe from any thread; waiters belong to their event loop.
What must stay true: a token for work reaches a claim that looks *after* it was rung, or is passed on; so no work is
left lying while a fitting claim waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from flowfabric.contract.errors import Unavailable
from flowfabric.contract.lease import LeaseClaim

Wake = tuple[asyncio.AbstractEventLoop, Callable[[], None]]
"""What to call, on which loop."""


class Topic(msgspec.Struct, frozen=True, array_like=True):
    """Where work became claimable: what a claim must match to be woken for it."""

    namespace: str
    lane: str
    kind: str
    required: tuple[str, ...]


class Waiter:
    """One waiting call. `wait` returns when it was rung since the latest `rest`, or after the timeout."""

    __slots__ = ("_future", "_rung", "loop")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        self._rung = False

    def wake(self) -> None:
        """Wake the waiter; called on its loop."""
        self._rung = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def rest(self) -> None:
        """Forget that it was rung: what is looked at from now on is news."""
        self._rung = False

    async def wait(self, timeout_s: float) -> bool:
        """Wait to be woken; return whether it was."""
        if self._rung:
            return True
        self._future = self.loop.create_future()
        handle = self.loop.call_later(max(timeout_s, 0.0), _finish, self._future)
        try:
            await self._future
        finally:
            handle.cancel()
            self._future = None
        return self._rung


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class ClaimWaiter(Waiter):
    """A waiting claim. `token` is work it was woken for and has not looked for yet, `looking` what it looks for."""

    __slots__ = ("capabilities", "idle", "kinds", "lanes", "looking", "namespace", "token")

    def __init__(self, command: LeaseClaim) -> None:
        super().__init__()
        self.namespace = command.namespace
        self.lanes = frozenset(command.lanes)
        self.kinds = frozenset(command.kinds)
        self.capabilities = frozenset(command.capabilities)
        self.token: Topic | None = None
        self.looking: Topic | None = None
        self.idle = False

    def fits(self, topic: Topic) -> bool:
        """Say whether it could take this work."""
        return (not self.kinds or topic.kind in self.kinds) and self.capabilities.issuperset(topic.required)


class TimerWaiter(Waiter):
    """A timer that sleeps until `until_ms`; None: until anything is due."""

    __slots__ = ("until_ms",)

    def __init__(self, until_ms: int | None) -> None:
        super().__init__()
        self.until_ms = until_ms


class Bells:
    """Everything that waits in this process on one store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: Final[dict[tuple[str, str], dict[ClaimWaiter, None]]] = {}
        self._watchers: Final[dict[str, set[Waiter]]] = {}
        self._timers: Final[set[TimerWaiter]] = set()
        self._closed: str | None = None
        self.claims_waiting = 0
        self.on_unclaimed: Callable[[Topic, int], None] | None = None
        """Told of tokens for work that fit nobody here, where bells of other processes could ring instead."""
        self.earliest_due_ms: int | None = None
        """The earliest instant rung since a reader of the due-time index last set this to None."""

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        with self._lock:
            watching = sum(len(waiters) for waiters in self._watchers.values())
            return self.claims_waiting + watching + len(self._timers)

    @property
    def claims_sleeping(self) -> int:
        """How many claims sleep and have not been woken."""
        with self._lock:
            return len({waiter for waiters in self._claims.values() for waiter in waiters if waiter.idle})

    # Waiting ------------------------------------------------------------------------------------------------------

    def add_claim(self, command: LeaseClaim) -> ClaimWaiter:
        """Register a waiting claim; it looks for work next."""
        waiter = ClaimWaiter(command)
        with self._lock:
            self._refuse_closed()
            for lane in waiter.lanes:
                self._claims.setdefault((waiter.namespace, lane), {})[waiter] = None
            self.claims_waiting += 1
        return waiter

    def look(self, waiter: ClaimWaiter) -> None:
        """Note that the claim looks for work now: what rings from here on makes it look again."""
        with self._lock:
            self._refuse_closed()
            waiter.idle = False
            waiter.looking, waiter.token = waiter.token, None
            waiter.rest()

    async def sleep(self, waiter: ClaimWaiter, timeout_s: float) -> None:
        """Wait until work may exist for the claim, or the timeout."""
        with self._lock:
            self._refuse_closed()
            waiter.looking = None
            if waiter.token is not None:
                return
            waiter.idle = True
        await waiter.wait(timeout_s)

    def remove_claim(self, waiter: ClaimWaiter, *, served: bool) -> list[Wake]:
        """Forget a claim that ends. What it was woken for and has not looked for is passed on.

        `served`: its latest look was carried out, so that only a token rung since is left.
        """
        with self._lock:
            for lane in waiter.lanes:
                key = (waiter.namespace, lane)
                waiters = self._claims.get(key)
                if waiters is not None:
                    waiters.pop(waiter, None)
                    if not waiters:
                        del self._claims[key]
            self.claims_waiting -= 1
        wakes: list[Wake] = []
        for token in (waiter.token, None if served else waiter.looking):
            if token is not None:
                wakes += self.ring_work(token)
        return wakes

    def add_watcher(self, uuid: str) -> Waiter:
        """Register a call that waits for an execution to change."""
        waiter = Waiter()
        with self._lock:
            self._refuse_closed()
            self._watchers.setdefault(uuid, set()).add(waiter)
        return waiter

    def remove_watcher(self, uuid: str, waiter: Waiter) -> None:
        """Forget a watcher."""
        with self._lock:
            waiters = self._watchers.get(uuid)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._watchers[uuid]

    def add_timer(self, until_ms: int | None) -> TimerWaiter:
        """Register a sleeping timer."""
        waiter = TimerWaiter(until_ms)
        with self._lock:
            self._refuse_closed()
            self._timers.add(waiter)
        return waiter

    def remove_timer(self, waiter: TimerWaiter) -> None:
        """Forget a timer."""
        with self._lock:
            self._timers.discard(waiter)

    def refuse_closed(self) -> None:
        """Raise Unavailable once the store is closed."""
        with self._lock:
            self._refuse_closed()

    def _refuse_closed(self) -> None:
        if self._closed is not None:
            raise Unavailable(self._closed)

    # Ringing ------------------------------------------------------------------------------------------------------

    def ring_work(self, topic: Topic, count: int = 1) -> list[Wake]:
        """Give `count` tokens for work to as many claims that fit; idle ones first, in the order they came."""
        wakes: list[Wake] = []
        left = count
        if self.claims_waiting:
            with self._lock:
                wakes, left = self._give_tokens(topic, count)
        if left and self.on_unclaimed is not None:
            self.on_unclaimed(topic, left)
        return wakes

    def _give_tokens(self, topic: Topic, count: int) -> tuple[list[Wake], int]:
        wakes: list[Wake] = []
        busy: list[ClaimWaiter] = []
        for waiter in self._claims.get((topic.namespace, topic.lane), ()):
            if waiter.token is not None or not waiter.fits(topic):
                continue
            if not waiter.idle:
                busy.append(waiter)
                continue
            waiter.token = topic
            waiter.idle = False
            wakes.append((waiter.loop, waiter.wake))
            if len(wakes) >= count:
                return wakes, 0
        # Nobody idle: whoever looks right now may have looked too early, so it has to look again.
        looking = busy[: count - len(wakes)]
        for waiter in looking:
            waiter.token = topic
        return wakes, count - len(wakes) - len(looking)

    def count_idle(self, topic: Topic) -> int:
        """Count the claims that sleep and would be woken for this work."""
        if not self.claims_waiting:
            return 0
        with self._lock:
            return sum(
                1
                for waiter in self._claims.get((topic.namespace, topic.lane), ())
                if waiter.idle and waiter.fits(topic)
            )

    def ring_lane(self, lane: str) -> list[Wake]:
        """Wake every claim on a lane: its state changed."""
        with self._lock:
            return [
                (waiter.loop, waiter.wake)
                for (_, name), waiters in self._claims.items()
                if name == lane
                for waiter in waiters
            ]

    def ring_executions(self, uuids: Iterable[str]) -> list[Wake]:
        """Wake whoever watches one of these executions."""
        watchers = self._watchers
        if not watchers:
            return []
        with self._lock:
            return [
                (waiter.loop, waiter.wake) for uuid in uuids if uuid in watchers for waiter in watchers[uuid]
            ]

    def ring_due(self, due_at_ms: int) -> list[Wake]:
        """Wake timers that sleep past this instant."""
        if self.earliest_due_ms is None or due_at_ms < self.earliest_due_ms:
            self.earliest_due_ms = due_at_ms
        if not self._timers:
            return []
        with self._lock:
            return [
                (waiter.loop, waiter.wake)
                for waiter in self._timers
                if waiter.until_ms is None or due_at_ms < waiter.until_ms
            ]

    def ring_all(self, *, closed: str | None = None) -> list[Wake]:
        """Wake everybody; with `closed`, everybody finds the store closed, for this reason."""
        with self._lock:
            if closed is not None:
                self._closed = closed
            everybody: set[Waiter] = set(self._timers)
            for waiters in self._claims.values():
                everybody.update(waiters)
            for watchers in self._watchers.values():
                everybody.update(watchers)
        return [(waiter.loop, waiter.wake) for waiter in everybody]


def deliver(wakes: Iterable[Wake]) -> None:
    """Call every wake on its loop, with one hop per loop; from any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
    for loop, wake in wakes:
        by_loop.setdefault(loop, []).append(wake)
    for loop, calls in by_loop.items():
        hop(loop, calls)


def hop(loop: asyncio.AbstractEventLoop, calls: list[Callable[[], None]]) -> None:
    """Run calls on a loop, in order; a loop that is closed has nobody left to tell."""
    try:
        if _is_running_here(loop):
            # The loop is awake: waking it would be two calls of the system for nothing.
            loop.call_soon(_run, calls)
        else:
            loop.call_soon_threadsafe(_run, calls)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _run(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()
