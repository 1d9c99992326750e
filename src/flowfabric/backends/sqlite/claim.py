"""Claiming: choose the best eligible executions a worker may run and lease them, in one step.

Eligible work is indexed by route, so what a worker cannot run is never looked at. Several routes are merged lazily by
(priority, age, id). What must stay true: a claim that leaves work behind while others wait announces it again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from flowfabric.backends import assets
from flowfabric.backends.sqlite import rows
from flowfabric.backends.sqlite.apply import apply, reindex
from flowfabric.backends.sqlite.catalog import Route
from flowfabric.backends.sqlite.rows import Row
from flowfabric.backends.sqlite.writer import Transaction
from flowfabric.contract import ids, limits
from flowfabric.contract.ids import AttemptId, LeaseId
from flowfabric.contract.lease import (
    Lease,
    LeaseClaim,
    LeaseGrant,
    LeaseGranted,
    LeasesClaimed,
    NothingToGrant,
)
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import OwnershipState
from flowfabric.rules import lease as rules

_SQL: Final = assets.named("flowfabric.backends.sqlite", "sql/claim.sql")
_HEADS: Final = _SQL["heads"]
_LOAD: Final = _SQL["load"]
_BEST: Final = _SQL["best"]
REPLY_BYTES_MAX: Final = limits.BODY_BATCH_MAX
"""Inputs in one reply, which the last one may exceed."""
GRANT_LOOKED_AT_MAX: Final = 256

Head = tuple[int, int, bytes, int]
"""(negated priority, eligible since, uuid, row number): the order of work."""
Candidate = tuple[int, bytes, bytes, str, bytes, int]
"""(row number, definition, record, input type, input, route)."""


def claim(transaction: Transaction, command: LeaseClaim) -> LeasesClaimed:
    """Lease up to `max_tasks` executions, best first."""
    if command.claim_id is not None:
        again = _repeated(transaction, command)
        if again:
            return LeasesClaimed(leases=again)
    routes = transaction.catalog.fitting(transaction, command)
    leases: list[Lease] = []
    size = 0
    while len(leases) < command.max_tasks and size < REPLY_BYTES_MAX:
        candidates = _candidates(transaction, routes, command.max_tasks - len(leases), REPLY_BYTES_MAX - size)
        if not candidates:
            break
        for seq, definition, record, input_type, data, route_id in candidates:
            row = Row(seq, route_id, rows.loaded_from(definition, record))
            lease = _take(transaction, row, command, Payload(data, input_type))
            if lease is not None:
                leases.append(lease)
                size += len(data)
    if transaction.bells.claims_waiting:
        _announce_rest(transaction, routes)
    return LeasesClaimed(leases=tuple(leases))


def _take(transaction: Transaction, row: Row, command: LeaseClaim, payload: Payload) -> Lease | None:
    """Lease one candidate, or end it where the rules say so, or repair an index entry that was wrong."""
    decision = rules.claim(
        row.loaded,
        command,
        lease_id=LeaseId(ids.mint_uuid()),
        attempt_id=AttemptId(ids.mint_uuid()),
        now_ms=transaction.now_ms,
    )
    if decision.refusal is not None:
        reindex(transaction, row)
        return None
    after = apply(transaction, row, decision)
    if after.loaded.record.state.ownership_state is not OwnershipState.LEASED:
        return None
    return view(transaction, after, payload, is_new=True)


def view(transaction: Transaction, row: Row, payload: Payload, *, is_new: bool = False) -> Lease:
    """Show a live lease as its holder gets it; a continued attempt goes on in its stream."""
    record = row.loaded.record
    frame_sequence = 0
    if record.attempt is not None and record.lease is not None:
        continued = record.attempt.lease_epoch != record.lease.lease_epoch
        if continued or not is_new:
            stream = rows.load_stream(transaction, row.seq, record.attempt.attempt_index)
            frame_sequence = stream.last_sequence if stream is not None else 0
    return rules.view(row.loaded, payload, frame_sequence)


def _repeated(transaction: Transaction, command: LeaseClaim) -> tuple[Lease, ...]:
    """Return the leases of this claim id that still live."""
    holder = f"{command.namespace} {command.worker_instance}"
    found: list[tuple[Row, Lease]] = []
    for seq, definition, record, input_type, data, route_id in transaction.all(
        _SQL["claimed"], (holder, command.claim_id, limits.CLAIM_TASKS_MAX)
    ):
        row = Row(seq, route_id, rows.loaded_from(definition, record))
        lease = row.loaded.record.lease
        if lease is not None and lease.expires_at_ms > transaction.now_ms:
            found.append((row, view(transaction, row, Payload(data, input_type))))
    found.sort(key=_order_of)
    return tuple(lease for _, lease in found)


def _order_of(found: tuple[Row, Lease]) -> tuple[int, int, str]:
    row, lease = found
    return -lease.priority, row.loaded.record.eligible_since_ms, lease.execution_id[-36:]


def _open_routes(transaction: Transaction, routes: Sequence[Route]) -> list[int]:
    empty = transaction.catalog.empty
    return (
        [route.id for route in routes if route.id not in empty] if empty else [route.id for route in routes]
    )


def _candidates(transaction: Transaction, routes: Sequence[Route], count: int, room: int) -> list[Candidate]:
    """Read the best executions over several routes, best first, until their inputs fill the room (at least one)."""
    left = _open_routes(transaction, routes)
    if len(left) == 1:
        cursor = transaction.execute(_BEST, (left[0], count))
        found = _fitting(cursor, room)
        if len(found) < count and cursor.fetchone() is None:
            transaction.catalog.empty.add(left[0])
        cursor.close()
        return found
    return _fitting(
        (
            found
            for head in _heads(transaction, left, count)
            if (found := transaction.first(_LOAD, (head[3],))) is not None
        ),
        room,
    )


def _fitting(candidates: Iterable[Candidate], room: int) -> list[Candidate]:
    found: list[Candidate] = []
    for candidate in candidates:
        found.append(candidate)
        room -= len(candidate[4])
        if room <= 0:
            break
    return found


def _heads(transaction: Transaction, route_ids: Sequence[int], count: int) -> list[Head]:
    """Merge the heads of several routes, reading from each only as far as needed."""
    cursors = [transaction.execute(_HEADS, (route_id, count)) for route_id in route_ids]
    firsts: list[Iterator[Head]] = []
    for route_id, cursor in zip(route_ids, cursors, strict=True):
        first: Head | None = cursor.fetchone()
        if first is None:
            transaction.catalog.empty.add(route_id)
        else:
            firsts.append(_chain(first, cursor))
    heads: list[Head] = []
    for head in heapq.merge(*firsts):
        heads.append(head)
        if len(heads) >= count:
            break
    for cursor in cursors:
        cursor.close()
    return heads


def _chain(first: Head, rest: Iterator[Head]) -> Iterator[Head]:
    yield first
    yield from rest


def _announce_rest(transaction: Transaction, routes: Sequence[Route]) -> None:
    """Announce every route that this worker could have gone on with: others wait."""
    by_id = {route.id: route for route in routes}
    for route_id in _open_routes(transaction, routes):
        if transaction.first(_HEADS, (route_id, 1)) is None:
            transaction.catalog.empty.add(route_id)
        else:
            topic = by_id[route_id].topic
            if topic not in transaction.news.work:
                transaction.news.claimable(topic)


def grant_best(transaction: Transaction, command: LeaseGrant) -> LeaseGranted | NothingToGrant:
    """Grant the best eligible execution that this worker may run."""
    routes = transaction.catalog.fitting(transaction, command)
    for head in _heads(transaction, _open_routes(transaction, routes), GRANT_LOOKED_AT_MAX):
        row = rows.load_seq(transaction, head[3])
        if row is None:
            continue
        lane = row.loaded.definition.lane
        decision = rules.grant(
            row.loaded,
            command,
            lane_state=transaction.catalog.lane_state(transaction, lane),
            now_ms=transaction.now_ms,
        )
        apply(transaction, row, decision)
        if isinstance(decision.reply, LeaseGranted):
            return decision.reply
    return NothingToGrant()
