"""Fixtures of the worker's tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from flowfabric.contract.backend import Backend
from tests.worker.rig import Rig, opened


@pytest.fixture
async def backend() -> AsyncGenerator[Backend]:
    """A store in memory, with its timers running."""
    async with opened() as (_, backend):
        yield backend


@pytest.fixture
def rig(backend: Backend) -> Rig:
    return Rig(backend)
