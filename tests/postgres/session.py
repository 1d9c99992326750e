"""The server of a test session, started when first asked for, ended with the session.

It is shared by all tests of the process, which isolate themselves by emptying it: the schema stays, so that opening a
store need not make it again. Who kills it, stops it, changes its configuration, or does things to the schema, starts
one with `servers.single_node` or takes a database of their own with `own_database`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

from flowfabric.contract.ids import PartitionCounts
from tests.postgres.servers import FEW, Node, single_node

_stack: Final = ExitStack()
_numbers: Final = count(1)


@cache
def shared_node() -> Node:
    """Return the session's server as it is."""
    folder = Path(tempfile.mkdtemp(prefix="flowfabric-tests-"))
    # Root's servers run as somebody else, who has to pass through.
    folder.chmod(0o711)
    _stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return _stack.enter_context(single_node(folder / "postgres"))


def empty_node(partitions: PartitionCounts = FEW, *, manual_clock: bool = False) -> Node:
    """Return the session's server without data; nobody is connected to it.

    partitions: what its store has, in case there is one already.
    manual_clock: it is for tests that move the clock.
    """
    node = shared_node()
    node.empty(partitions=partitions, manual_clock=manual_clock)
    return node


@contextmanager
def own_database() -> Iterator[str]:
    """Return the URL of a new database of the session's server, with no schema in it; dropped with the block."""
    node = shared_node()
    name = f"own_{next(_numbers)}"
    try:
        yield node.create_database(name)
    finally:
        node.drop_database(name)


def close() -> None:
    """End what was started; what is asked for afterwards is started anew."""
    _stack.close()
    shared_node.cache_clear()
