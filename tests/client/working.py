"""Doing a task's work with the bare operations, as a worker would."""

from __future__ import annotations

import json
from typing import Any

from flowfabric.contract.backend import Stores
from flowfabric.contract.execution import ExecutionComplete, ExecutionFail
from flowfabric.contract.ids import Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import FailureClass
from flowfabric.contract.stream import FrameInput, StreamAppend


async def claim(stores: Stores, lane: str = "default", *, tasks: int = 1) -> tuple[Lease, ...]:
    """Lease what is eligible in a lane."""
    claimed = await stores.lease.claim(
        LeaseClaim(
            worker_id=WorkerId("tester"),
            worker_instance=WorkerInstance("tester-1"),
            lanes=(Lane(lane),),
            max_tasks=tasks,
        )
    )
    return claimed.leases


async def claim_one(stores: Stores, lane: str = "default") -> Lease:
    """Lease the one execution that is eligible."""
    (lease,) = await claim(stores, lane)
    return lease


async def complete(stores: Stores, lease: Lease, result: Any = None) -> None:
    """End an execution with a JSON result."""
    payload = None if result is None else Payload(json.dumps(result).encode())
    await stores.execution.complete(
        ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=payload)
    )


async def fail(
    stores: Stores, lease: Lease, failure_class: FailureClass, category: str, message: str
) -> None:
    """Report an attempt as failed."""
    await stores.execution.fail(
        ExecutionFail(
            execution_id=lease.execution_id,
            fence=lease.fence,
            failure_class=failure_class,
            category=category,
            message=message,
        )
    )


async def write(stores: Stores, lease: Lease, *values: Any, first: int = 1) -> None:
    """Append JSON frames to the attempt's stream."""
    frames = tuple(
        FrameInput(sequence=first + index, payload=Payload(json.dumps(value).encode()))
        for index, value in enumerate(values)
    )
    await stores.stream.append(
        StreamAppend(
            execution_id=lease.execution_id,
            attempt_index=lease.attempt_index,
            fence=lease.fence,
            frames=frames,
        )
    )
