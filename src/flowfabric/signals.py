"""SIGTERM and SIGINT, where the platform and the thread allow them to be handled in an event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def install_signals(on_signal: Callable[[], None]) -> Callable[[], None]:
    """Call `on_signal()` on SIGTERM and SIGINT in the running loop; return how to undo that."""
    loop = asyncio.get_running_loop()
    installed: list[signal.Signals] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, on_signal)
        except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or no such support
            continue
        installed.append(number)

    def restore() -> None:
        for number in installed:
            loop.remove_signal_handler(number)

    return restore
