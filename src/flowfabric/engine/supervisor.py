"""The supervisor: owns background tasks, restarts one that crashes, stops them within a grace.

A crash is logged with a count and the task restarts after a pause; a store that is unavailable or full is no crash,
only a pause.
`Engine` is the supervisor of a store's timers and housekeeping.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import ResourceExhausted, Unavailable
from flowfabric.engine import timers
from flowfabric.telemetry import log, metrics

_LOG: Final = log.get_logger("flowfabric.engine")

RESTART_PAUSE_S: Final = 1.0
RESTART_PAUSE_MAX_S: Final = 5.0
UNAVAILABLE_PAUSE_S: Final = 0.5
PAUSES_PER_WARNING: Final = 60


class Supervisor:
    """Runs endless tasks in the current event loop and starts them again when they end."""

    def __init__(
        self, loops: Mapping[str, Callable[[], Awaitable[None]]], *, restart_pause_s: float = RESTART_PAUSE_S
    ) -> None:
        self._loops = loops
        self._restart_pause_s = restart_pause_s
        self._tasks: list[asyncio.Task[None]] = []
        self.restarts = 0
        """How often a task crashed and was started again."""

    @property
    def is_running(self) -> bool:
        """Say whether the tasks are running."""
        return any(not task.done() for task in self._tasks)

    async def start(self) -> None:
        """Start the tasks. Starting when they run does nothing."""
        if self.is_running:
            return
        self._tasks = [
            asyncio.create_task(self._supervise(name, loop), name=f"flowfabric-{name}")
            for name, loop in self._loops.items()
        ]

    async def stop(self, grace_s: float = 15.0) -> bool:
        """Stop the tasks; return whether they ended within the grace."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if not tasks:
            return True
        _, pending = await asyncio.wait(tasks, timeout=grace_s)
        if pending:
            metrics.shutdown_timed_out()
            _LOG.warning("engine_stop_timed_out", grace_s=grace_s, tasks=len(pending))
        return not pending

    async def _supervise(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        pauses = 0
        crashes = 0
        while True:
            try:
                await loop()
            except (Unavailable, ResourceExhausted) as error:
                if pauses % PAUSES_PER_WARNING == 0:
                    _LOG.warning("engine_waits_for_store", task=name, error=error.message)
                pauses += 1
                await asyncio.sleep(UNAVAILABLE_PAUSE_S)
            except Exception:  # the supervisor exists to survive whatever a task raises
                crashes += 1
                self.restarts += 1
                _LOG.exception("engine_task_crashed", task=name, restarts=crashes)
                await asyncio.sleep(min(self._restart_pause_s * crashes, RESTART_PAUSE_MAX_S))


class Engine(Supervisor):
    """Runs a store's timers and housekeeping."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(
            {"timers": partial(timers.timer_loop, backend), "sweep": partial(timers.sweep_loop, backend)}
        )
