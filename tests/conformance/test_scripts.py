"""Random scripts of commands and time: every stored invariant holds after every command, and nothing gets stuck."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.contract.ids import PartitionCounts
from tests.conformance.conftest import QUICK_STORES, SLOW_STORES, STORES
from tests.conformance.scripts import SCRIPTS, Script, Step
from tests.conformance.world import START_MS, World
from tests.conftest import EXAMPLES


async def _run(store: str, steps: list[Step]) -> None:
    clock = ManualClock(start_ms=START_MS)
    with tempfile.TemporaryDirectory() as folder:
        backend = await backends.connect(STORES[store](Path(folder), PartitionCounts()), clock=clock)
        try:
            await Script(World(backend, clock)).run(steps)
        finally:
            await backend.close()


@pytest.mark.parametrize("store", QUICK_STORES)
@given(steps=SCRIPTS)
def test_no_script_breaks_an_invariant(store: str, steps: list[Step]) -> None:
    """Whatever commands come in whatever order at whatever time, fsck finds nothing, ends are final, nothing sticks.

    Acceptance: random-scripts-keep-every-invariant
    Acceptance: nothing-gets-stuck
    """
    asyncio.run(_run(store, steps))


@pytest.mark.parametrize("store", SLOW_STORES)
@settings(max_examples=EXAMPLES // 4)
@given(steps=SCRIPTS)
def test_no_script_breaks_an_invariant_anywhere(store: str, steps: list[Step]) -> None:
    """The same holds on stores of many processes."""
    asyncio.run(_run(store, steps))
