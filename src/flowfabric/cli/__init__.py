"""The command line `flowfabric`: friendly verbs, and every operation of the contract under `admin`.

`main` is the entry point. Each command imports what it needs when it runs, so that `--help` and completion are quick.
Nothing here decides about work: commands build one command struct, call one operation and show the reply.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status; `arguments` default to those of the process."""
    _open_closed_outputs()
    try:
        from flowfabric.cli.root import run

        run(arguments)
    except KeyboardInterrupt:
        # It came before a command ran: nothing has begun.
        raise SystemExit(INTERRUPTED) from None


def _open_closed_outputs() -> None:
    """Give a process whose outputs were closed (`>&-`) some to write to: the command counts, not who listens."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


__all__ = ["main"]
