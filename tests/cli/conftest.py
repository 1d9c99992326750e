"""One `dev` for the tests of a module that only need something to talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.running import Dev, dev


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A `dev` with the tasks greet, refuse and sleep."""
    with dev(tmp_path_factory.mktemp("dev")) as found:
        yield found
