"""What this process knows of lanes, routes and the defaults of kinds: a copy of the store's, kept fresh by pushes.

`{w}:lanes` holds each lane (`StoredLane`), `{w}:routes:<lane>` the routes seen on it (JSON of namespace, kind and
capabilities), `{w}:defaults` what workers published (`<namespace> <kind>`, JSON). Every change counts up the field
`catalog` of `{w}:meta` and is told, with its number, on a shard channel; a process that finds numbers missing reads
everything again. Routes are only ever added, lane states carry their own version, so messages may come twice and in
any order. The copy serves choosing and defaults; what a lane lets through is decided by the copy in each partition.
Nothing here waits for work or knows what is claimable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from flowfabric.backends.valkey import keys
from flowfabric.backends.valkey.calling import Calls
from flowfabric.backends.valkey.record import unpack
from flowfabric.contract import limits
from flowfabric.contract.errors import Corrupt, RouteLimitExceeded, Unavailable
from flowfabric.contract.execution import ExecutionDefinition
from flowfabric.contract.ids import Lane
from flowfabric.contract.lane import LaneInfo
from flowfabric.contract.lease import LeaseClaim, LeaseGrant
from flowfabric.contract.policies import KindDefaults
from flowfabric.contract.states import LANE_ACCEPTS_CLAIMS, LaneState

VERSION_FIELD: Final = "catalog"
LOOK_AGAIN_S: Final = 5.0
"""How often a process compares its copy with the store's version, should messages have been lost."""
_READ_BATCH: Final = 256
_REMEMBERED_MAX: Final = 20_000

_ROUTE: Final = msgspec.json.Decoder(tuple[str, str, tuple[str, ...]])
_DEFAULTS: Final = msgspec.json.Decoder(KindDefaults)
_CHANGE: Final = msgspec.msgpack.Decoder(list[int | str])

Shape = tuple[str, frozenset[str]]
"""Kind and required capabilities: what a lane may have 1,000 of."""


