"""The servers of a test session: one alone and one cluster, started when first asked for, ended with the session.

They are shared by all tests of the process, which isolate themselves by emptying them. Who kills one, stops it or
changes its configuration starts one of their own with `servers.single_node` or `servers.cluster`.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final

from tests.valkey.servers import Cluster, Node, cluster, single_node

_stack: Final = ExitStack()


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="flowfabric-tests-"))
    _stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def shared_node() -> Node:
    """Return the session's server as it is."""
    return _stack.enter_context(single_node(_folder() / "single"))


@cache
def shared_cluster() -> Cluster[Node]:
    """Return the session's cluster as it is: three primaries with a replica each."""
    return _stack.enter_context(cluster(_folder() / "cluster"))


def empty_node() -> Node:
    """Return the session's server without data."""
    node = shared_node()
    node.empty()
    return node


def empty_cluster() -> Cluster[Node]:
    """Return the session's cluster without data."""
    found = shared_cluster()
    found.empty()
    return found


def close() -> None:
    """End what was started; what is asked for afterwards is started anew."""
    _stack.close()
    for started in (_folder, shared_node, shared_cluster):
        started.cache_clear()
