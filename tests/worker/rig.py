"""What the worker's tests share: submitting work to a store and reading what became of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from flowfabric.backends import connect
from flowfabric.contract.backend import Backend, Stores
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionCreated,
    ExecutionDescribe,
    ExecutionReadResult,
    ExecutionSnapshot,
    ResultUnion,
)
from flowfabric.contract.ids import ExecutionId, Kind
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import PublicState
from flowfabric.contract.stream import ATTEMPT_STARTED, Frame, StreamRead
from flowfabric.engine.supervisor import Engine
from flowfabric.worker.app import AnyTask

PATIENCE_S = 20.0


class Rig:
    """A store in use."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores

    async def submit(
        self, task: AnyTask | str, /, raw: Payload | bytes | None = None, **more: Any
    ) -> ExecutionId:
        """Create an execution; keyword arguments that create does not know are the task's own."""
        fields = {
            name: more.pop(name)
            for name in ("policy", "traceparent", "idempotency_key", "tags")
            if name in more
        }
        if raw is None:
            payload = Payload(b"{}") if isinstance(task, str) else task.encode_arguments(more)
        else:
            payload = raw if isinstance(raw, Payload) else Payload(raw)
        kind = Kind(task if isinstance(task, str) else task.name)
        created = await self.stores.execution.create(ExecutionCreate(kind=kind, input=payload, **fields))
        assert isinstance(created, ExecutionCreated)
        return created.execution_id

    async def result(self, execution_id: ExecutionId) -> ResultUnion:
        """Wait for the end of an execution."""
        return await self.stores.execution.read_result(
            ExecutionReadResult(execution_id=execution_id, wait_ms=int(PATIENCE_S * 1_000))
        )

    async def run(self, task: AnyTask, /, raw: Payload | bytes | None = None, **arguments: Any) -> Any:
        """Submit and wait for the end."""
        return await self.result(await self.submit(task, raw, **arguments))

    async def describe(self, execution_id: ExecutionId) -> ExecutionSnapshot:
        return await self.stores.execution.describe(ExecutionDescribe(execution_id=execution_id))

    async def until_state(self, execution_id: ExecutionId, *states: PublicState) -> ExecutionSnapshot:
        """Wait until an execution is in one of these states."""
        found: ExecutionSnapshot | None = None

        async def reached() -> bool:
            nonlocal found
            found = await self.describe(execution_id)
            return found.public_state in states

        await until(reached)
        assert found is not None
        return found

    async def frames(self, execution_id: ExecutionId) -> list[Frame]:
        """Read the frames that handlers wrote, over all attempts."""
        page = await self.stores.stream.read(StreamRead(execution_id=execution_id, limit=10_000))
        return [frame for frame in page.frames if frame.frame_type != ATTEMPT_STARTED]


async def until(condition: Callable[[], bool | Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < deadline, f"still not so after {patience_s} s"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def opened(
    url: str = "sqlite:///:memory:", *, engine: bool = True
) -> AsyncGenerator[tuple[Rig, Backend]]:
    """Open a store, with its timers running."""
    backend = await connect(url)
    timers = Engine(backend)
    if engine:
        await timers.start()
    try:
        yield Rig(backend), backend
    finally:
        await timers.stop(5.0)
        await backend.close()
