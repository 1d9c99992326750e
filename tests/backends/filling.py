"""A store with executions in many states, for tests that throw calls of every kind at it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from flowfabric.contract.backend import Backend
from flowfabric.contract.ids import mint_uuid
from flowfabric.contract.lease import Lease
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import FixedBackoff, KindDefaults, RetryPolicy, TimeoutPolicy
from flowfabric.contract.states import FailureClass, FrameMode, LaneState
from tests.conformance.world import command, frame, policy

HOUR_MS: Final = 3_600_000


class Made(msgspec.Struct, frozen=True):
    """An execution that was made."""

    execution_id: str
    lane: str
    lease: Lease | None
    """The last one given."""
    namespace: str


class Filling:
    """Makes executions in many states, each in a lane of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend: Final = backend
        self.made: Final[list[Made]] = []

    async def call(self, name: str, subject: Any = None, /, **fields: Any) -> Any:
        concept, _, verb = name.partition(".")
        return await getattr(getattr(self._backend, concept), verb)(command(name, subject, **fields))

    async def create(self, *, lease_ttl_ms: int = 0, **fields: Any) -> Any:
        """Create an execution and, with a TTL, claim it; return its id or lease."""
        lane = f"lane-{len(self.made)}"
        retries = RetryPolicy(backoff=FixedBackoff(delay_ms=HOUR_MS), retryable_categories=("odd",))
        timeouts = TimeoutPolicy(attempt_timeout_ms=HOUR_MS, execution_deadline_ms=HOUR_MS)
        fields = {"tags": {"a.b": "c"}, "namespace": "default", "lane": lane, **fields}
        created = await self.call(
            "execution.create",
            kind="k",
            policy=policy(retry_policy=retries, timeout_policy=timeouts, max_reclaim_count=3),
            **fields,
        )
        lease: Lease | None = None
        if lease_ttl_ms:
            worker = {"worker_id": "w", "worker_instance": "w-1", "claim_id": mint_uuid()}
            claimed = await self.call("lease.claim", lanes=(lane,), lease_ttl_ms=lease_ttl_ms, **worker)
            (lease,) = claimed.leases
        self.made.append(Made(created.execution_id, lane, lease, fields["namespace"]))
        return lease or created.execution_id

    async def fill(self) -> None:
        call, create = self.call, self.create
        worker = {"worker_id": "w", "worker_instance": "w-1"}
        defaults = (KindDefaults(kind="k", priority=3),)  # pyright: ignore[reportArgumentType]
        await call("worker.register", **worker, lanes=("default",), kinds=("k",), defaults=defaults)
        await call("worker.register", worker_id="v", worker_instance="v-1", lanes=("default",), kinds=())
        for size in (1, 20_000):
            held = await create(lease_ttl_ms=HOUR_MS, input=Payload(b"x" * size))
            await call("execution.progress", held, percent=12.5, message="so far")
        for mode in FrameMode:
            ttl = {"ttl_ms": HOUR_MS} if mode is FrameMode.BEST_EFFORT else {}
            frames = [frame(at, b'{"a":1}', mode=mode, **ttl) for at in (1, 2)]
            await call("stream.append", await create(lease_ttl_ms=HOUR_MS), frames=tuple(frames))
        for verb, fields in (
            ("complete", {"result": Payload(b"1")}),
            ("complete", {"result": Payload(b"r" * 20_000)}),
            ("complete", {}),
            ("fail", {"failure_class": FailureClass.PERMANENT}),
            ("fail", {}),
            ("cancel", {"reason": "because"}),
            ("delay", {"delay_until_ms": 4_000_000_000_000}),
            ("wait_children", {}),
        ):
            await call(f"execution.{verb}", await create(lease_ttl_ms=HOUR_MS), **fields)
        await call("lease.revoke", (await create(lease_ttl_ms=HOUR_MS)).execution_id, reason="because")
        await create(lease_ttl_ms=10)
        await create()
        await create(input=Payload(b"x" * 20_000), namespace="other")
        await create(idempotency_key="key")
        await create(delay_until_ms=4_000_000_000_000)
        await call("execution.block", await create(), reason="paused_by_operator", detail="why")
        await call("lease.grant", await create(), **worker, grant_ttl_ms=60_000)
        replayed = await create(lease_ttl_ms=HOUR_MS)
        await call("execution.complete", replayed)
        await call("execution.replay", replayed.execution_id, actor="me")
        await call("lane.set_state", lane="paused", state=LaneState.PAUSED)
        await call("lane.set_state", lane="closed", state=LaneState.DISABLED)
