"""Keeping leases alive, in a thread with an event loop of its own, so that a blocked worker loop loses nothing.

Every held lease is renewed within each third of its life. A refusal that says the lease is gone reaches its holder at
once. The thread watches whether the worker's loop makes progress: it warns, naming the task, and stops renewing a
lease when the loop has been stuck for longer than the attempt may take (else ten lives of the lease). While nothing is
renewed it sends the worker's heartbeat; both register the worker again when the registry has forgotten it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Final, TypeGuard

from flowfabric.contract.backend import Backend, Stores
from flowfabric.contract.errors import FlowFabricError, Misuse, Refused, WorkerNotRegistered
from flowfabric.contract.lease import LeaseRenew
from flowfabric.contract.worker import WorkerHeartbeat, WorkerRegister
from flowfabric.telemetry import log, metrics
from flowfabric.worker.leases import RENEWAL_PART, UNHEALTHY_AFTER, HeldLease, is_lost, loss_reason
from flowfabric.worker.settling import pause_s

_LOG: Final = log.get_logger("flowfabric.worker")

StoresFactory = Callable[[], Awaitable[Stores]]
"""Opens the stores for the renewal thread; called there, and what it returns is closed there."""

TICK_MAX_S: Final = 1.0
TICK_MIN_S: Final = 0.002
TICKS_PER_LIFE: Final = 12
CALL_DEADLINE_MAX_S: Final = 10.0
CALL_DEADLINE_MIN_S: Final = 0.25
CLOSE_DEADLINE_S: Final = 5.0
BLOCKED_WARNING_S: Final = 1.0


def is_embedded(stores: Stores) -> TypeGuard[Backend]:
    """Say whether these stores are a store in this process: it has a clock to ask and can be had for another loop."""
    return hasattr(stores, "timers")


class LeaseKeeper:
    """Renews the leases that one worker holds."""

    def __init__(
        self,
        stores: Stores,
        stores_factory: StoresFactory | None,
        *,
        lease_ttl_ms: int,
        registration: WorkerRegister | None,
        blocked_warning_s: float = BLOCKED_WARNING_S,
    ) -> None:
        """Prepare a thread for the running event loop.

        Without `stores_factory` the thread asks `stores` for its own, which then must be an embedded store.

        Raises: Misuse when it is not.
        """
        if stores_factory is None and is_embedded(stores):
            stores_factory = stores.another
        if stores_factory is None:
            raise Misuse(
                "these stores belong to one event loop, and leases are renewed in another: pass stores_factory=, "
                "which opens the same again, for example `async def factory(): return HttpStores(url, token=token)`"
            )
        self._shared = stores
        self._factory = stores_factory
        self._ttl_s = lease_ttl_ms / 1_000
        self._tick_s = min(TICK_MAX_S, max(TICK_MIN_S, self._ttl_s / TICKS_PER_LIFE))
        self._registration = registration
        self._blocked_warning_s = blocked_warning_s
        self._watched = asyncio.get_running_loop()
        self._watched_thread = threading.get_ident()
        self._held: dict[str, HeldLease] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._contact_at = time.monotonic()
        self._heart_beating = False
        self._progress_at = time.monotonic()
        self._pinged = False
        self._warned = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._stop_asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flowfabric-leases", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def hold(self, held: HeldLease) -> None:
        """Renew this lease from now on."""
        self._held[held.lease.lease_id] = held

    def let_go(self, held: HeldLease) -> None:
        """Stop renewing this lease."""
        self._held.pop(held.lease.lease_id, None)

    async def stop(self) -> None:
        """End the thread and close what it opened."""
        self._stop_asked.set()
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            try:
                loop.call_soon_threadsafe(stopping.set)
            except RuntimeError:  # the thread has ended by itself
                return
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, CLOSE_DEADLINE_S + CALL_DEADLINE_MAX_S)

    # In the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except Exception:  # the thread's last words; leases then run out, which is safe
            _LOG.exception("lease_renewal_ended")

    async def _keep(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        if self._stop_asked.is_set():
            return
        stores = await self._open()
        if stores is None:
            return
        try:
            while not self._stopping.is_set():
                self._tick(stores)
                await _wait_for(self._stopping, self._tick_s)
        finally:
            for call in tuple(self._calls):
                call.cancel()
            if self._calls:
                await asyncio.wait(tuple(self._calls), timeout=CLOSE_DEADLINE_S)
            if stores is not self._shared:
                async with asyncio.timeout(CLOSE_DEADLINE_S):
                    await stores.close()

    async def _open(self) -> Stores | None:
        stopping = self._stopping
        tries = 0
        while stopping is not None and not stopping.is_set():
            try:
                return await self._factory()
            except FlowFabricError as error:
                if tries == 0:
                    _LOG.warning("lease_renewal_waits_for_store", error=str(error))
                await _wait_for(stopping, pause_s(tries))
                tries += 1
        return None

    def _tick(self, stores: Stores) -> None:
        now = time.monotonic()
        self._watch(now)
        # A renewal is due early enough that, with the time between ticks, a third of the life is never exceeded.
        for held in tuple(self._held.values()):
            if held.lost_reason is not None or held.renewing:
                continue
            due_after = held.ttl_s * (1 / RENEWAL_PART - 1 / TICKS_PER_LIFE)
            pause = due_after if held.failures == 0 else min(due_after, pause_s(held.failures))
            if now - held.renewed_at >= due_after and now - held.asked_at >= pause:
                if now - self._progress_at > held.stall_limit_s:
                    self._give_up(held)
                    continue
                held.renewing = True
                held.asked_at = now
                self._call(self._renew(stores, held))
        registration = self._registration
        if registration is None or self._heart_beating:
            return
        if now - self._contact_at >= registration.liveness_ttl_ms / 3_000:
            self._heart_beating = True
            self._call(self._beat(stores, registration))

    def _call(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _renew(self, stores: Stores, held: HeldLease) -> None:
        lease = held.lease
        asked_at = held.asked_at
        deadline_s = max(CALL_DEADLINE_MIN_S, min(CALL_DEADLINE_MAX_S, held.ttl_s / RENEWAL_PART))
        try:
            async with asyncio.timeout(deadline_s):
                renewed = await stores.lease.renew(
                    LeaseRenew(
                        execution_id=lease.execution_id, fence=lease.fence, lease_ttl_ms=lease.lease_ttl_ms
                    )
                )
        except Refused as error:
            metrics.lease_renewed("error")
            if is_lost(error):
                self._lost(held, loss_reason(error))
            else:
                self._failed(held, str(error))
        except Exception as error:  # the thread must outlive whatever a store raises
            metrics.lease_renewed("error")
            self._failed(held, str(error) or "no answer in time")
        else:
            held.renewed(asked_at, renewed.lease_expires_at_ms)
            self._contact_at = time.monotonic()
            metrics.lease_renewed("ok")
        finally:
            held.renewing = False

    def _failed(self, held: HeldLease, error: str) -> None:
        held.failures += 1
        if held.failures == UNHEALTHY_AFTER:
            _LOG.warning(
                "lease_unhealthy", execution_id=held.lease.execution_id, failures=held.failures, error=error
            )
        if time.monotonic() > held.expires_at:
            self._lost(held, "lease_expired")

    def _lost(self, held: HeldLease, reason: str) -> None:
        if self._held.pop(held.lease.lease_id, None) is None:
            return  # its holder let go of it while the renewal was under way
        held.lose(reason)

    def _give_up(self, held: HeldLease) -> None:
        _LOG.error(
            "lease_given_up",
            execution_id=held.lease.execution_id,
            kind=held.lease.kind,
            blocked_s=round(time.monotonic() - self._progress_at, 1),
            reason="the event loop has been blocked for too long",
        )
        self._lost(held, "event_loop_blocked")

    async def _beat(self, stores: Stores, registration: WorkerRegister) -> None:
        try:
            async with asyncio.timeout(CALL_DEADLINE_MAX_S):
                try:
                    await stores.worker.heartbeat(
                        WorkerHeartbeat(
                            worker_instance=registration.worker_instance, namespace=registration.namespace
                        )
                    )
                except WorkerNotRegistered:
                    await stores.worker.register(registration)
                    _LOG.info("worker_registered_again", worker_instance=registration.worker_instance)
            self._contact_at = time.monotonic()
        except Exception as error:  # the thread must outlive whatever a store raises
            _LOG.warning("heartbeat_failed", error=str(error) or "no answer in time")
            # Try again after a while, not at the next tick.
            self._contact_at = time.monotonic() - registration.liveness_ttl_ms / 6_000
        finally:
            self._heart_beating = False

    # Watching the worker's loop -----------------------------------------------------------------------------------

    def _watch(self, now: float) -> None:
        if not self._held and not self._pinged:
            self._progress_at = now
            return
        if not self._pinged:
            self._pinged = True
            self._progress_at = now
            try:
                self._watched.call_soon_threadsafe(self._pong)
            except RuntimeError:  # the worker's loop is closed
                self._pinged = False
            return
        blocked_s = now - self._progress_at
        if blocked_s > self._blocked_warning_s and not self._warned:
            self._warned = True
            _LOG.warning("event_loop_blocked", blocked_s=round(blocked_s, 2), **self._culprit())

    def _pong(self) -> None:
        """Runs in the worker's loop: it makes progress."""
        now = time.monotonic()
        if self._warned:
            _LOG.warning("event_loop_free_again", blocked_s=round(now - self._progress_at, 2))
        self._warned = False
        self._progress_at = now
        self._pinged = False

    def _culprit(self) -> dict[str, str]:
        """Name the task that holds the worker's loop, and where it is."""
        found: dict[str, str] = {}
        task = asyncio.current_task(self._watched)
        if task is not None:
            found["task"] = task.get_name()
        frame = sys._current_frames().get(self._watched_thread)  # pyright: ignore[reportPrivateUsage] -- diagnosis
        if frame is not None:
            where = traceback.extract_stack(frame, limit=1)[-1]
            found["at"] = f"{where.filename}:{where.lineno} in {where.name}"
        found["hint"] = "use `def` instead of `async def`, or asyncio.to_thread, for work that blocks"
        return found


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
