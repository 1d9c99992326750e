"""What every test shares: how much Hypothesis tries, and the servers of a session, started when first asked for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from flowfabric.contract.errors import Misuse
from tests.valkey import session
from tests.valkey.servers import Cluster, Node, server_version

_QUIET: Final = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)

settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=_QUIET)
settings.register_profile("thorough", deadline=None, max_examples=2_000, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
EXAMPLES: Final = settings().max_examples
"""How many scripts and inputs a property is tried with."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for jobs in the background; the processes that tests start must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say which Valkey the tests run on; without one, those that need it fail."""
    try:
        return f"valkey-server: {'.'.join(map(str, server_version()))}"
    except Misuse as error:
        return f"valkey-server: {error.message}"


@pytest.fixture(scope="session", autouse=True)
def servers_end() -> Iterator[None]:
    """End the session's servers with it."""
    yield
    session.close()


@pytest.fixture
def empty_node() -> Node:
    """The session's Valkey server, without data. Shared: see `tests.valkey.session`."""
    return session.empty_node()


@pytest.fixture
def empty_cluster() -> Cluster[Node]:
    """The session's Valkey cluster, without data. Shared: see `tests.valkey.session`."""
    return session.empty_cluster()