class StoredLane(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """A lane as stored."""

    state: LaneState
    created_at_ms: int
    changed_at_ms: int
    version: int
    """Grows with every change of the state; 0: it was always active."""
    copied: int
    """The version that every partition is known to have."""


class Route(msgspec.Struct, frozen=True):
    """One combination of kind and required capabilities in a lane and namespace."""

    rid: str
    namespace: str
    lane: str
    kind: str
    required: frozenset[str]


class Catalog:
    """Lanes, routes and defaults as this process knows them. `load` it before use."""

    def __init__(self, calls: Calls, store_id: str) -> None:
        self._calls = calls
        self._store_id = store_id
        self._version = 0
        self._ahead: Final[set[int]] = set()
        self._lanes: Final[dict[str, StoredLane]] = {}
        self._routes: Final[dict[str, Route]] = {}
        self._by_lane: Final[dict[tuple[str, str], list[Route]]] = {}
        self._shapes: Final[dict[str, set[Shape]]] = {}
        self._defaults: Final[dict[tuple[str, str], tuple[int, KindDefaults]]] = {}
        self._fitting: Final[dict[tuple[object, ...], tuple[Route, ...]]] = {}
        self._registering: Final[dict[str, asyncio.Task[None]]] = {}
        self._listeners: Final[dict[int, Callable[[], None]]] = {}
        self._listeners_made = 0
        self._reading = asyncio.Lock()

    # What is known ------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Up to where every change is known."""
        return self._version

    def fitting(self, command: LeaseClaim | LeaseGrant) -> tuple[Route, ...]:
        """Return the routes a worker may take work from: its lanes give work out, kind and capabilities match.

        Remembered until the catalog changes; only the lanes asked for are looked at.
        """
        kinds = command.kinds if isinstance(command, LeaseClaim) else ()
        key = (command.namespace, command.lanes, kinds, command.capabilities)
        known = self._fitting.get(key)
        if known is None:
            if len(self._fitting) >= _REMEMBERED_MAX:
                self._fitting.clear()
            kind_set, capabilities = frozenset(kinds), frozenset(command.capabilities)
            known = self._fitting[key] = tuple(
                route
                for lane in dict.fromkeys(command.lanes)
                if self.lane_state(lane) in LANE_ACCEPTS_CLAIMS
                for route in self._by_lane.get((command.namespace, lane), ())
                if (not kind_set or route.kind in kind_set) and route.required <= capabilities
            )
        return known

    def route(self, rid: str) -> Route | None:
        """Return a route by its id."""
        return self._routes.get(rid)

    def has_route(self, rid: str) -> bool:
        """Say whether a route is registered, as far as this process knows."""
        return rid in self._routes

    def routes_of(self, lane: str) -> tuple[Route, ...]:
        """Return the routes of a lane, in every namespace."""
        return tuple(route for route in self._routes.values() if route.lane == lane)

    def all_routes(self) -> tuple[Route, ...]:
        """Return every route."""
        return tuple(self._routes.values())

    def defaults(self, namespace: str, kind: str) -> KindDefaults | None:
        """Return what a worker published about a kind, or None."""
        known = self._defaults.get((namespace, kind))
        return known[1] if known is not None else None

    def lane_state(self, lane: str) -> LaneState:
        """Return a lane's state; one that was never used is active."""
        known = self._lanes.get(lane)
        return known.state if known is not None else LaneState.ACTIVE

    def lanes(self) -> list[LaneInfo]:
        """Return every lane, by name."""
        return [
            LaneInfo(
                lane=Lane(name),
                state=lane.state,
                created_at_ms=lane.created_at_ms,
                changed_at_ms=lane.changed_at_ms,
                routes=len(self._shapes.get(name, ())),
            )
            for name, lane in sorted(self._lanes.items())
        ]

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change of lanes or routes; return how to stop that."""
        key = self._listeners_made
        self._listeners_made += 1
        self._listeners[key] = listener
        return lambda: self._listeners.pop(key, None) and None

    # Learning -----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read everything."""
        async with self._reading:
            await self._read()

    async def catch_up(self) -> bool:
        """Compare with the store; read what was missed; return whether anything was.

        After it, everything is known that was registered before the call.
        """
        stored = await self._stored_version()
        if stored == self._version:
            return False
        async with self._reading:
            if stored == self._version:
                return True
            await self._read()
        return True

    async def keep_fresh(self) -> None:
        """Catch up every few seconds, for ever: messages may be lost."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            try:
                await self.catch_up()
            except Unavailable:
                # Whoever needs the store finds out by itself; the next round looks again.
                continue

    def hear(self, message: bytes) -> None:
        """Take in a message of the channel."""
        try:
            store, version, what, *rest = _CHANGE.decode(message)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Corrupt(f"a message of the catalog cannot be read: {error}") from error
        if store != self._store_id:
            return
        if not isinstance(version, int):
            raise Corrupt("a message of the catalog has no number")
        match what, rest:
            case "lane", [str(lane), *stored]:
                self.learn_lane(lane, msgspec.convert(stored, StoredLane))
            case "route", [str(lane), str(rid), str(value), *stored]:
                self.learn_lane(lane, msgspec.convert(stored, StoredLane))
                self._learn_route(_route_of(lane, rid, value))
            case "defaults", [str(namespace), str(kind), str(value)]:
                self.learn_defaults(version, namespace, kind, value)
            case _:
                # A newer version of the engine tells more than this one knows of.
                pass
        self._count(version)

    def learn_lane(self, name: str, lane: StoredLane) -> None:
        """Take in a lane as stored, unless a newer state of it is known."""
        known = self._lanes.get(name)
        if known is not None and (known.version, known.copied) >= (lane.version, lane.copied):
            return
        self._lanes[name] = lane
        if known is None or known.state is not lane.state:
            self._changed()

    def learn_defaults(self, version: int, namespace: str, kind: str, text: str | bytes) -> None:
        """Take in what a worker published, unless something newer is known."""
        known = self._defaults.get((namespace, kind))
        if known is None or known[0] < version:
            self._defaults[namespace, kind] = (version, _DEFAULTS.decode(text))

    def _learn_route(self, route: Route) -> None:
        if route.rid in self._routes:
            return
        self._routes[route.rid] = route
        self._by_lane.setdefault((route.namespace, route.lane), []).append(route)
        self._shapes.setdefault(route.lane, set()).add((route.kind, route.required))
        self._changed()

    def _changed(self) -> None:
        self._fitting.clear()
        for listener in list(self._listeners.values()):
            listener()

    def _count(self, version: int) -> None:
        """Note that one change is known; numbers may arrive in any order."""
        if version > self._version:
            self._ahead.add(version)
        while self._version + 1 in self._ahead:
            self._version += 1
            self._ahead.discard(self._version)
        if len(self._ahead) > _REMEMBERED_MAX:
            # A number is missing for good: only reading everything again closes the gap.
            self._ahead.clear()

    # Reading ------------------------------------------------------------------------------------------------------

    async def _stored_version(self) -> int:
        (found,) = await self._calls.read(None, [("HGET", keys.META, VERSION_FIELD)])
        return int(found or 0)

    async def _read_hashes(self, names: Sequence[str]) -> list[dict[bytes, bytes]]:
        return await self._calls.read(None, [("HGETALL", name) for name in names])

    async def _read(self) -> None:
        """Read everything. What is told meanwhile is newer than what is read, and stays."""
        known = self._version
        version = await self._stored_version()
        lanes, defaults = await self._read_hashes((keys.LANES, keys.DEFAULTS))
        names = [name.decode() for name in lanes]
        routes: list[Route] = []
        for start in range(0, len(names), _READ_BATCH):
            batch = names[start : start + _READ_BATCH]
            found = await self._read_hashes([keys.routes(name) for name in batch])
            for name, stored in zip(batch, found, strict=True):
                routes += [_route_of(name, rid.decode(), value) for rid, value in stored.items()]
        is_behind = version < known
        missing = self._forget({route.rid for route in routes}) if is_behind else []
        self._version = version if is_behind else max(version, self._version)
        self._ahead.difference_update([number for number in self._ahead if number <= self._version])
        for name, stored in lanes.items():
            self.learn_lane(name.decode(), unpack(stored, StoredLane))
        for route in routes:
            self._learn_route(route)
        for field, text in defaults.items():
            namespace, _, kind = field.decode().partition(" ")
            self.learn_defaults(version, namespace, kind, text)
        self._count(version)
        for route in missing:
            await self._register(route)

    def _forget(self, rids: set[str]) -> list[Route]:
        """Drop everything, because a failover lost the store's latest writes; return the routes that it lost.

        Executions of such a route may exist on other servers, so the route has to be made known again.
        """
        missing = [route for route in self._routes.values() if route.rid not in rids]
        for known in (self._lanes, self._routes, self._by_lane, self._shapes, self._defaults, self._ahead):
            known.clear()
        self._changed()
        return missing

    # Registering --------------------------------------------------------------------------------------------------

    async def register(self, definition: ExecutionDefinition) -> str:
        """Make the route of a new execution known, and its lane, which exists from first use; return its id.

        Refuses: route_limit_exceeded.
        """
        rid = keys.route_id(definition.namespace, definition.lane, definition.route)
        if rid in self._routes:
            return rid
        route = Route(
            rid,
            definition.namespace,
            definition.lane,
            definition.kind,
            frozenset(definition.required_capabilities),
        )
        shapes = self._shapes.get(route.lane, set())
        if len(shapes) >= limits.ROUTES_PER_LANE_MAX and (route.kind, route.required) not in shapes:
            raise RouteLimitExceeded(lane=route.lane)
        task = self._registering.get(rid)
        if task is None:
            # Callers of one route share the call; it goes on when one of them is cancelled.
            task = self._registering[rid] = asyncio.create_task(self._register(route))
            task.add_done_callback(lambda _: self._registering.pop(rid, None))
        await asyncio.shield(task)
        return rid

    async def _register(self, route: Route) -> None:
        shape = msgspec.json.encode((route.kind, sorted(route.required)))[1:]
        version, stored = await self._calls.call(
            None,
            "lane_register_route",
            (keys.META, keys.LANES, keys.routes(route.lane)),
            lane=route.lane,
            route_id=route.rid,
            namespace=route.namespace,
            shape=shape,
        )
        if stored:
            self.learn_lane(route.lane, unpack(stored, StoredLane))
        self._learn_route(route)
        self._count(version)

    async def close(self) -> None:
        """Wait until nothing of this is under way."""
        await asyncio.gather(*self._registering.values(), return_exceptions=True)


def _route_of(lane: str, rid: str, value: str | bytes) -> Route:
    try:
        namespace, kind, required = _ROUTE.decode(value)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"a stored route of lane {lane} cannot be read: {error}") from error
    return Route(rid, namespace, lane, kind, frozenset(required))
