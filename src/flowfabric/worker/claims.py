"""The imperative surface: claim a task, hold it, end it. What the decorators and the `Worker` do by themselves.

`WorkerClient` counts what it holds and renews it in the background; a `ClaimedTask` is one lease. A call that ends the
task may be made again after a transport error: it carries the same fence, so the first answer is given again, and the
lease is renewed until one of them got through.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final

from flowfabric.client.durations import Duration, milliseconds
from flowfabric.contract import ids, limits
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import FlowFabricError, Misuse, Refused, Unavailable, WorkerAtCapacity
from flowfabric.contract.execution import (
    ExecutionCancel,
    ExecutionCancelled,
    ExecutionComplete,
    ExecutionCompleted,
    ExecutionDelay,
    ExecutionFail,
    ExecutionFailed,
    ExecutionPaused,
    ExecutionProgress,
    ExecutionWaitChildren,
    RetryScheduled,
)
from flowfabric.contract.ids import (
    AttemptId,
    ClaimId,
    ExecutionId,
    Kind,
    Lane,
    LeaseId,
    Namespace,
    WorkerId,
    WorkerInstance,
)
from flowfabric.contract.lease import (
    Lease,
    LeaseClaim,
    LeaseClaimGranted,
    LeaseGrant,
    LeaseGranted,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseRenewed,
    ReclaimCapExceeded,
)
from flowfabric.contract.payloads import JSON_CONTENT_TYPE, Payload
from flowfabric.contract.states import FailureClass, FrameMode, GrantPurpose
from flowfabric.contract.stream import (
    FrameInput,
    FramePage,
    FramesAppended,
    StreamAppend,
    StreamRead,
    StreamTail,
)
from flowfabric.contract.worker import WorkerMarkDead, WorkerRegister
from flowfabric.telemetry import log, metrics
from flowfabric.worker.heartbeat import LeaseKeeper, StoresFactory
from flowfabric.worker.identity import default_instance
from flowfabric.worker.leases import HeldLease, is_lost, loss_reason
from flowfabric.worker.settling import persist

_LOG: Final = log.get_logger("flowfabric.worker")


class WorkerClient:
    """Claims tasks for one worker instance and keeps their leases alive. Use it as an async context manager."""

    def __init__(
        self,
        stores: Stores,
        *,
        worker_id: str,
        instance: str | None = None,
        namespace: str = ids.DEFAULT_NAMESPACE,
        lanes: Iterable[str] = (ids.DEFAULT_LANE,),
        kinds: Iterable[str] = (),
        capabilities: Iterable[str] = (),
        max_concurrent: int = 1,
        lease_ttl: Duration = limits.LEASE_TTL_DEFAULT_MS / 1_000,
        stores_factory: StoresFactory | None = None,
    ) -> None:
        """Describe the worker; entering the context registers it.

        `kinds`: what it handles, empty for anything. `max_concurrent`: tasks held at once. `stores_factory` opens the
        renewal thread's own stores: needed when `stores` belong to one event loop, as an HTTP client does.

        Raises: Misuse when an option is out of range.
        """
        if max_concurrent < 1:
            raise Misuse("max_concurrent must be at least 1")
        self._stores = stores
        self._factory = stores_factory
        self._lease_ttl_ms = milliseconds(lease_ttl, "lease_ttl")
        self._max_concurrent = max_concurrent
        self._held = 0
        self._keeper: LeaseKeeper | None = None
        self._open_claim: ClaimId | None = None
        self._grant_ids: dict[tuple[str, int], tuple[LeaseId, AttemptId]] = {}
        self.registration: Final = WorkerRegister(
            worker_id=WorkerId(worker_id),
            worker_instance=WorkerInstance(instance or default_instance(worker_id)),
            namespace=Namespace(namespace),
            lanes=tuple(Lane(lane) for lane in lanes),
            kinds=tuple(Kind(kind) for kind in kinds),
            capabilities=tuple(sorted(set(capabilities))),
        )
        try:
            self.registration.check()
        except Refused as error:
            raise Misuse(f"worker: {error.message}", **error.details) from error

    async def __aenter__(self) -> WorkerClient:
        await self._stores.worker.register(self.registration)
        self._keeper = LeaseKeeper(
            self._stores, self._factory, lease_ttl_ms=self._lease_ttl_ms, registration=self.registration
        )
        self._keeper.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._keeper is not None:
            await self._keeper.stop()
        try:
            await self._stores.worker.mark_dead(
                WorkerMarkDead(
                    worker_instance=self.registration.worker_instance,
                    namespace=self.registration.namespace,
                    reason="stopped",
                )
            )
        except FlowFabricError as refusal:
            _LOG.info("worker_left_silently", error=str(refusal))

    @property
    def held(self) -> int:
        """How many tasks it holds."""
        return self._held

    async def claim_next(self, *, wait_ms: int = 0) -> ClaimedTask | None:
        """Claim the best eligible task, waiting up to `wait_ms` for one; None when there is none.

        After a transport error the next call asks again with the same claim id and gets what was granted then.

        Raises: WorkerAtCapacity when as many tasks are held as may be; nothing was asked for then.
        """
        keeper = self._admit()
        claim_id = self._open_claim or ClaimId(ids.mint_uuid())
        self._open_claim = claim_id
        registration = self.registration
        claimed = await self._stores.lease.claim(
            LeaseClaim(
                worker_id=registration.worker_id,
                worker_instance=registration.worker_instance,
                namespace=registration.namespace,
                lanes=registration.lanes,
                kinds=registration.kinds,
                capabilities=registration.capabilities,
                lease_ttl_ms=self._lease_ttl_ms,
                wait_ms=wait_ms,
                claim_id=claim_id,
            )
        )
        self._open_claim = None
        return self._hold(claimed.leases[0], keeper) if claimed.leases else None

    async def claim_via_grant(
        self, lane: str, *, grant_ttl_ms: int = limits.GRANT_TTL_DEFAULT_MS
    ) -> ClaimedTask | None:
        """Ask for a grant in this lane and use it; None when nothing there may run here.

        Raises: WorkerAtCapacity before anything is asked for.
        """
        self._admit()
        registration = self.registration
        granted = await self._stores.lease.grant(
            LeaseGrant(
                worker_id=registration.worker_id,
                worker_instance=registration.worker_instance,
                namespace=registration.namespace,
                lanes=(Lane(lane),),
                capabilities=registration.capabilities,
                grant_ttl_ms=grant_ttl_ms,
            )
        )
        return await self.claim_from_grant(granted) if isinstance(granted, LeaseGranted) else None

    async def claim_from_grant(
        self, grant: LeaseGranted, *, purpose: GrantPurpose | None = None
    ) -> ClaimedTask:
        """Use a grant that a scheduler issued to this worker, for whatever it was issued: claim, resume or reclaim.

        Calling it again with the same grant after a transport error gets the same lease.

        Raises: WorkerAtCapacity before the grant is touched, so that it stays good; Misuse when the execution was
        taken over too often; what `lease.claim_granted` refuses with.
        """
        keeper = self._admit()
        key = (grant.execution_id, grant.expires_at_ms)
        lease_id, attempt_id = self._grant_ids.setdefault(
            key, (LeaseId(ids.mint_uuid()), AttemptId(ids.mint_uuid()))
        )
        try:
            taken = await self._stores.lease.claim_granted(
                LeaseClaimGranted(
                    execution_id=grant.execution_id,
                    worker_id=self.registration.worker_id,
                    worker_instance=self.registration.worker_instance,
                    purpose=purpose,
                    lease_ttl_ms=self._lease_ttl_ms,
                    lease_id=lease_id,
                    attempt_id=attempt_id,
                )
            )
        except Unavailable:
            raise
        except FlowFabricError:
            del self._grant_ids[key]
            raise
        del self._grant_ids[key]
        if isinstance(taken, ReclaimCapExceeded):
            raise Misuse(
                f"the execution was taken over {taken.reclaim_count} times and has failed",
                execution_id=taken.execution_id,
            )
        return self._hold(taken.lease, keeper)

    def _admit(self) -> LeaseKeeper:
        if self._keeper is None:
            raise Misuse("enter the client first: async with WorkerClient(...) as worker:")
        if self._held >= self._max_concurrent:
            metrics.worker_at_capacity()
            raise WorkerAtCapacity(
                f"{self._held} of {self._max_concurrent} tasks are held: end one first", held=self._held
            )
        return self._keeper

    def _hold(self, lease: Lease, keeper: LeaseKeeper) -> ClaimedTask:
        self._held += 1
        return ClaimedTask(self._stores, lease, keeper, self._let_go)

    def _let_go(self) -> None:
        self._held -= 1


class ClaimedTask:
    """One claimed task: what to do, and the calls that its lease allows."""

    def __init__(self, stores: Stores, lease: Lease, keeper: LeaseKeeper, let_go: Any) -> None:
        loop = asyncio.get_running_loop()
        self.lost: Final = asyncio.Event()
        """Set when the lease is gone: stop working, nothing more can be reported."""

        def lost(_reason: str) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.lost.set)

        self._stores = stores
        self._keeper = keeper
        self._let_go = let_go
        self._ended = False
        self._sequence = lease.frame_sequence
        self._append = asyncio.Lock()
        self._held = HeldLease(lease, lost, time.monotonic())
        self.lease: Final = lease
        keeper.hold(self._held)

    @property
    def execution_id(self) -> ExecutionId:
        """The execution's id."""
        return self.lease.execution_id

    @property
    def execution_kind(self) -> Kind:
        """What kind of work it is."""
        return self.lease.kind

    @property
    def input_payload(self) -> Payload:
        """The execution's input."""
        return self.lease.input

    @property
    def tags(self) -> dict[str, str]:
        """The execution's tags."""
        return dict(self.lease.tags)

    @property
    def lane(self) -> Lane:
        """The lane it was claimed from."""
        return self.lease.lane

    @property
    def attempt_index(self) -> int:
        """Which attempt this is, from 0."""
        return self.lease.attempt_index

    @property
    def attempt_id(self) -> AttemptId:
        """The attempt's id."""
        return self.lease.attempt_id

    @property
    def lease_id(self) -> LeaseId:
        """The lease's id."""
        return self.lease.lease_id

    @property
    def lease_epoch(self) -> int:
        """The lease's epoch: grows whenever the execution changes hands."""
        return self.lease.lease_epoch

    @property
    def is_lease_healthy(self) -> bool:
        """Whether the lease is held and fewer than three renewals in a row failed."""
        return self._held.is_healthy

    @property
    def consecutive_renewal_failures(self) -> int:
        """How many renewals in a row did not get through."""
        return self._held.failures

    # Ending the task ----------------------------------------------------------------------------------------------

    async def complete(self, result: Payload | bytes | None = None) -> ExecutionCompleted:
        """End with success. Bytes are taken as JSON."""
        payload = Payload(result, JSON_CONTENT_TYPE) if isinstance(result, bytes) else result
        command = ExecutionComplete(execution_id=self.execution_id, fence=self.lease.fence, result=payload)
        return await self._end(self._stores.execution.complete, command)

    async def fail(
        self,
        reason: str,
        category: str = "handler_error",
        *,
        failure_class: FailureClass = FailureClass.TRANSIENT,
    ) -> RetryScheduled | ExecutionFailed:
        """Report a failure; the retry policy decides whether another attempt follows."""
        command = ExecutionFail(
            execution_id=self.execution_id,
            fence=self.lease.fence,
            failure_class=failure_class,
            category=category,
            message=reason,
        )
        return await self._end(self._stores.execution.fail, command)

    async def cancel(self, reason: str = "") -> ExecutionCancelled:
        """Cancel the execution."""
        command = ExecutionCancel(execution_id=self.execution_id, fence=self.lease.fence, reason=reason)
        return await self._end(self._stores.execution.cancel, command)

    async def delay(self, until_ms: int) -> ExecutionPaused:
        """Give the lease back; the same attempt continues at this instant of the store's clock."""
        command = ExecutionDelay(
            execution_id=self.execution_id, fence=self.lease.fence, delay_until_ms=until_ms
        )
        return await self._end(self._stores.execution.delay, command)

    async def wait_children(self) -> ExecutionPaused:
        """Give the lease back until all it depends on is done."""
        command = ExecutionWaitChildren(execution_id=self.execution_id, fence=self.lease.fence)
        return await self._end(self._stores.execution.wait_children, command)

    async def release(self, reason: str = "released") -> LeaseReleased:
        """Hand the execution back for another attempt at once."""
        command = LeaseRelease(execution_id=self.execution_id, fence=self.lease.fence, reason=reason)
        return await self._end(self._stores.lease.release, command)

    async def _end(self, call: Any, command: Any) -> Any:
        try:
            reply = await call(command)
        except Unavailable:
            raise  # it may or may not have happened: keep renewing, so that calling again can find out
        except Refused as error:
            if is_lost(error):
                self._close()
                self._held.lose(loss_reason(error))
            raise
        self._close()
        return reply

    def _close(self) -> None:
        if not self._ended:
            self._ended = True
            self._keeper.let_go(self._held)
            self._let_go()

    def abandon(self) -> None:
        """Stop renewing without reporting: the lease runs out and another worker takes over."""
        if not self._ended:
            _LOG.warning("task_abandoned", execution_id=self.execution_id)
        self._close()

    # While it runs ------------------------------------------------------------------------------------------------

    async def renew(self) -> LeaseRenewed:
        """Renew the lease now; it is renewed in the background anyway."""
        asked_at = time.monotonic()
        renewed = await self._stores.lease.renew(
            LeaseRenew(execution_id=self.execution_id, fence=self.lease.fence)
        )
        self._held.renewed(asked_at, renewed.lease_expires_at_ms)
        return renewed

    async def progress(self, percent: float | None = None, message: str | None = None) -> None:
        """Store how far the attempt is, 0 to 100."""
        await self._stores.execution.progress(
            ExecutionProgress(
                execution_id=self.execution_id, fence=self.lease.fence, percent=percent, message=message
            )
        )

    async def append_frame(
        self, frame_type: str, payload: Payload, *, correlation_id: str | None = None
    ) -> FramesAppended:
        """Append one durable frame and return where the stream stands."""
        return await self.append_frame_with_mode(frame_type, payload, correlation_id=correlation_id)

    async def append_frame_with_mode(
        self,
        frame_type: str,
        payload: Payload,
        *,
        mode: FrameMode = FrameMode.DURABLE,
        ttl_ms: int | None = None,
        correlation_id: str | None = None,
    ) -> FramesAppended:
        """Append one frame and return where the stream stands; lost replies are repeated while the lease may live."""
        async with self._append:
            command = StreamAppend(
                execution_id=self.execution_id,
                attempt_index=self.attempt_index,
                fence=self.lease.fence,
                frames=(
                    FrameInput(
                        sequence=self._sequence + 1,
                        payload=payload,
                        frame_type=frame_type,
                        mode=mode,
                        ttl_ms=ttl_ms,
                        correlation_id=correlation_id,
                    ),
                ),
            )
            appended = await persist(self._held, "stream.append", self._stores.stream.append, command)
            self._sequence += 1
            return appended

    async def read_stream(
        self, start: str = "start", end: str = "end", *, limit: int = limits.FRAME_READ_DEFAULT
    ) -> FramePage:
        """Read frames of this attempt between two cursors."""
        return await self._stores.stream.read(
            StreamRead(
                execution_id=self.execution_id,
                attempt_index=self.attempt_index,
                start=start,
                end=end,
                limit=limit,
            )
        )

    async def tail_stream(
        self, after: str | None = None, *, wait_ms: int = 0, limit: int = limits.FRAME_TAIL_DEFAULT
    ) -> FramePage:
        """Read this attempt's frames after a cursor, waiting for one if there is none."""
        return await self._stores.stream.tail(
            StreamTail(
                execution_id=self.execution_id,
                attempt_index=self.attempt_index,
                after=after,
                wait_ms=wait_ms,
                limit=limit,
            )
        )
