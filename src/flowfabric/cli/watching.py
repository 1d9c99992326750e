"""Noticing that files changed, by looking at their times once a second: no platform's own mechanism is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final

LOOK_EVERY_S: Final = 1.0
SETTLE_S: Final = 0.1

Stamp = tuple[int, int]


class Watch:
    """The state of some files as last seen. Make it before they are read, so that no change falls in between."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._seen: dict[Path, Stamp | None] = {}
        self.add(files)

    def add(self, files: Iterable[Path]) -> None:
        """Watch these files too; those watched already keep what was last seen of them."""
        for path in files:
            if path not in self._seen:
                self._seen[path] = _stamp(path)

    def look(self) -> list[Path]:
        """Return the files that changed since the last look, appeared or went away."""
        changed: list[Path] = []
        for path, before in self._seen.items():
            now = _stamp(path)
            if now != before:
                self._seen[path] = now
                changed.append(path)
        return changed

    async def wait_change(self) -> list[Path]:
        """Wait until files changed and return which; a burst of writes counts as one change."""
        changed = self.look()
        while not changed:
            await asyncio.sleep(LOOK_EVERY_S)
            changed = self.look()
        while True:
            await asyncio.sleep(SETTLE_S)
            more = self.look()
            if not more:
                return changed
            changed += more


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
