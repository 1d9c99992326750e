"""Claiming: one statement leases the best work there is for all claims of this process that look at that moment.

The function looks, picks and leases; here its rows become leases, and inputs too large to come along are read.
What must stay true: a claim that finds only what others hold just then looks again soon, for they may let go of it
without a word; and a claim is never answered by a catalog that misses a route.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from flowfabric.backends.bells import Topic
from flowfabric.backends.definitions import decode_definition
from flowfabric.backends.postgres.batching import Batch
from flowfabric.backends.postgres.calling import CALL_TIMEOUT_S, Again
from flowfabric.backends.postgres.catalog import STALE, Catalog
from flowfabric.backends.postgres.record import Named, decode_tags, execution_id_of
from flowfabric.backends.postgres.store import Store
from flowfabric.contract import limits
from flowfabric.contract.errors import Corrupt, FlowFabricError, OutcomeUnknown, Unavailable
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import AttemptType

IN_USE: Final = "claim_in_use"
"""What the function answers a claim whose id is being used elsewhere; a claim that found only what others hold is
`contended`."""
LOOK_AGAIN_MIN_S: Final = 0.001
LOOK_AGAIN_MAX_S: Final = 0.03
PATIENCE_S: Final = 0.1
"""How long a claim that does not wait looks again at what others hold."""
INPUTS_AT_ONCE: Final = limits.BODY_BATCH_MAX // limits.PAYLOAD_BYTES_MAX
"""Inputs that are read in one statement."""

CLAIM: Final = Batch(
    function="lease_claim",
    types=("text", "text", "integer", "text", "text", "bigint", "uuid", "integer"),
    columns=(
        "id",
        "partition",
        "seq",
        "created_at_ms",
        "priority",
        "eligible_since_ms",
        "lease_id",
        "lease_epoch",
        "ttl_ms",
        "expires_at_ms",
        "attempt_id",
        "attempt_index",
        "attempt_type",
        "attempt_epoch",
        "timeout_at_ms",
        "deadline_at_ms",
        "retry_count",
        "frame_sequence",
        "tags",
        "document",
        "input_type",
        "input",
    ),
)


class Claims:
    """Carries out claims on one store."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._calls = store.calls
        self._catalog = catalog
        self._sql = store.sql("sql/queries/lease.sql")

    async def claim(
        self, command: LeaseClaim, *, is_again: bool, woken: Topic | None, until: float | None
    ) -> tuple[Lease, ...]:
        """Lease up to `max_tasks` executions, best first.

        Raises: Unavailable when nothing was leased, OutcomeUnknown when that is not known or a large input of what was
            leased cannot be read.
        """
        del is_again, woken
        began = time.monotonic()
        patience = began + PATIENCE_S if until is None else until
        pause_s = LOOK_AGAIN_MIN_S
        while True:
            try:
                return await self._look(command)
            except Again as again:
                if again.code == STALE:
                    await self._catalog.refresh()
                    continue
                is_in_use = again.code == IN_USE
            now = time.monotonic()
            if is_in_use and now >= began + CALL_TIMEOUT_S:
                raise Unavailable("a claim with this id is under way elsewhere")
            if not is_in_use and now >= patience:
                return ()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, no secret)
            pause_s = min(2 * pause_s, LOOK_AGAIN_MAX_S)

    async def _look(self, command: LeaseClaim) -> tuple[Lease, ...]:
        routes = await self._catalog.fitting(command)
        rows = await self._calls.hot_rows(
            CLAIM,
            (
                command.namespace,
                _as_text(routes),
                self._catalog.known,
                command.worker_id,
                command.worker_instance,
                command.lease_ttl_ms,
                command.claim_id,
                command.max_tasks,
            ),
            command.claim_id,
        )
        inputs = await self._inputs([row["seq"] for row in rows if row["input"] is None])
        found: list[tuple[tuple[int, int, str], Lease]] = []
        for row in rows:
            if row["document"] is None:
                raise Corrupt(f"execution {row['id']} has lost its definition")
            data = row["input"]
            if data is None:
                data = inputs.get(row["seq"])
            if data is None:
                # It has ended since then, and is gone.
                continue
            order = (-row["priority"], row["eligible_since_ms"], row["id"])
            found.append((order, lease_from(row, row["document"], Payload(data, row["input_type"]))))
        found.sort(key=_order_of)
        return tuple(lease for _, lease in found)

    async def _inputs(self, seqs: Sequence[int]) -> Mapping[int, bytes]:
        """Read the inputs of leases; of what ended and was trimmed meanwhile there is none any more."""
        found: dict[int, bytes] = {}
        for start in range(0, len(seqs), INPUTS_AT_ONCE):
            try:
                rows = await self._calls.rows(self._sql["input"], seqs[start : start + INPUTS_AT_ONCE])
            except FlowFabricError as error:
                raise OutcomeUnknown(
                    f"the inputs of what was leased could not be read: {error.message}"
                ) from error
            found.update((row["seq"], row["input"]) for row in rows)
        return found


@lru_cache(maxsize=4_096)
def _as_text(routes: tuple[int, ...]) -> str:
    """Write routes as the text of an array, the same for all claims that look at the same ones."""
    return f"{{{','.join(map(str, sorted(routes)))}}}"


def _order_of(found: tuple[tuple[int, int, str], Lease]) -> tuple[int, int, str]:
    return found[0]


def lease_from(row: Named, document: bytes, payload: Payload) -> Lease:
    """Build a lease as its holder gets it from what a function answers."""
    definition = decode_definition(document, row["created_at_ms"])
    retry = definition.policy.retry_policy
    expires_at_ms, ttl_ms = row["expires_at_ms"], row["ttl_ms"]
    return Lease(
        execution_id=execution_id_of(row["partition"], row["id"]),
        namespace=definition.namespace,
        lane=definition.lane,
        route=definition.route,
        kind=definition.kind,
        priority=row["priority"],
        input=payload,
        tags=decode_tags(row["tags"]),
        policy=definition.policy,
        idempotency_key=definition.idempotency_key,
        traceparent=definition.traceparent,
        lease_id=row["lease_id"],
        lease_epoch=row["lease_epoch"],
        lease_ttl_ms=ttl_ms,
        lease_expires_at_ms=expires_at_ms,
        renewal_deadline_ms=expires_at_ms - ttl_ms // 3,
        attempt_id=row["attempt_id"],
        attempt_index=row["attempt_index"],
        attempt_type=AttemptType(row["attempt_type"]),
        resumed=row["attempt_epoch"] != row["lease_epoch"],
        attempt_timeout_at_ms=row["timeout_at_ms"],
        deadline_at_ms=row["deadline_at_ms"],
        retry_count=row["retry_count"],
        max_retries=retry.max_retries if retry is not None else 0,
        frame_sequence=row["frame_sequence"],
        created_at_ms=row["created_at_ms"],
    )
