"""The worker: claims what its tasks can run, keeps its slots busy, and reports how every attempt ended.

A slot that comes free claims at once, while the report of what ran in it is still on its way: both reach the store
together. Nothing here ends on an error: an unavailable store is waited out. Leases are renewed by the keeper's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Final

from flowfabric.client.durations import Duration, milliseconds
from flowfabric.contract import ids, limits
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import FlowFabricError, Misuse, Refused, Unavailable
from flowfabric.contract.ids import Kind, Lane, Namespace, WorkerId, WorkerInstance
from flowfabric.contract.lease import Lease, LeaseClaim, LeaseRelease
from flowfabric.contract.worker import WorkerMarkDead, WorkerRegister
from flowfabric.signals import install_signals
from flowfabric.telemetry import log
from flowfabric.worker.app import AnyTask, App
from flowfabric.worker.attempt_run import AttemptRun, Clock
from flowfabric.worker.claiming import ClaimIds, claim_until_answered
from flowfabric.worker.heartbeat import BLOCKED_WARNING_S, LeaseKeeper, StoresFactory, is_embedded
from flowfabric.worker.identity import default_instance, default_worker_id
from flowfabric.worker.leases import HeldLease
from flowfabric.worker.reporting import report
from flowfabric.worker.running import (
    ATTEMPT_TIMEOUT,
    DRAINING,
    ENDED,
    EXECUTION_DEADLINE,
    RUNNING,
    Attempt,
    Ending,
    handle,
)
from flowfabric.worker.settling import pause_s, persist
from flowfabric.worker.slots import Slots
from flowfabric.worker.threads import HandlerThreads

_LOG: Final = log.get_logger("flowfabric.worker")

CONCURRENCY_DEFAULT: Final = 16
CLAIM_WAIT_MS: Final = 20_000
DRAIN_DEFAULT_S: Final = 30.0
CANCEL_GRACE_S: Final = 5.0
"""How long a handler may take to clean up once it was cancelled at the end of a drain."""
SETTLE_GRACE_S: Final = 10.0
CLAIMERS: Final = 2
"""Claims under way at once: one may wait for work with few slots while others come free."""


class Worker:
    """Runs the tasks of an app against a store or a server, in the event loop it is started in."""

    def __init__(  # noqa: PLR0913 -- options, each given by name
        self,
        stores: Stores,
        tasks: App | Iterable[AnyTask],
        *,
        worker_id: str | None = None,
        instance: str | None = None,
        namespace: str = ids.DEFAULT_NAMESPACE,
        lanes: Iterable[str] | None = None,
        concurrency: int = CONCURRENCY_DEFAULT,
        capabilities: Iterable[str] = (),
        lease_ttl: Duration = limits.LEASE_TTL_DEFAULT_MS / 1_000,
        drain_timeout: Duration = DRAIN_DEFAULT_S,
        liveness_ttl: Duration = limits.LIVENESS_TTL_DEFAULT_MS / 1_000,
        claim_wait_ms: int = CLAIM_WAIT_MS,
        blocked_warning: Duration = BLOCKED_WARNING_S,
        stores_factory: StoresFactory | None = None,
    ) -> None:
        """Prepare a worker; `start` or `run` registers it and begins to claim.

        `concurrency`: handlers running at once. `lanes`: where it looks for work, else its tasks' lanes and `default`.
        `capabilities`: what it offers to tasks that require them. `lease_ttl`: how long the worker may be out of
        reach before another takes over. `drain_timeout`: how long running handlers may take to finish when it stops.
        `stores_factory` opens the renewal thread's own stores: needed when `stores` belong to one event loop, as an
        HTTP client does.

        Raises: Misuse when an option is out of range or two tasks have one name.
        """
        by_name: dict[str, AnyTask] = {}
        for task in tasks:
            if by_name.setdefault(task.name, task) is not task:
                raise Misuse(f"two tasks are named {task.name}: give one of them another name=")
        if not by_name:
            raise Misuse("a worker needs at least one task: decorate a function with @app.task")
        if not 1 <= concurrency <= 10_000:
            raise Misuse(f"concurrency must be 1 to 10000, not {concurrency}")
        name = tasks.name if isinstance(tasks, App) else "worker"
        chosen_id = worker_id or default_worker_id(name)
        chosen_lanes = tuple(lanes) if lanes is not None else ()
        if not chosen_lanes:
            chosen_lanes = tuple(dict.fromkeys([*(task.lane for task in by_name.values()), ids.DEFAULT_LANE]))
        self._stores = stores
        self._factory = stores_factory
        self._clock: Clock | None = getattr(stores, "now_ms", None) if is_embedded(stores) else None
        self._tasks = by_name
        self._lease_ttl_ms = milliseconds(lease_ttl, "lease_ttl")
        self._drain_s = milliseconds(drain_timeout, "drain_timeout") / 1_000
        self._blocked_warning_s = milliseconds(blocked_warning, "blocked_warning") / 1_000
        self.registration: Final = WorkerRegister(
            worker_id=WorkerId(chosen_id),
            worker_instance=WorkerInstance(instance or default_instance(chosen_id)),
            namespace=Namespace(namespace),
            lanes=tuple(Lane(lane) for lane in chosen_lanes),
            kinds=tuple(Kind(kind) for kind in by_name),
            capabilities=tuple(sorted(set(capabilities))),
            liveness_ttl_ms=milliseconds(liveness_ttl, "liveness_ttl"),
            defaults=tuple(task.defaults for task in by_name.values()),
        )
        self._claim = LeaseClaim(
            worker_id=self.registration.worker_id,
            worker_instance=self.registration.worker_instance,
            namespace=self.registration.namespace,
            lanes=self.registration.lanes,
            kinds=self.registration.kinds,
            capabilities=self.registration.capabilities,
            lease_ttl_ms=self._lease_ttl_ms,
            wait_ms=claim_wait_ms,
        )
        for command in (self.registration, self._claim):
            try:
                command.check()
            except Refused as error:
                raise Misuse(f"worker: {error.message}", **error.details) from error
        self._slots = Slots(
            concurrency,
            {task.name: task.max_concurrency for task in by_name.values() if task.max_concurrency},
        )
        self._threads = HandlerThreads(concurrency, "flowfabric-task")
        self._claim_ids = ClaimIds()
        self._attempts: set[Attempt] = set()
        self._reports: set[asyncio.Task[None]] = set()
        self._claimers: list[asyncio.Task[None]] = []
        self._keeper: LeaseKeeper | None = None
        self._draining = False
        self._stop_asked: asyncio.Event | None = None
        self._hurry: asyncio.Event | None = None
        self._stopped: asyncio.Future[None] | None = None
        self.attempts_ended = 0
        """How many attempts came to an end here, however they ended."""

    @property
    def stores(self) -> Stores:
        """What it works against; closing that is its owner's business."""
        return self._stores

    @property
    def running(self) -> int:
        """How many handlers are running now."""
        return self._slots.running

    # Life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Register and begin to claim. An unavailable store is waited out.

        Raises: what the store refuses the registration with.
        """
        if self._keeper is not None:
            raise Misuse("this worker was started before: make another")
        self._stop_asked = asyncio.Event()
        self._hurry = asyncio.Event()
        self._keeper = LeaseKeeper(
            self._stores,
            self._factory,
            lease_ttl_ms=self._lease_ttl_ms,
            registration=self.registration,
            blocked_warning_s=self._blocked_warning_s,
        )
        if not await self._register_unless_stopped(self._stop_asked):
            return
        self._keeper.start()
        loop = asyncio.get_running_loop()
        self._claimers = [
            loop.create_task(self._claim_forever(number), name=f"flowfabric-claim-{number}")
            for number in range(CLAIMERS)
        ]
        _LOG.info(
            "worker_started",
            worker_instance=self.registration.worker_instance,
            tasks=list(self._tasks),
            lanes=list(self.registration.lanes),
            concurrency=self._slots.size,
        )

    async def run(self, *, handle_signals: bool = False) -> None:
        """Start, work until `request_stop` (or SIGTERM, SIGINT), then drain.

        With `handle_signals` the first signal drains and a second one cancels what still runs at once.
        """
        asked = self._stop_asked
        restore = install_signals(self.request_stop) if handle_signals else None
        try:
            if asked is None:
                await self.start()
            assert self._stop_asked is not None
            await self._stop_asked.wait()
        finally:
            await self.stop()
            if restore is not None:
                restore()

    def request_stop(self) -> None:
        """Ask for a drain; asked again, running handlers are cancelled at once. For signal handlers."""
        if self._stop_asked is None or self._hurry is None:
            return
        if self._stop_asked.is_set():
            self._hurry.set()
        self._stop_asked.set()

    async def stop(self, drain_timeout: Duration | None = None) -> None:
        """Stop claiming, let running handlers finish within the drain timeout, hand the others back."""
        if self._keeper is None:
            return
        if self._stopped is not None:
            await asyncio.shield(self._stopped)
            return
        self._stopped = asyncio.ensure_future(
            self._stop(self._drain_s if drain_timeout is None else milliseconds(drain_timeout, "") / 1_000)
        )
        await asyncio.shield(self._stopped)

    async def _register_unless_stopped(self, stop_asked: asyncio.Event) -> bool:
        """Register; say whether that was done before it was asked to stop."""
        registering = asyncio.ensure_future(self._register())
        asked = asyncio.ensure_future(stop_asked.wait())
        try:
            await asyncio.wait((registering, asked), return_when=asyncio.FIRST_COMPLETED)
            if registering.done():
                await registering
            return registering.done()
        finally:
            for task in (registering, asked):
                task.cancel()
            await asyncio.gather(registering, asked, return_exceptions=True)

    async def _register(self) -> None:
        tries = 0
        while True:
            try:
                await self._stores.worker.register(self.registration)
            except Unavailable as error:
                if tries == 0:
                    _LOG.warning("worker_waits_for_store", error=str(error))
            else:
                return
            await asyncio.sleep(pause_s(tries))
            tries += 1

    async def _stop(self, drain_s: float) -> None:
        assert self._keeper is not None
        assert self._hurry is not None
        assert self._stop_asked is not None
        self._draining = True
        self._stop_asked.set()
        for claimer in self._claimers:
            claimer.cancel()
        await asyncio.gather(*self._claimers, return_exceptions=True)
        if self._slots.running:
            _LOG.info("worker_drains", running=self._slots.running, within_s=drain_s)
        await self._slots.wait_idle(drain_s, self._hurry)
        for attempt in tuple(self._attempts):
            attempt.cancel(DRAINING)
        await self._slots.wait_idle(CANCEL_GRACE_S, None)
        for attempt in tuple(self._attempts):
            if attempt.phase is not ENDED and not attempt.reported:
                attempt.reported = True
                _LOG.warning("attempt_abandoned", execution_id=attempt.run.lease.execution_id)
                self._report(
                    attempt,
                    LeaseRelease(
                        execution_id=attempt.run.lease.execution_id,
                        fence=attempt.run.lease.fence,
                        reason=DRAINING,
                    ),
                )
        await self._settle_all()
        await self._keeper.stop()
        self._threads.close()
        await self._leave()
        _LOG.info("worker_stopped", attempts_ended=self.attempts_ended)

    async def _settle_all(self) -> None:
        waited = {attempt.runner for attempt in self._attempts if attempt.phase is ENDED and attempt.runner}
        waiting: set[asyncio.Task[None]] = waited | self._reports
        if waiting:
            await asyncio.wait(waiting, timeout=SETTLE_GRACE_S)

    async def _leave(self) -> None:
        """Leave the registry, so that nobody counts on this instance; it would lapse by itself."""
        try:
            async with asyncio.timeout(SETTLE_GRACE_S / 2):
                await self._stores.worker.mark_dead(
                    WorkerMarkDead(
                        worker_instance=self.registration.worker_instance,
                        namespace=self.registration.namespace,
                        reason="stopped",
                    )
                )
        except (FlowFabricError, TimeoutError) as error:
            _LOG.info("worker_left_silently", error=str(error))

    # Claiming -----------------------------------------------------------------------------------------------------

    async def _claim_forever(self, number: int) -> None:
        while not self._draining:
            try:
                reservation = await self._slots.reserve(number, self._claim.kinds)
            except asyncio.CancelledError:
                return
            template = self._claim
            command = LeaseClaim(
                worker_id=template.worker_id,
                worker_instance=template.worker_instance,
                namespace=template.namespace,
                lanes=template.lanes,
                kinds=reservation.kinds,
                capabilities=template.capabilities,
                max_tasks=reservation.size,
                lease_ttl_ms=template.lease_ttl_ms,
                wait_ms=template.wait_ms,
                claim_id=self._claim_ids.mint(),
            )
            claimed = None
            try:
                claimed = await claim_until_answered(self._stores, command)
            except Exception:  # a claimer that ends would idle its slots for good
                _LOG.exception("claim_crashed")
                await asyncio.sleep(1.0)
            finally:
                self._slots.give_back(reservation)
            if claimed is None:
                continue
            for lease in claimed.leases:
                if self._draining or claimed.was_cancelled:
                    await self._hand_back(lease)
                else:
                    self._begin(lease, claimed.obtained_at)
            if claimed.was_cancelled and not self._slots.take_restart(number):
                return

    async def _hand_back(self, lease: Lease) -> None:
        held = HeldLease(lease, lambda _: None, time.monotonic())
        command = LeaseRelease(execution_id=lease.execution_id, fence=lease.fence, reason=DRAINING)
        try:
            await persist(held, "lease.release", self._stores.lease.release, command)
        except FlowFabricError as error:
            _LOG.warning("release_failed", execution_id=lease.execution_id, error=str(error))

    # Attempts -----------------------------------------------------------------------------------------------------

    def _begin(self, lease: Lease, obtained_at: float) -> None:
        loop = asyncio.get_running_loop()
        task = self._tasks.get(lease.kind)
        if task is None or self._keeper is None:
            raise AssertionError(f"claimed the kind {lease.kind}, which this worker does not handle")
        attempt: Attempt

        def lost(reason: str) -> None:
            try:
                loop.call_soon_threadsafe(attempt.cancel, reason)
            except RuntimeError:  # the loop is closed: there is nobody to tell
                return

        held = HeldLease(lease, lost, obtained_at)
        attempt = Attempt(task, AttemptRun(self._stores, held, loop, self._clock))
        if lease.attempt_timeout_at_ms is not None or lease.deadline_at_ms is not None:
            self._set_timers(attempt, loop)
        self._keeper.hold(held)
        self._attempts.add(attempt)
        self._slots.begin(lease.kind)
        attempt.runner = loop.create_task(
            self._run(attempt), name=f"flowfabric {lease.kind} {lease.execution_id}"
        )

    def _set_timers(self, attempt: Attempt, loop: asyncio.AbstractEventLoop) -> None:
        lease = attempt.run.lease
        obtained_ms = lease.lease_expires_at_ms - lease.lease_ttl_ms
        attempt.timers = []
        for at_ms, reason in (
            (lease.attempt_timeout_at_ms, ATTEMPT_TIMEOUT),
            (lease.deadline_at_ms, EXECUTION_DEADLINE),
        ):
            if at_ms is not None:
                after_s = max(0, at_ms - obtained_ms) / 1_000
                attempt.timers.append(loop.call_later(after_s, self._time_out, attempt, reason))

    def _time_out(self, attempt: Attempt, reason: str) -> None:
        attempt.cancel(reason)
        is_stuck_in_thread = attempt.phase is RUNNING and not attempt.task.signature.is_async
        if reason == ATTEMPT_TIMEOUT and is_stuck_in_thread and not attempt.reported:
            attempt.reported = True
            self._report(attempt, attempt.report_timeout())

    def _report(self, attempt: Attempt, ending: Ending) -> None:
        """Report the end of an attempt whose handler has not come to one."""
        reporting = asyncio.get_running_loop().create_task(self._finish(attempt, ending))
        self._reports.add(reporting)
        reporting.add_done_callback(self._reports.discard)

    async def _run(self, attempt: Attempt) -> None:
        kind = attempt.run.lease.kind
        ending: Ending | None = None
        try:
            ending = await handle(attempt, self._threads)
        finally:
            attempt.phase = ENDED
            self._slots.end(kind)
            if ending is None or attempt.reported:
                self._forget(attempt)
        if ending is not None and not attempt.reported:
            await self._finish(attempt, ending)
        elif attempt.run.frames is not None and not attempt.reported:
            await attempt.run.frames.close(flush=False)

    async def _finish(self, attempt: Attempt, ending: Ending) -> None:
        try:
            await report(self._stores, attempt, ending)
        finally:
            self._forget(attempt)

    def _forget(self, attempt: Attempt) -> None:
        attempt.run.ended = True
        if attempt in self._attempts:
            self._attempts.discard(attempt)
            self.attempts_ended += 1
            self._slots.close()
        if self._keeper is not None:
            self._keeper.let_go(attempt.run.held)
