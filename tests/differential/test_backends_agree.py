"""Every backend answers, refuses and stores what SQLite, which runs the rules themselves, does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from tests.conformance.conftest import OTHER_STORES, SLOW_STORES, emptied
from tests.conformance.scripts import SCRIPTS, Step
from tests.conformance.world import START_MS, World
from tests.conftest import EXAMPLES
from tests.differential.transcript import ONE_PARTITION, Transcript

REQUIRED = st.sampled_from([(), ("gpu",)])


async def _transcript(url: str, steps: list[Step], required: tuple[str, ...]) -> list[Any]:
    clock = ManualClock(start_ms=START_MS)
    backend = await backends.connect(url, clock=clock, partitions=ONE_PARTITION)
    try:
        transcript = Transcript(World(backend, clock), required)
        await transcript.run(steps)
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings
        return transcript.lines
    finally:
        await backend.close()


def _agree(store: str, steps: list[Step], required: tuple[str, ...]) -> None:
    url = emptied(store, ONE_PARTITION)
    expected = asyncio.run(_transcript("sqlite:///:memory:", steps, required))
    seen = asyncio.run(_transcript(url, steps, required))
    for number, (wanted, found) in enumerate(zip(expected, seen, strict=True)):
        assert found == wanted, f"line {number}"


@pytest.mark.parametrize("store", [store for store in OTHER_STORES if store not in SLOW_STORES])
@given(steps=SCRIPTS, required=REQUIRED)
def test_a_script_is_the_same_everywhere(store: str, steps: list[Step], required: tuple[str, ...]) -> None:
    """Whatever commands come at whatever time: every reply, refusal and record is that of the rules."""
    _agree(store, steps, required)


@pytest.mark.parametrize("store", SLOW_STORES)
@settings(max_examples=EXAMPLES // 4)
@given(steps=SCRIPTS, required=REQUIRED)
def test_a_script_is_the_same_on_many_nodes(store: str, steps: list[Step], required: tuple[str, ...]) -> None:
    """The same holds on stores of many processes."""
    _agree(store, steps, required)
