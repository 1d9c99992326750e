"""What a process saw acknowledged: one file per process, one JSON line per fact, written before it goes on.

A line is one `write` to a file opened for appending: killing the process loses nothing that was written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

FOLDER_VARIABLE = "FLOWFABRIC_TEST_WITNESS"


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One acknowledgement."""

    what: Literal["frame", "completed", "started"]
    execution_id: str
    attempt_index: int
    sequence: int = 0
    data: str = ""


class Witness:
    """Writes down facts for one process."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"{os.getpid()}-{os.urandom(4).hex()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def saw(self, fact: Fact) -> None:
        """Write one fact down."""
        os.write(self._file, msgspec.json.encode(fact) + b"\n")


def facts(folder: Path) -> Iterator[Fact]:
    """Read what all processes wrote down; a last line cut short by a kill was never written whole and is no fact."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield msgspec.json.decode(line, type=Fact)
