"""Finding the eligible index of an execution without reading it first.

A function needs the index as a declared key, and its name is worked out of namespace, lane and route, which a caller
that holds only an id does not know. So it is guessed: from what was learned about this execution, or from the lane and
route that come with a fence. A function that was given the wrong one writes nothing and names the right one; the call
is repeated with it. What must stay true: a guess is never trusted, it only saves a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from flowfabric.backends.valkey.calling import Again, Calls
from flowfabric.backends.valkey.keys import Partition, Partitions
from flowfabric.backends.valkey.wire import Command
from flowfabric.contract.errors import Corrupt
from flowfabric.contract.ids import ExecutionId, execution_uuid
from flowfabric.contract.payloads import Fence

UNKNOWN: Final = "unknown"
LEARNED_MAX: Final = 16_384
"""Executions, and pairs of lane and route, that are remembered."""
_TRIES: Final = 3


class Routes:
    """What is known about the routes of executions, and calls that find out what is not."""

    def __init__(self, calls: Calls, partitions: Partitions) -> None:
        self._calls = calls
        self._partitions = partitions
        self._by_execution: Final[dict[str, str]] = {}
        self._by_route: Final[dict[tuple[str, str], str]] = {}

    def guess(self, execution_id: ExecutionId, fence: Fence | None = None) -> str:
        """Return the route's id as far as is known."""
        learned = self._by_execution.get(execution_id)
        if learned is not None:
            return learned
        if fence is not None and fence.lane is not None and fence.route is not None:
            return self._by_route.get((fence.lane, fence.route), UNKNOWN)
        return UNKNOWN

    def learn(self, execution_id: ExecutionId, rid: str, fence: Fence | None = None) -> None:
        """Remember the route of an execution that was guessed wrong."""
        if fence is not None and fence.lane is not None and fence.route is not None:
            self.seen(fence.lane, fence.route, rid)
        _remember(self._by_execution, execution_id, rid)

    def seen(self, lane: str, route: str, rid: str) -> None:
        """Remember the namespace last seen for a lane and route."""
        if self._by_route.get((lane, route)) != rid:
            _remember(self._by_route, (lane, route), rid)

    async def call(
        self,
        name: str,
        execution_id: ExecutionId,
        *,
        fence: Fence | None = None,
        more_keys: Sequence[str] = (),
        before: Sequence[Command] = (),
        **given: Any,
    ) -> list[Any]:
        """Call a function that changes an execution; its keys are execution, eligible, due, own, lost, `more_keys`.

        Raises: as `Calls.call`; no `Again` for a wrong route.
        """
        partition = self._partitions.of(execution_id)
        rid = self.guess(execution_id, fence)
        for _ in range(_TRIES):
            keys = keys_of(partition, execution_id, rid)
            try:
                return await self._calls.call(
                    partition, name, (*keys, *more_keys), rid=rid, before=before, **given
                )
            except Again as again:
                if again.code != "wrong_route":
                    raise
                rid = again.value
                self.learn(execution_id, rid, fence)
                # What was staged is still there.
                before = ()
        raise Corrupt("an execution changes its route")


def keys_of(partition: Partition, execution_id: ExecutionId, rid: str) -> tuple[str, str, str, str, str]:
    """Return the keys that every change of an execution may touch."""
    return (
        partition.execution(execution_uuid(execution_id)),
        partition.eligible(rid),
        partition.due,
        partition.own,
        partition.lost,
    )


def _remember(known: dict[Any, str], key: Any, rid: str) -> None:
    if len(known) >= LEARNED_MAX:
        known.pop(next(iter(known)), None)
    known[key] = rid
