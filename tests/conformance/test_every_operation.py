"""What holds for every operation alike: unknown and malformed ids, and reads that work in every situation."""

from __future__ import annotations

from typing import Any, Final

import pytest

from flowfabric.contract.errors import ExecutionNotFound, InvalidInput
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.states import BlockingReason, CancelSource, ExpireReason
from tests.conformance import situations
from tests.conformance.execution.test_create_fields import MALFORMED_IDS
from tests.conformance.world import OTHER_UUID, UNKNOWN, World, frame

_FENCE: Final = {"lease_id": OTHER_UUID, "lease_epoch": 1, "attempt_id": OTHER_UUID}


def _fields(name: str) -> dict[str, Any]:
    """Return well-formed fields for an operation on one execution."""
    from flowfabric.contract.payloads import Fence

    known: dict[str, Any] = {
        "fence": Fence(**_FENCE),
        "attempt_index": 0,
        "tags": {"a.b": "c"},
        "priority": 1,
        "reason": {
            "execution.block": BlockingReason.PAUSED_BY_OPERATOR,
            "execution.expire": ExpireReason.EXECUTION_DEADLINE,
        }.get(name),
        "source": CancelSource.LEASE_HOLDER,
        "delay_until_ms": 1,
        "worker_id": "w",
        "worker_instance": "w-1",
        "frames": (frame(1),),
    }
    wanted = OPERATIONS[name].command.__struct_fields__
    return {field: value for field, value in known.items() if field in wanted and value is not None}


ON_ONE_EXECUTION: Final = [
    name for name, operation in OPERATIONS.items() if ExecutionNotFound in operation.refuses
]


@pytest.mark.parametrize("name", ON_ONE_EXECUTION)
async def test_an_unknown_id_is_not_found(world: World, name: str) -> None:
    """Every operation on an execution that does not exist refuses with execution_not_found, never crashes.

    Acceptance: unknown-id-is-not-found
    Acceptance: read-context-of-missing-is-not-found
    """
    await world.refused(ExecutionNotFound, world.call(name, UNKNOWN, **_fields(name)))


@pytest.mark.parametrize("name", ON_ONE_EXECUTION)
async def test_a_malformed_id_is_refused_before_anything_else(world: World, name: str) -> None:
    """Every operation on an execution refuses a malformed id with invalid_input."""
    for execution_id in MALFORMED_IDS:
        await world.refused(InvalidInput, world.call(name, execution_id, **_fields(name)))


@pytest.mark.parametrize("situation", situations.ALL.values(), ids=situations.ALL)
async def test_reads_work_in_every_situation(world: World, situation: situations.Situation) -> None:
    """In every situation all reads answer, agree with each other, and show a legal vector.

    Acceptance: reads-work-at-every-phase
    """
    from flowfabric.contract.states import LEGAL_VECTORS, derive_public_state

    execution_id = await situation(world)
    seen = await world.describe(execution_id)
    info = await world.execution.read_info(execution_id)
    vector = seen.state_vector
    assert vector in LEGAL_VECTORS
    assert vector.public_state == derive_public_state(
        vector.lifecycle_phase, vector.eligibility_state, vector.terminal_outcome, vector.attempt_state
    )
    assert info.state_vector == vector
    assert seen.public_state == info.public_state == await world.state(execution_id) == vector.public_state
    assert await world.listed(state=vector.public_state) == [execution_id]
    await world.observe()
