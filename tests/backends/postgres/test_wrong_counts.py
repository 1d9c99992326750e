"""Retention of a stream whose counts are not those of its frames."""

from __future__ import annotations

import asyncio

import pytest

from flowfabric.contract.execution import ExecutionTrim
from flowfabric.contract.policies import ExecutionPolicy, StreamPolicy
from flowfabric.contract.stream import FrameInput, StreamAppend
from tests.backends.postgres.work import opened
from tests.backends.working import PATIENCE_S, claim, complete, create
from tests.postgres.servers import Node


@pytest.mark.parametrize(
    ("policy", "done"),
    [
        (ExecutionPolicy(retention_ms=1), "deleted"),
        (ExecutionPolicy(stream_policy=StreamPolicy(retention_ttl_ms=1)), "frames_deleted"),
    ],
)
async def test_retention_ends_whatever_the_counts_say(node: Node, policy: ExecutionPolicy, done: str) -> None:
    """A stream that claims to keep more frames than there are is trimmed once, not for ever."""
    async with opened(node.url) as (backend,):
        execution_id = await create(backend, policy=policy)
        (lease,) = await claim(backend)
        frames = tuple(FrameInput(sequence=number) for number in range(1, 4))
        await backend.stream.append(
            StreamAppend(execution_id=execution_id, attempt_index=0, fence=lease.fence, frames=frames)
        )
        await complete(backend, lease)
        node.call("UPDATE ff.stream SET durable_kept = durable_kept + 2")
        ends_ms = await backend.now_ms() + 1
        while await backend.now_ms() < ends_ms:
            pass
        trimmed = await asyncio.wait_for(
            backend.execution.trim(ExecutionTrim(execution_id=execution_id)), PATIENCE_S / 4
        )
        assert trimmed.status == done
        assert (await backend.maintenance.fsck()).findings == ()
