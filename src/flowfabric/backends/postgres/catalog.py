"""What this process knows of lanes, routes and the defaults of kinds: a copy, read again when the store's changes.

Every change is announced, and the copy is looked at again every few seconds in case an announcement was lost; but
nothing relies on either: a claim names the latest route it knows and a create the defaults it went by, the function
refuses with `stale_catalog` when the store knows better, and the call is repeated with a fresh copy. Routes are only
ever added, and get their revision in the order in which they become visible. Nothing here waits for work or knows what
is claimable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from flowfabric.backends.postgres.shapes import Published, published_of
from flowfabric.backends.postgres.store import Store
from flowfabric.contract.lease import LeaseClaim, LeaseGrant
from flowfabric.contract.policies import KindDefaults
from flowfabric.contract.states import LaneState

STALE: Final = "stale_catalog"
"""What a function answers a caller whose copy is not fresh."""
LOOK_AGAIN_S: Final = 5.0
"""For how long a copy is taken for fresh without an announcement."""
_REMEMBERED_MAX: Final = 20_000


class Route(msgspec.Struct, frozen=True):
    """One combination of kind and required capabilities in a lane and namespace."""

    id: int
    namespace: str
    lane: str
    kind: str
    required: tuple[str, ...]


class Catalog:
    """Lanes, routes and defaults as this process knows them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sql = store.sql("sql/queries/catalog.sql")
        self._routes: Final[dict[int, Route]] = {}
        self._by_lane: Final[dict[tuple[str, str], list[Route]]] = {}
        self._lanes: dict[str, LaneState] = {}
        self._published: dict[tuple[str, str], Published] = {}
        self._fitting: Final[dict[tuple[object, ...], tuple[int, ...]]] = {}
        self._known = 0
        self._reading = asyncio.Lock()
        self._asked = 0
        self._answered = -1
        self._read_at = float("-inf")

    # What is known ------------------------------------------------------------------------------------------------

    @property
    def known(self) -> int:
        """The largest revision of a route that is known; every smaller one is known too."""
        return self._known

    async def fitting(self, command: LeaseClaim | LeaseGrant) -> tuple[int, ...]:
        """Return the ids of routes a worker may take work from: lane, kind and capabilities match.

        Whether a lane gives work out is for the function to say. Remembered until the catalog changes.
        """
        await self.ensure()
        kinds = command.kinds if isinstance(command, LeaseClaim) else ()
        key = (command.namespace, command.lanes, kinds, command.capabilities)
        known = self._fitting.get(key)
        if known is None:
            if len(self._fitting) >= _REMEMBERED_MAX:
                self._fitting.clear()
            kind_set, capabilities = frozenset(kinds), frozenset(command.capabilities)
            known = self._fitting[key] = tuple(
                route.id
                for lane in dict.fromkeys(command.lanes)
                for route in self._by_lane.get((command.namespace, lane), ())
                if (not kind_set or route.kind in kind_set) and capabilities.issuperset(route.required)
            )
        return known

    def route(self, route_id: int) -> Route | None:
        """Return a route by its id, if it is known."""
        return self._routes.get(route_id)

    async def route_of(self, route_id: int) -> Route | None:
        """Return a route by its id; one that is not known is looked for in the store."""
        known = self._routes.get(route_id)
        if known is None:
            await self.refresh()
            known = self._routes.get(route_id)
        return known

    def published(self, namespace: str, kind: str) -> Published | None:
        """Return what a worker published about a kind, or None. `ensure` first."""
        return self._published.get((namespace, kind))

    def defaults(self, namespace: str, kind: str) -> KindDefaults | None:
        """Return what a worker published about a kind, or None. `ensure` first."""
        known = self._published.get((namespace, kind))
        return known.defaults if known is not None else None

    def lane_state(self, lane: str) -> LaneState:
        """Return a lane's state; one that was never used is active."""
        return self._lanes.get(lane, LaneState.ACTIVE)

    # Learning -----------------------------------------------------------------------------------------------------

    def invalidate(self) -> None:
        """Note that the store's lanes, routes or defaults changed, or may have: the next use reads them."""
        self._read_at = float("-inf")

    async def ensure(self) -> None:
        """Read what changed, unless the copy is fresh."""
        if time.monotonic() - self._read_at > LOOK_AGAIN_S:
            await self.refresh()

    async def refresh(self) -> None:
        """Read what changed; after it, everything is known that was committed before the call."""
        self._asked += 1
        ticket = self._asked
        async with self._reading:
            if self._answered >= ticket:
                # Somebody else has begun to read after this call.
                return
            upto, began = self._asked, time.monotonic()
            self._read_at = began
            try:
                await self._read()
            except BaseException:
                self.invalidate()
                raise
            self._answered = upto

    async def _read(self) -> None:
        calls = self._store.calls
        # Routes last: a lane is there before its first route.
        lanes = await calls.rows(self._sql["lanes"])
        published = await calls.rows(self._sql["published"])
        routes = await calls.rows(self._sql["routes"], self._known)
        self._lanes = {row["lane"]: LaneState(row["state"]) for row in lanes}
        self._published = {
            (row["namespace"], row["kind"]): published_of(row["defaults"]) for row in published
        }
        for row in routes:
            self._learn(Route(row["id"], row["namespace"], row["lane"], row["kind"], tuple(row["required"])))
            self._known = row["revision"]
        self._fitting.clear()

    def _learn(self, route: Route) -> None:
        if route.id in self._routes:
            return
        self._routes[route.id] = route
        self._by_lane.setdefault((route.namespace, route.lane), []).append(route)


def is_stale(rows: Sequence[Any]) -> bool:
    """Say whether a function refused because the caller's catalog is not fresh."""
    return any(row["code"] == STALE for row in rows)
