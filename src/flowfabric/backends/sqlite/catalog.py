"""What the writer remembers between groups: lanes, routes and defaults of kinds.

All of it is in the store too; it is forgotten whenever another connection has written or a group was undone. What must
stay true: everything here agrees with the state that the running group sees.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flowfabric.backends import assets
from flowfabric.backends.bells import Topic
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.rows import Snapshot
from flowfabric.contract import limits
from flowfabric.contract.errors import RouteLimitExceeded
from flowfabric.contract.execution import ExecutionDefinition
from flowfabric.contract.ids import Lane
from flowfabric.contract.lane import LaneInfo
from flowfabric.contract.lease import LeaseClaim, LeaseGrant
from flowfabric.contract.policies import KindDefaults
from flowfabric.contract.states import LANE_ACCEPTS_CLAIMS, LaneState
from flowfabric.rules import lane as lane_rules

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/catalog.sql")
_REMEMBERED_MAX: Final = 20_000


class Route(msgspec.Struct, frozen=True):
    """One combination of kind and required capabilities in a lane."""

    id: int
    topic: Topic
    required: frozenset[str]


class Catalog:
    """The writer's memory of small, slowly changing tables."""

    def __init__(self) -> None:
        self._lanes: Final[dict[str, LaneInfo]] = {}
        self._routes: Final[dict[tuple[str, str, str], Route]] = {}
        self._by_id: Final[dict[int, Route]] = {}
        self._by_lane: Final[dict[tuple[str, str], list[Route]]] = {}
        self._fitting: Final[dict[tuple[object, ...], tuple[Route, ...]]] = {}
        self._defaults: Final[dict[tuple[str, str], KindDefaults | None]] = {}
        self.empty: Final[set[int]] = set()
        """Routes known to have nothing claimable."""

    def clear(self) -> None:
        """Forget everything."""
        self._lanes.clear()
        self._routes.clear()
        self._by_id.clear()
        self._by_lane.clear()
        self._fitting.clear()
        self._defaults.clear()
        self.empty.clear()

    def trim(self) -> None:
        """Keep the memory bounded, whatever names callers come up with."""
        if (
            max(len(self._routes), len(self._defaults), len(self._fitting), len(self._lanes))
            > _REMEMBERED_MAX
        ):
            self.clear()

    # Lanes --------------------------------------------------------------------------------------------------------

    def lane(self, snapshot: Snapshot, name: str) -> LaneInfo | None:
        """Return a lane, or None when it was never used."""
        known = self._lanes.get(name)
        if known is None:
            known = find_lane(snapshot, name)
            if known is not None:
                self._lanes[name] = known
        return known

    def lane_state(self, snapshot: Snapshot, name: str) -> LaneState:
        """Return a lane's state; one that was never used is active."""
        known = self.lane(snapshot, name)
        return known.state if known is not None else LaneState.ACTIVE

    def store_lane(self, snapshot: Snapshot, lane: LaneInfo) -> None:
        """Store a lane."""
        snapshot.execute(_SQL["store_lane"], (lane.lane, rows.encode(lane)))
        self._lanes[lane.lane] = lane
        self._fitting.clear()

    # Routes -------------------------------------------------------------------------------------------------------

    def register(self, snapshot: Snapshot, definition: ExecutionDefinition) -> int:
        """Return the route of a new execution, made known together with its lane on first use.

        Refuses: route_limit_exceeded.
        """
        key = (definition.lane, definition.route, definition.namespace)
        known = self._routes.get(key)
        if known is None:
            known = self._find_route(snapshot, definition) or self._add_route(snapshot, definition)
            self._routes[key] = known
            self._by_id[known.id] = known
        return known.id

    def _find_route(self, snapshot: Snapshot, definition: ExecutionDefinition) -> Route | None:
        found = snapshot.first(_SQL["find_route"], (definition.lane, definition.route, definition.namespace))
        return None if found is None else self._route(definition, found[0])

    def _route(self, definition: ExecutionDefinition, route_id: int) -> Route:
        required = definition.required_capabilities
        topic = Topic(definition.namespace, definition.lane, definition.kind, required)
        return Route(route_id, topic, frozenset(required))

    def _add_route(self, snapshot: Snapshot, definition: ExecutionDefinition) -> Route:
        known, others = snapshot.first(
            _SQL["count_routes"], (definition.lane, definition.route, definition.lane)
        )
        if not known and others >= limits.ROUTES_PER_LANE_MAX:
            raise RouteLimitExceeded(lane=definition.lane)
        if self.lane(snapshot, definition.lane) is None:
            self.store_lane(snapshot, lane_rules.first_use(Lane(definition.lane), snapshot.now_ms))
        cursor = snapshot.execute(
            _SQL["add_route"],
            (
                definition.namespace,
                definition.lane,
                definition.route,
                definition.kind,
                rows.encode(definition.required_capabilities),
            ),
        )
        assert cursor.lastrowid is not None, "an insert has a row number"
        self._by_lane.pop((definition.namespace, definition.lane), None)
        self._fitting.clear()
        return self._route(definition, cursor.lastrowid)

    def topic(self, snapshot: Snapshot, route_id: int) -> Topic | None:
        """Return what a claim must match to be given work of a route."""
        known = self._by_id.get(route_id)
        if known is None:
            found = snapshot.first(_SQL["route_by_id"], (route_id,))
            if found is None:
                return None
            known = _route_from(found)
            self._by_id[route_id] = known
        return known.topic

    def fitting(self, snapshot: Snapshot, command: LeaseClaim | LeaseGrant) -> tuple[Route, ...]:
        """Return the routes a worker may take work from: its lanes give work out, kind and capabilities match."""
        kinds = command.kinds if isinstance(command, LeaseClaim) else ()
        key = (command.namespace, command.lanes, kinds, command.capabilities)
        known = self._fitting.get(key)
        if known is None:
            found: list[Route] = []
            kind_set, capabilities = frozenset(kinds), frozenset(command.capabilities)
            for lane in dict.fromkeys(command.lanes):
                if self.lane_state(snapshot, lane) not in LANE_ACCEPTS_CLAIMS:
                    continue
                found += [
                    route
                    for route in self._routes_of(snapshot, command.namespace, lane)
                    if (not kind_set or route.topic.kind in kind_set) and route.required <= capabilities
                ]
            known = tuple(found)
            self._fitting[key] = known
        return known

    def _routes_of(self, snapshot: Snapshot, namespace: str, lane: str) -> list[Route]:
        known = self._by_lane.get((namespace, lane))
        if known is None:
            known = [_route_from(found) for found in snapshot.all(_SQL["routes_of_lane"], (lane, namespace))]
            self._by_lane[namespace, lane] = known
        return known

    # Defaults of kinds --------------------------------------------------------------------------------------------

    def defaults(self, snapshot: Snapshot, namespace: str, kind: str) -> KindDefaults | None:
        """Return what a worker published about a kind, or None."""
        key = (namespace, kind)
        if key not in self._defaults:
            found = snapshot.first(_SQL["find_defaults"], key)
            self._defaults[key] = None if found is None else rows.decode_defaults(found[0])
        return self._defaults[key]

    def store_defaults(self, snapshot: Snapshot, namespace: str, defaults: KindDefaults) -> None:
        """Store what a worker publishes about a kind."""
        if self.defaults(snapshot, namespace, defaults.kind) == defaults:
            return
        snapshot.execute(_SQL["store_defaults"], (namespace, defaults.kind, rows.encode(defaults)))
        self._defaults[namespace, defaults.kind] = defaults


def find_lane(snapshot: Snapshot, name: str) -> LaneInfo | None:
    """Read a lane, or None when it was never used."""
    found = snapshot.first(_SQL["find_lane"], (name,))
    return None if found is None else rows.decode_lane(found[0])


def _route_from(found: tuple[int, str, str, str, bytes]) -> Route:
    required = rows.decode_names(found[4])
    return Route(found[0], Topic(found[1], found[2], found[3], required), frozenset(required))
