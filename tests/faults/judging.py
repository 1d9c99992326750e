"""Holding a store to what was acknowledged, after the load has ended.

`judge` with `kept`: the store promised that acknowledgements survive what happened to it. Without: it may have lost the
latest of them, but what it has must be a state it was in before, plus what was done since; every execution that it
knows has one end and a history without contradictions. `reads_kept`: so does everything that was read, which is not so
where an acknowledgement waits for a replica and a read does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import msgspec

from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import (
    ExecutionList,
    ExecutionReadContext,
    ExecutionReadResult,
    ResultCompleted,
)
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.lease import LeaseHistory
from flowfabric.contract.states import LeaseEventName
from tests.faults.load import Held, Seen
from tests.faults.test_kills import judge_history, read_frames
from tests.faults.witness import Fact

_TAKEN: Final = (LeaseEventName.ACQUIRED, LeaseEventName.RECLAIMED)


async def judge(backend: Backend, seen: Seen, *, kept: bool = True, reads_kept: bool = True) -> None:
    """Hold the store to everything that was acknowledged, and fsck it."""
    assert seen.created and seen.facts
    listed = await _list(backend)
    assert len(set(listed)) == len(listed), "an execution is listed twice"
    if kept:
        assert not seen.lost
        assert set(listed) == set(seen.created), "other executions than those that were acknowledged"
    else:
        assert set(listed) <= set(seen.created)
    report = await backend.maintenance.fsck()
    assert not report.findings, report.findings
    assert report.executions == len(listed)
    starts = _starts(seen.facts, kept=kept)
    for execution_id in listed:
        number = seen.created[execution_id]
        result = await _judge_end(backend, execution_id, number, starts if kept else {})
        assert not (kept and reads_kept) or result == seen.results[execution_id], "a result changed"
        seen.results[execution_id] = result
    if kept:
        await _judge_facts(backend, seen)
        judge_leases(seen.held)


def judge_leases(held: list[Held]) -> None:
    """No two leases of an execution overlap, on the store's clock; none follows an end; epochs and ids are unique."""
    by_execution: dict[str, list[Held]] = {}
    for lease in held:
        by_execution.setdefault(lease.execution_id, []).append(lease)
    ids = {lease.lease_id for lease in held}
    assert len(ids) == len(held), "a lease was given twice"
    for leases in by_execution.values():
        leases.sort(key=lambda lease: lease.lease_epoch)
        for one, other in pairwise(leases):
            assert one.lease_epoch < other.lease_epoch, (one, other)
            assert one.is_over or one.expires_at_ms <= other.acquired_at_ms, f"two at once: {one} {other}"


async def _list(backend: Backend) -> list[ExecutionId]:
    found: list[ExecutionId] = []
    cursor: str | None = None
    while True:
        page = await backend.execution.list(ExecutionList(cursor=cursor, limit=1_000))
        found += [info.execution_id for info in page.executions]
        cursor = page.next_cursor
        if cursor is None:
            return found


def _starts(facts: list[Fact], *, kept: bool) -> Mapping[str, set[int]]:
    """Return which attempts were started; each once, as far as the store remembers."""
    starts: dict[str, set[int]] = {}
    for fact in facts:
        if fact.what == "started":
            started = starts.setdefault(fact.execution_id, set())
            assert not kept or fact.attempt_index not in started, "an attempt was started twice"
            started.add(fact.attempt_index)
    return starts


async def _judge_end(
    backend: Backend,
    execution_id: ExecutionId,
    number: int,
    starts: Mapping[str, set[int]],
) -> ResultCompleted:
    """Return how an execution ended."""
    context = await backend.execution.read_context(ExecutionReadContext(execution_id=execution_id))
    assert str(number) in context.input.data.decode()
    result = await backend.execution.read_result(ExecutionReadResult(execution_id=execution_id))
    assert isinstance(result, ResultCompleted), result
    assert result.result is not None and msgspec.json.decode(result.result.data)["number"] == number
    await judge_history(backend, execution_id, starts.get(execution_id, set()))
    page = await backend.lease.history(LeaseHistory(execution_id=execution_id, limit=1_000))
    epochs = [event.lease_epoch for event in page.events if event.name in _TAKEN]
    assert epochs == sorted(set(epochs)), "epochs do not increase"
    return result


async def _judge_facts(backend: Backend, seen: Seen) -> None:
    frames: dict[str, dict[tuple[int, int], str]] = {}
    for fact in seen.facts:
        execution_id = ExecutionId(fact.execution_id)
        if fact.what == "completed":
            result = seen.results[execution_id].result
            assert result is not None and result.data.decode() == fact.data, (
                "an acknowledged completion is another's"
            )
        elif fact.what == "frame":
            if execution_id not in frames:
                frames[execution_id] = await read_frames(backend, execution_id)
            data = frames[execution_id][fact.attempt_index, fact.sequence]
            assert fact.data in data, "an acknowledged frame is another"
