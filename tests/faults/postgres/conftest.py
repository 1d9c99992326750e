"""Servers of the fault tests' own: what they do to them nobody else should have to bear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import servers
from tests.postgres.servers import Node


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Node]:
    """A server whose acknowledgements are on disk, as they always are."""
    with servers.single_node(tmp_path / "server", checkpoint_timeout="30s") as node:
        yield node


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Node]:
    """A server that takes few connections."""
    with servers.single_node(
        tmp_path / "server", max_connections=12, superuser_reserved_connections=2
    ) as node:
        yield node
