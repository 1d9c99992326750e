"""Claiming without losing a lease: the same claim id until there is an answer, also when the claimer is cancelled.

A claim whose reply is lost is repeated with its id, which gives the same leases. A claim that is cancelled while it
waits may have been granted already: its id is asked for once more, with a kind that no task can have, so that the
answer is exactly the leases it was given and nothing new. Those are for handing back: an embedded store may have
taken them back by itself already.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from typing import Final

import msgspec

from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import FlowFabricError, Unavailable
from flowfabric.contract.ids import ClaimId, Kind
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.telemetry import log
from flowfabric.worker.settling import pause_s

_LOG: Final = log.get_logger("flowfabric.worker")

NO_KIND: Final = Kind("flowfabric/none")
PAUSE_MAX_S: Final = 5.0
REFUSED_PAUSE_S: Final = 1.0
RECOVERY_TRIES: Final = 3
RECOVERY_DEADLINE_S: Final = 3.0
FAILURES_PER_WARNING: Final = 50


class Claimed(msgspec.Struct, frozen=True):
    """What a claim came to."""

    leases: tuple[Lease, ...]
    obtained_at: float
    """`time.monotonic()` at the reply or, when the claim was repeated, before it was first sent: the leases may be
    that old then."""
    was_cancelled: bool = False


class ClaimIds:
    """Mints claim ids from a generator seeded once: asking the system gives up the interpreter's lock each time."""

    def __init__(self) -> None:
        self._chance = random.Random(os.urandom(32))  # noqa: S311 -- they must differ, not be secret

    def mint(self) -> ClaimId:
        """Return a new claim id."""
        return ClaimId(str(uuid.UUID(int=self._chance.getrandbits(128), version=4)))


async def claim_until_answered(stores: Stores, command: LeaseClaim) -> Claimed:
    """Claim, waiting out an unavailable store; an empty answer is an answer. The command has its claim id.

    When cancelled it finds out what it was granted and then returns that, instead of raising.
    """
    asked_at = time.monotonic()
    failures = 0
    try:
        while True:
            try:
                leases = (await stores.lease.claim(command)).leases
                return Claimed(leases, asked_at if failures else time.monotonic())
            except FlowFabricError as error:
                pause = pause_s(failures, PAUSE_MAX_S)
                if not isinstance(error, Unavailable):
                    pause = max(pause, REFUSED_PAUSE_S)
                if failures % FAILURES_PER_WARNING == 0:
                    _LOG.warning("claim_failed", error=str(error), again_in_s=round(pause, 2))
            failures += 1
            await asyncio.sleep(pause)
    except asyncio.CancelledError:
        return Claimed(await _recover(stores, command), asked_at, was_cancelled=True)


async def _recover(stores: Stores, command: LeaseClaim) -> tuple[Lease, ...]:
    """Return the leases that a claim was granted."""
    again = msgspec.structs.replace(command, kinds=(NO_KIND,), wait_ms=0)
    for tries in range(RECOVERY_TRIES):
        try:
            async with asyncio.timeout(RECOVERY_DEADLINE_S):
                return (await stores.lease.claim(again)).leases
        except (FlowFabricError, TimeoutError) as error:
            if tries == RECOVERY_TRIES - 1:
                _LOG.warning("claim_outcome_unknown", claim_id=command.claim_id, error=str(error))
        await asyncio.sleep(pause_s(tries))
    return ()
