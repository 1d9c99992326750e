"""The command line `flowfabric`: friendly verbs, and every operation of the contract under `admin`.

`main` is the entry point. Each command imports what it needs when it runs, so that `--help` and completion are quick.
Nothing here decides about work: commands build one command struct, call one operation and show the reply.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status; `arguments` default to those of the process."""
    from flowfabric.cli.root import run

    run(arguments)


__all__ = ["main"]
