"""What commands write: tables on a terminal, plain aligned lines elsewhere, JSON when asked for.

Standard output carries results, standard error everything else. With `--json` standard output is one JSON document,
or one a line for commands that follow something. Colours only on terminals, and never when NO_COLOR is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO, Any, Final

_ANSI: Final = {
    "bold": "1",
    "bold red": "1;31",
    "bold green": "1;32",
    "dim": "2",
    "green": "32",
    "yellow": "33",
}
BINARY_SHOWN: Final = "<{size} bytes of {content_type}>"


def is_plain(stream: IO[str]) -> bool:
    """Say whether a stream gets no colours and no tables: it is no terminal, or NO_COLOR or a dumb terminal says so."""
    return not stream.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def styled(text: str, style: str, stream: IO[str] | None = None) -> str:
    """Return text in a style for a stream (standard error by default), unchanged where there are no colours."""
    if is_plain(stream if stream is not None else sys.stderr):
        return text
    return f"\x1b[{_ANSI[style]}m{text}\x1b[0m"


def note(text: str) -> None:
    """Tell the person at the terminal something that is not the result."""
    print(text, file=sys.stderr, flush=True)


def line(text: str) -> None:
    """Write one line of the result."""
    print(text, flush=True)


def clean(text: str) -> str:
    """Make text from elsewhere safe for a terminal: control characters show as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def document(value: Any, *, pretty: bool = False) -> None:
    """Write one JSON document; bytes are written as the JSON text they are."""
    import msgspec

    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    if pretty:
        data = msgspec.json.format(data, indent=2)
    sys.stdout.flush()
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def payload(data: bytes, content_type: str) -> None:
    """Write a payload as it is: its bytes, with a line end behind JSON and text."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    if content_type.startswith(("application/json", "text/")) and not data.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Write rows under their columns; without rows, say `empty` to the person at the terminal."""
    if not rows:
        note(empty)
        return
    cells = [[clean(cell) for cell in row] for row in rows]
    if is_plain(sys.stdout):
        _aligned([list(columns), *cells])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in cells:
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    Console().print(shown)


STYLES: Final = {
    "completed": "green",
    "active": "cyan",
    "failed": "red",
    "expired": "red",
    "cancelled": "yellow",
    "delayed": "yellow",
    "paused": "yellow",
    "draining": "yellow",
    "disabled": "red",
    "lapsed": "red",
}
"""Colours of states in tables."""


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Write names and values, one pair a line, values under each other."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        label = styled(f"{name:<{width}}", "dim", sys.stdout)
        first, *more = clean(value).splitlines() or [""]
        print(f"{label}  {first}")
        for further in more:
            print(f"{'':<{width}}  {further}")
    sys.stdout.flush()


def _aligned(rows: Sequence[Sequence[str]]) -> None:
    flat = [[" ".join(cell.split()) or "-" for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in flat) for index in range(len(flat[0]))]
    for row in flat:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()


def ago(then_ms: int | None, now_ms: int) -> str:
    """Say how long ago an instant was, or how soon it will be, in one unit."""
    if then_ms is None:
        return "-"
    length = duration(abs(now_ms - then_ms))
    return f"{length} ago" if then_ms <= now_ms else f"in {length}"


def duration(ms: int) -> str:
    """Say a length of time in one unit, two for minutes and hours."""
    seconds = ms / 1_000
    if ms < 1_000:
        return f"{ms}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3_600:
        return f"{int(seconds // 60)}m{int(seconds % 60):02d}s"
    if seconds < 86_400:
        return f"{int(seconds // 3_600)}h{int(seconds % 3_600 // 60):02d}m"
    return f"{int(seconds // 86_400)}d{int(seconds % 86_400 // 3_600):02d}h"


def instant(ms: int | None) -> str:
    """Show an instant in UTC, to the second."""
    if ms is None:
        return "-"
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"


def value_text(data: bytes, content_type: str) -> str:
    """Show a payload on one line: a JSON string as itself, other JSON compactly, anything else by its size."""
    if not content_type.startswith("application/json"):
        return BINARY_SHOWN.format(size=len(data), content_type=content_type)
    import msgspec

    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data.decode("utf-8", "replace")
    return value if isinstance(value, str) else data.decode("utf-8", "replace")
