"""Every operation of the contract, by name, collected from the Store protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flowfabric.contract.attempt import AttemptStore
from flowfabric.contract.execution import ExecutionStore
from flowfabric.contract.lane import LaneStore
from flowfabric.contract.lease import LeaseStore
from flowfabric.contract.manifest import Kind, Operation, Repeatable, Route, Scope, collect
from flowfabric.contract.stream import StreamStore
from flowfabric.contract.worker import WorkerStore

STORES: Final[Mapping[str, type]] = {
    "execution": ExecutionStore,
    "lease": LeaseStore,
    "attempt": AttemptStore,
    "stream": StreamStore,
    "worker": WorkerStore,
    "lane": LaneStore,
}
"""The Store protocol of each concept."""


def _all() -> Mapping[str, Operation]:
    found: dict[str, Operation] = {}
    for concept, store in STORES.items():
        found.update(collect(concept, store))
    return found


OPERATIONS: Final[Mapping[str, Operation]] = _all()
"""Every operation by name, concept by concept in the order of declaration."""

__all__ = ["OPERATIONS", "STORES", "Kind", "Operation", "Repeatable", "Route", "Scope"]
