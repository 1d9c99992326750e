"""Showing how far a long submission is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

Report = Callable[[int, int], None]
"""Called with (done, in all)."""

LINE_EVERY_S: Final = 5.0


@contextmanager
def shown(progress: bool | Report | None, title: str, total: int) -> Generator[Report]:
    """Hand out what to call as items are done.

    True shows progress on standard error, a function gets every report, False and None show nothing.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield _nothing
    elif sys.stderr.isatty():
        with _bar(title, total) as report:
            yield report
    else:
        yield _Lines(title)


def _nothing(done: int, total: int) -> None:
    del done, total


@contextmanager
def _bar(title: str, total: int) -> Generator[Report]:
    # Imported here because most programs show no bar, and rich takes longer to import than the client itself.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(title, total=total)

        def report(done: int, total: int) -> None:
            display.update(task, completed=done, total=total)

        yield report


class _Lines:
    def __init__(self, title: str) -> None:
        self._title: str = title
        self._last_at: float = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last_at < LINE_EVERY_S:
            return
        self._last_at = now
        print(f"{self._title}: {done:,} of {total:,}", file=sys.stderr, flush=True)
