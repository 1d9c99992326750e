"""Server and workers are killed -9 on a Postgres store, as they are on SQLite: nothing acknowledged is lost.

`FLOWFABRIC_FAULT_KILLS` says how many processes are killed (10), `FLOWFABRIC_FAULT_SEED` repeats a run's choices.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaigns import kill_every_process, kill_workers
from tests.faults.scenes import KILLS
from tests.postgres.servers import Node


@pytest.mark.timeout(120 + 3 * KILLS)
async def test_kills_of_every_process_lose_nothing(server: Node, tmp_path: Path) -> None:
    """Whatever was acknowledged through the server or to a worker is there after any of them, or all, were killed."""
    await kill_every_process(server.url, tmp_path)


@pytest.mark.timeout(120 + 3 * KILLS)
async def test_kills_of_workers_lose_nothing(server: Node, tmp_path: Path) -> None:
    """What a killed worker held is run by another one once its lease is over, as the next attempt, and ends once."""
    await kill_workers(server.url, tmp_path)
