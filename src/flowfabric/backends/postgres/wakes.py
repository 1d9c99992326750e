"""Being woken by what any process commits: claims, watchers of executions, timers.

The listener hears what is told and `bells` decides who looks; whoever looks finds out. Before somebody sleeps, the
listener shows that to writers; what it does not cover yet is covered soon, and then those who sleep look once more.
While it covers nothing (no connection, a proxy in between), one look per process every second finds work for all
sleeping claims, and the other waiters look by themselves. What must stay true: nobody sleeps for long on what is not
covered, and whoever slept while coverage began looks again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, TypeVar

from flowfabric.backends.bells import ClaimWaiter, Topic, Waiter, deliver
from flowfabric.backends.postgres.catalog import Catalog, Route
from flowfabric.backends.postgres.listen import QUERIES, Key, Listener
from flowfabric.backends.postgres.store import Store
from flowfabric.contract.errors import FlowFabricError
from flowfabric.contract.ids import ExecutionId, execution_uuid
from flowfabric.contract.lease import LeaseClaim
from flowfabric.telemetry import log

T = TypeVar("T")

_LOG: Final = log.get_logger("flowfabric.backends.postgres")
WORK: Final = "work"
CHANGE: Final = "change"
DUE: Final = (("due", 0),)

LOOK_AGAIN_S: Final = 20.0
"""How long a watcher sleeps at most that is told of changes."""
LOOK_FOR_WORK_S: Final = 5.0
"""How often one look is made for all sleeping claims of a process that are told of work."""
POLL_CLAIMS_S: Final = 1.0
"""As before, when they are not told."""
POLL_CHANGES_S: Final = 0.5
"""How long a watcher sleeps that is not told."""
BUCKETS_REMEMBERED: Final = 20_000
WORK_COUNTED_MAX: Final = 1_000


def work_keys(command: LeaseClaim) -> tuple[Key, ...]:
    """Return what a claim sleeps for."""
    return tuple({(WORK, work_bucket(command.namespace, lane)) for lane in command.lanes})


@lru_cache(maxsize=BUCKETS_REMEMBERED)
def work_bucket(namespace: str, lane: str) -> int:
    """Return the bucket of a lane's work, as `_work_bucket` does in SQL."""
    return hashlib.sha256(f"{namespace} {lane}".encode()).digest()[0]


def change_bucket(uuid: str) -> int:
    """Return the bucket of an execution, as `_change_bucket` does in SQL."""
    return int(uuid[-2:], 16)


