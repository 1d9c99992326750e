"""Kill -9 at any moment, of server, workers or both: nothing acknowledged is lost, nothing sticks or is done twice.

`FLOWFABRIC_FAULT_KILLS` says how many processes are killed (50), `FLOWFABRIC_FAULT_SEED` repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from flowfabric import backends
from flowfabric.client.http import HttpStores
from flowfabric.contract.attempt import AttemptList
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import ExecutionNotTerminal
from flowfabric.contract.execution import (
    ExecutionCreate,
    ExecutionReadContext,
    ExecutionReadResult,
    ResultCompleted,
)
from flowfabric.contract.ids import ExecutionId, Kind, Lane
from flowfabric.contract.lease import LeaseHistory
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy, FixedBackoff, RetryPolicy, StreamPolicy
from flowfabric.contract.stream import StreamRead
from tests.faults.holder import LANE, until_answered
from tests.faults.processes import Target, free_port, targets
from tests.faults.witness import Fact, facts

KILLS: Final = int(os.environ.get("FLOWFABRIC_FAULT_KILLS", "50"))
SEED: Final = os.environ.get("FLOWFABRIC_FAULT_SEED") or os.urandom(4).hex()
OUTSTANDING_MAX: Final = 48
SETTLE_S: Final = 40.0
VICTIMS: Final = (
    ("server",),
    ("holder",),
    ("remote",),
    ("sdk",),
    ("server", "holder"),
    ("server", "remote", "sdk"),
    ("server", "holder", "remote", "sdk"),
)
POLICY: Final = ExecutionPolicy(
    retry_policy=RetryPolicy(max_retries=1_000, backoff=FixedBackoff(delay_ms=10)),
    max_reclaim_count=10_000,
    stream_policy=StreamPolicy(durability_mode="durable"),
)


class Submitter:
    """Keeps the system busy and remembers every acknowledgement and every result it saw."""

    def __init__(self, url: str) -> None:
        self._stores = HttpStores(url, timeout_s=1.0)
        self._stopping = False
        self.created: dict[ExecutionId, int] = {}
        self.results: dict[ExecutionId, ResultCompleted] = {}

    async def run(self) -> None:
        """Submit until told to stop, then wait for every result."""
        number = 0
        try:
            while True:
                outstanding = [item for item in self.created if item not in self.results]
                if not self._stopping and len(outstanding) < OUTSTANDING_MAX:
                    await asyncio.gather(*(self._create(number + offset) for offset in range(8)))
                    number += 8
                    continue
                if not outstanding:
                    return
                await asyncio.gather(*(self._look(item) for item in outstanding[:16]))
        finally:
            await self._stores.close()

    def stop(self) -> None:
        """Submit nothing more."""
        self._stopping = True

    async def _create(self, number: int) -> None:
        sdk = number % 2 == 0
        command = ExecutionCreate(
            kind=Kind("streamed" if sdk else "held"),
            lane=Lane("sdk" if sdk else LANE),
            input=Payload(b'{"number":%d}' % number if sdk else b"%d" % number),
            idempotency_key=f"number {number}",
            policy=POLICY,
        )
        reply = await until_answered(lambda: self._stores.execution.create(command))
        assert reply.execution_id not in self.created, "one execution for two keys"
        self.created[reply.execution_id] = number

    async def _look(self, execution_id: ExecutionId) -> None:
        read = ExecutionReadResult(execution_id=execution_id, wait_ms=200)
        try:
            result = await until_answered(lambda: self._stores.execution.read_result(read))
        except ExecutionNotTerminal:
            return
        assert isinstance(result, ResultCompleted), result
        self.results[execution_id] = result


async def fire(found: dict[str, Target], chance: random.Random) -> None:
    """Kill and restart until enough processes were killed."""
    while sum(target.kills for target in found.values()) < KILLS:
        # sleeps: the moment of the kill is the point; most fall into work, some into a start
        await asyncio.sleep(chance.choice([0.05, 0.3, 0.7, 1.0, 1.3]) * chance.uniform(0.5, 1.0))
        victims = [found[name] for name in chance.choice(VICTIMS)]
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.start()


@pytest.fixture
def under_fire(tmp_path: Path) -> Iterator[tuple[dict[str, Target], str, str]]:
    """The processes, the store's URL and the server's."""
    port = free_port()
    store_url = f"sqlite:///{tmp_path / 'store.db'}"
    found = targets(tmp_path, store_url, port)
    yield found, store_url, f"http://127.0.0.1:{port}"
    for target in found.values():
        target.stop()


@pytest.mark.timeout(60 + 3 * KILLS)
async def test_kills_lose_nothing(under_fire: tuple[dict[str, Target], str, str], tmp_path: Path) -> None:
    """After kills of server and workers at any moment every acknowledged create, frame, completion and result is there.

    Acceptance: kill-nine-loses-nothing-acknowledged
    """
    found, store_url, url = under_fire
    print(f"FLOWFABRIC_FAULT_SEED={SEED}")
    for target in found.values():
        target.start()
    submitter = Submitter(url)
    submitting = asyncio.create_task(submitter.run())
    try:
        await fire(found, random.Random(SEED))
        submitter.stop()
        await asyncio.wait_for(submitting, SETTLE_S)
    except TimeoutError:
        left = len(submitter.created) - len(submitter.results)
        logs = "\n".join(f"--- {target.name}\n{target.log()}" for target in found.values())
        pytest.fail(f"{left} executions are stuck\n{logs}")
    finally:
        submitting.cancel()
        await asyncio.gather(submitting, return_exceptions=True)
        for target in found.values():
            target.stop()
    seen = list(facts(tmp_path / "witness"))
    kills = {target.name: target.kills for target in found.values()}
    print(f"kills {kills}, {len(submitter.created)} executions, {len(seen)} facts")
    backend = await backends.connect(store_url)
    try:
        await judge(backend, submitter, seen)
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings
        assert report.executions == len(submitter.created)
    finally:
        await backend.close()


async def judge(backend: Backend, submitter: Submitter, seen: list[Fact]) -> None:
    """Hold the store to everything that was acknowledged."""
    assert submitter.created and seen
    assert {fact.what for fact in seen} == {"started", "frame", "completed"}
    starts: dict[str, set[int]] = {}
    for fact in seen:
        if fact.what == "started":
            started = starts.setdefault(fact.execution_id, set())
            assert fact.attempt_index not in started, "an attempt was started twice"
            started.add(fact.attempt_index)
    for execution_id, number in submitter.created.items():
        context = await backend.execution.read_context(ExecutionReadContext(execution_id=execution_id))
        assert str(number) in context.input.data.decode()
        result = await backend.execution.read_result(ExecutionReadResult(execution_id=execution_id))
        assert isinstance(result, ResultCompleted)
        assert result == submitter.results[execution_id], "a result changed"
        assert result.result is not None and msgspec.json.decode(result.result.data)["number"] == number
        await judge_history(backend, execution_id, starts.get(execution_id, set()))
    frames = {execution_id: await read_frames(backend, execution_id) for execution_id in submitter.created}
    for fact in seen:
        execution_id = ExecutionId(fact.execution_id)
        if fact.what == "completed":
            kept = submitter.results[execution_id].result
            assert kept is not None and kept.data.decode() == fact.data, (
                "an acknowledged completion is another's"
            )
        if fact.what == "frame":
            data = frames[execution_id][fact.attempt_index, fact.sequence]
            assert fact.data in data, "an acknowledged frame is another"


async def judge_history(backend: Backend, execution_id: ExecutionId, started: set[int]) -> None:
    """One end, and attempts numbered without gaps; whoever started one had been given it."""
    page = await backend.lease.history(LeaseHistory(execution_id=execution_id, limit=1_000))
    assert [event.outcome for event in page.events if event.outcome is not None] == ["success"]
    assert page.events[-1].outcome == "success"
    attempts = (await backend.attempt.list(AttemptList(execution_id=execution_id, limit=1_000))).attempts
    assert [attempt.attempt_index for attempt in attempts] == list(range(len(attempts)))
    assert started <= {attempt.attempt_index for attempt in attempts}
    states = [attempt.state.value for attempt in attempts]
    assert states[-1] == "ended_success" and "ended_success" not in states[:-1]


async def read_frames(backend: Backend, execution_id: ExecutionId) -> dict[tuple[int, int], Any]:
    """Read all frames of a run by (attempt, sequence); sequences have no gaps."""
    page = await backend.stream.read(StreamRead(execution_id=execution_id, limit=10_000))
    found = {
        (frame.attempt_index, frame.sequence): frame.payload.data.decode()
        for frame in page.frames
        if frame.sequence > 0
    }
    for attempt_index, sequence in found:
        assert sequence == 1 or (attempt_index, sequence - 1) in found
    return found
