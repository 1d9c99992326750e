"""What the demo shows: live progress on a terminal, a plain line now and then elsewhere, and the final report."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from examples.code_census.census import Counts

BAR_WIDTH: Final = 40
ROOM_FOR_PROGRESS: Final = 50
PLAIN_EVERY_S: Final = 2.0


@dataclass(kw_only=True)
class Takeover:
    """An execution that another worker took over from the killed one."""

    path: str
    by: str
    after_ms: int


@dataclass(kw_only=True)
class Outcome:
    """What one run of the demo came to."""

    files: int
    elapsed_s: float
    plain_elapsed_s: float
    counts: Counts
    retried: int
    frames: int
    killed: str | None = None
    held: int = 0
    takeovers: list[Takeover] = field(default_factory=list[Takeover])
    problems: list[str] = field(default_factory=list[str])


class Display:
    """Shows how far the work is."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._console = Console(soft_wrap=True)
        self._live = sys.stdout.isatty() and not self._console.is_dumb_terminal
        self._shown_at = time.monotonic()
        self._done = 0
        self._findings = 0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=BAR_WIDTH // 2),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[latest]}", markup=False),
            console=self._console,
        )
        self._task = self._progress.add_task("census", total=total, latest="")

    def __enter__(self) -> Display:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def finding(self, path: str, kind: str, text: str) -> None:
        """Show a finding that was streamed just now."""
        self._findings += 1
        if self._live:
            room = max(0, self._console.width - ROOM_FOR_PROGRESS)
            self._progress.update(self._task, latest=f"{kind} {path} {text}"[:room])

    def finished(self) -> None:
        """Count one more finished file."""
        self._done += 1
        if self._live:
            self._progress.update(self._task, completed=self._done)
        elif time.monotonic() - self._shown_at >= PLAIN_EVERY_S or self._done == self._total:
            self._shown_at = time.monotonic()
            print(f"{self._done} of {self._total} files, {self._findings} findings streamed", flush=True)

    def say(self, text: str) -> None:
        """Say something that stays on the screen."""
        self._console.print(Text(text), highlight=False)


def show(outcome: Outcome) -> None:
    """Print the report."""
    console = Console(soft_wrap=True, highlight=False)
    console.print()
    console.print(_totals(outcome))
    console.print()
    _bars(console, outcome.counts)
    console.print()
    if outcome.killed is not None:
        console.print(
            f"worker {outcome.killed} was killed with SIGKILL while it held {outcome.held} files; "
            f"{len(outcome.takeovers)} were taken over:"
        )
        for takeover in outcome.takeovers:
            console.print(
                f"  {takeover.path}  by {takeover.by}, {takeover.after_ms / 1_000:.1f} s after the kill",
                markup=False,
            )
    console.print(
        f"{outcome.retried} files failed the first time on purpose and were retried; "
        f"{outcome.frames} findings came over the streams"
    )
    console.print(
        f"{outcome.files} files in {outcome.elapsed_s:.1f} s; a plain single-process loop took "
        f"{outcome.plain_elapsed_s:.1f} s"
    )
    if not outcome.problems:
        console.print(Text("the totals are those of the plain loop", style="bold green"))
        return
    console.print(Text("the totals are NOT those of the plain loop:", style="bold red"))
    for problem in outcome.problems:
        console.print(f"  {problem}", markup=False)


def _totals(outcome: Outcome) -> Table:
    counts = outcome.counts
    table = Table(title="census", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    rows: Sequence[tuple[str, int]] = (
        ("files", counts.parsed + counts.unparsable),
        ("that do not parse", counts.unparsable),
        ("bytes", counts.bytes),
        ("lines", counts.lines),
        ("blank lines", counts.blank),
        ("comment lines", counts.comments),
        ("functions", counts.functions),
        ("classes", counts.classes),
        ("imports", counts.imports),
        ("lines of the longest function", counts.longest_function),
    )
    for name, number in rows:
        table.add_row(name, f"{number:,}")
    return table


def _bars(console: Console, counts: Counts) -> None:
    if not counts.findings:
        console.print("no findings")
        return
    most = max(counts.findings.values())
    width = max(len(kind) for kind in counts.findings)
    block = "#" if not (console.encoding or "").lower().startswith("utf") else "█"
    for kind, number in sorted(counts.findings.items(), key=lambda item: -item[1]):
        bar = block * max(1, round(BAR_WIDTH * number / most))
        console.print(f"{kind:<{width}}  {bar} {number}", markup=False)