class Wakes:
    """What wakes this process's waiters. The listener connects when somebody first waits; `close` it."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store = store
        self._bells = store.bells
        self._catalog = catalog
        self._sql: Final = store.sql(QUERIES)
        self.listener: Final = Listener(store, hear=self._heard, covered=self._covered)
        self._sleepers: Final[dict[Key, dict[Waiter, None]]] = {}
        self._claims: Final[dict[ClaimWaiter, LeaseClaim]] = {}
        self._looking: asyncio.Task[None] | None = None
        self.due_heard_after_ms = 0
        """Timers are rung so much later than they are due: they are left to another process first."""

    async def close(self) -> None:
        """Let go of the connection; the store ends what else runs in the background."""
        await self.listener.close()

    async def is_push(self) -> bool:
        """Say whether waiting calls are told; looks for themselves are what is left otherwise."""
        return await self.listener.tried()

    # Claims -------------------------------------------------------------------------------------------------------

    def enter(self, command: LeaseClaim) -> ClaimWaiter:
        """Register a claim that waits for work."""
        waiter = self._bells.add_claim(command)
        self._claims[waiter] = command
        self._watch(waiter, work_keys(command))
        return waiter

    def leave(self, waiter: ClaimWaiter, *, served: bool) -> None:
        """Forget a claim that ends; `served`: its latest look was carried out."""
        command = self._claims.pop(waiter)
        self._unwatch(waiter, work_keys(command))
        deliver(self._bells.remove_claim(waiter, served=served))

    async def sleep(self, waiter: ClaimWaiter, timeout_s: float) -> None:
        """Sleep until work may exist for the claim, or the timeout."""
        if waiter.token is None:
            self.listener.hold(work_keys(self._claims[waiter]))
            if self._looking is None:
                self._looking = self._store.spawn(self._keep_looking())
        await self._bells.sleep(waiter, timeout_s)

    async def _keep_looking(self) -> None:
        """Look for work now and then, once for all claims that sleep, until none waits."""
        try:
            looked_at = time.monotonic()
            while self._claims:
                await asyncio.sleep(POLL_CLAIMS_S * random.uniform(0.8, 1.2))  # noqa: S311 (jitter, no secret)
                is_told = self.listener.hold([key for key in self._sleepers if key[0] == WORK])
                if not is_told or time.monotonic() - looked_at >= LOOK_FOR_WORK_S:
                    looked_at = time.monotonic()
                    try:
                        await self._look()
                    except FlowFabricError as error:
                        # Every claim also looks by itself, when its time is over.
                        _LOG.warning("look_failed", code=error.code, error=error.message)
        finally:
            self._looking = None

    async def _look(self) -> None:
        """Ring for work that is there and fits claims that sleep."""
        lanes = {
            (command.namespace, lane)
            for waiter, command in self._claims.items()
            if waiter.idle
            for lane in command.lanes
        }
        if lanes:
            found = await self._store.calls.rows(
                self._sql["waiting_work"],
                [namespace for namespace, _ in lanes],
                [lane for _, lane in lanes],
                WORK_COUNTED_MAX,
            )
            for namespace, lane, kind, required, how_many in found:
                deliver(self._bells.ring_work(Topic(namespace, lane, kind, tuple(required)), how_many))

    # Executions ---------------------------------------------------------------------------------------------------

    async def wait_for(
        self,
        look: Callable[[], Awaitable[T]],
        is_enough: Callable[[T], bool],
        *,
        execution_id: ExecutionId,
        wait_ms: int,
    ) -> T:
        """Look until what is seen of an execution is enough, or `wait_ms` are over; return what was seen last."""
        if wait_ms <= 0:
            return await look()
        deadline = time.monotonic() + wait_ms / 1_000
        uuid = execution_uuid(execution_id)
        keys = ((CHANGE, change_bucket(uuid)),)
        waiter = self._bells.add_watcher(uuid)
        self._watch(waiter, keys)
        try:
            while True:
                waiter.rest()
                seen = await look()
                left_s = deadline - time.monotonic()
                if is_enough(seen) or left_s <= 0:
                    return seen
                most_s = LOOK_AGAIN_S if self.listener.hold(keys) else POLL_CHANGES_S
                await waiter.wait(min(left_s, most_s))
                self._bells.refuse_closed()
        finally:
            self._unwatch(waiter, keys)
            self._bells.remove_watcher(uuid, waiter)

    # Timers -------------------------------------------------------------------------------------------------------

    @contextmanager
    def timers(self) -> Generator[Callable[[], bool]]:
        """Have timers rung in this process; what is given says whether they are told of what is due soon."""
        self.listener.want(DUE)
        try:
            yield lambda: self.listener.hold(DUE)
        finally:
            self.listener.unwant(DUE)

    # Hearing ------------------------------------------------------------------------------------------------------

    def _heard(self, payload: str) -> None:
        what, _, rest = payload.partition(" ")
        match what:
            case "w":
                route_id, _, how_many = rest.partition(" ")
                self._work_heard(int(route_id), int(how_many))
            case "x":
                deliver(self._bells.ring_executions((rest,)))
            case "d":
                deliver(self._bells.ring_due(int(rest) + self.due_heard_after_ms))
            case "c":
                self._catalog.invalidate()
            case _:
                # A newer version of the engine tells more than this one knows of.
                return

    def _work_heard(self, route_id: int, how_many: int) -> None:
        if not self._claims:
            return
        route = self._catalog.route(route_id)
        if route is not None:
            self._ring(route, how_many)
        else:
            self._store.spawn(self._ring_unknown(route_id, how_many))

    async def _ring_unknown(self, route_id: int, how_many: int) -> None:
        """Ring for work of a route that this process has not heard of before."""
        try:
            route = await self._catalog.route_of(route_id)
        except FlowFabricError as error:
            # Whoever sleeps looks for it before long.
            _LOG.warning("look_failed", code=error.code, error=error.message)
            return
        if route is not None:
            self._ring(route, how_many)

    def _ring(self, route: Route, how_many: int) -> None:
        topic = Topic(route.namespace, route.lane, route.kind, route.required)
        deliver(self._bells.ring_work(topic, how_many))

    # Who sleeps for what ------------------------------------------------------------------------------------------

    def _watch(self, waiter: Waiter, keys: Iterable[Key]) -> None:
        self.listener.want(keys)
        for key in keys:
            self._sleepers.setdefault(key, {})[waiter] = None

    def _unwatch(self, waiter: Waiter, keys: Iterable[Key]) -> None:
        self.listener.unwant(keys)
        for key in keys:
            sleepers = self._sleepers[key]
            del sleepers[waiter]
            if not sleepers:
                del self._sleepers[key]

    def _covered(self, keys: Iterable[Key] | None) -> None:
        """Have those look again who sleep for what is covered from now on; None: everybody, and for everything."""
        if keys is None:
            self._catalog.invalidate()
            deliver([*self._bells.ring_all(), *self._bells.ring_due(0)])
            return
        for key in keys:
            if key in DUE:
                deliver(self._bells.ring_due(0))
            self._wake(self._sleepers.get(key, ()))

    def _wake(self, waiters: Iterable[Waiter]) -> None:
        deliver([(waiter.loop, waiter.wake) for waiter in waiters])
