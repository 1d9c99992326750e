"""Servers of the fault tests' own: what they do to them nobody else should have to bear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.valkey import servers
from tests.valkey.servers import Cluster, Node


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Node]:
    """A single server whose log is flushed every second; it takes DEBUG."""
    with servers.single_node(tmp_path / "server", **{"enable-debug-command": "yes"}) as node:
        yield node


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Node]:
    """A single server whose acknowledgements are on disk."""
    with servers.single_node(tmp_path / "server", appendfsync="always") as node:
        yield node


@pytest.fixture(scope="module")
def six_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with servers.cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def cluster(six_nodes: Cluster) -> Cluster:
    """Three primaries with one replica each, without data; who is a primary is the servers' to say."""
    for node in six_nodes.nodes:
        node.start()
    six_nodes.wait_whole()
    six_nodes.empty(functions=True)
    return six_nodes
