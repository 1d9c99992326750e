"""Servers for tests that talk to them by every way there is: `Server("--maxmemory", "1gb")`, and a cluster of six.

They are those of `tests.valkey.servers`, started at once, without an append log unless they are told to keep one, and
with what these tests need: a unix socket and DEBUG.
"""

from __future__ import annotations

import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Final

import hiredis

from flowfabric.provision.loopback import Option, free_port
from tests.valkey import servers
from tests.valkey.servers import Line, Node, eventually

__all__ = ["Cluster", "Line", "Server", "eventually", "free_port"]

PRIMARIES: Final = 3


def _read(words: tuple[str, ...]) -> dict[str, Option]:
    """Read options as a command line has them: a name, then its values."""
    names = [at for at, word in enumerate(words) if word.startswith("--")]
    return {words[at].removeprefix("--"): words[at + 1 : end] for at, end in pairwise([*names, len(words)])}


class Server(Node):
    """A `valkey-server` process that can be killed, stopped and started again at the same place."""

    def __init__(self, *options: str, starts: bool = True) -> None:
        # A socket's path ends at 108 bytes (104 on macOS): pytest's own folders are too deep.
        folder = Path(tempfile.mkdtemp(prefix="ff-wire-"))
        self.path: Final = f"{folder}/s.sock"
        super().__init__(
            folder,
            {
                "appendonly": "no",
                "unixsocket": self.path,
                "enable-debug-command": "yes",
                "loglevel": "warning",
                **_read(options),
            },
        )
        if starts:
            try:
                self.start()
            except BaseException:
                self.close()
                raise

    def serves(self) -> bool:
        """Say whether it answers: one that still loads its data has started."""
        try:
            with Line(self.port) as line:
                return bool(line("PING"))
        except hiredis.ReplyError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """End the process and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        self.close()


class Cluster(servers.Cluster[Server]):
    """Three primaries, each with one replica; a node's place in `nodes` never changes: 0-2 primaries, 3-5 replicas."""

    def __init__(self, *options: str) -> None:
        quick = [
            word for name, value in servers.CLUSTER_OPTIONS.items() for word in (f"--{name}", str(value))
        ]
        super().__init__(
            [Server(*quick, *options, starts=False) for _ in range(2 * PRIMARIES)], primaries=PRIMARIES
        )
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all nodes and remove their data."""
        for node in self.nodes:
            node.kill()
            shutil.rmtree(node.folder, ignore_errors=True)
