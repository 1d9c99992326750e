"""What every test shares: how much Hypothesis tries, and the servers of a session, started when first asked for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

import tests.postgres.servers
import tests.postgres.session
import tests.valkey.servers
import tests.valkey.session
from flowfabric.contract.errors import Misuse
from tests.valkey.servers import Cluster, Node

_QUIET: Final = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)

settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=_QUIET)
settings.register_profile("thorough", deadline=None, max_examples=2_000, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
EXAMPLES: Final = settings().max_examples
"""How many scripts and inputs a property is tried with."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for jobs in the background; the processes that tests start must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    """Say which servers the tests run on; without one, those that need it fail."""

    def said(version: Callable[[], tuple[int, ...]]) -> str:
        try:
            return ".".join(map(str, version()))
        except Misuse as error:
            return error.message

    return [
        f"valkey-server: {said(tests.valkey.servers.server_version)}",
        f"postgres: {said(tests.postgres.servers.server_version)}",
    ]


@pytest.fixture(scope="session", autouse=True)
def servers_end() -> Iterator[None]:
    """End the session's servers with it."""
    yield
    tests.valkey.session.close()
    tests.postgres.session.close()


@pytest.fixture
def empty_node() -> Node:
    """The session's Valkey server, without data. Shared: see `tests.valkey.session`."""
    return tests.valkey.session.empty_node()


@pytest.fixture
def empty_cluster() -> Cluster[Node]:
    """The session's Valkey cluster, without data. Shared: see `tests.valkey.session`."""
    return tests.valkey.session.empty_cluster()


@pytest.fixture
def empty_postgres() -> tests.postgres.servers.Node:
    """The session's Postgres server, without data. Shared: see `tests.postgres.session`."""
    return tests.postgres.session.empty_node()
