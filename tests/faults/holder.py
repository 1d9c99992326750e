"""A worker made of plain operations: claims, appends, completes, and writes down every acknowledgement.

`python -m tests.faults.holder URL FOLDER`. A call whose outcome is unknown is repeated as it is until it is answered.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from flowfabric.contract import ids
from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import Refused, Unavailable
from flowfabric.contract.execution import ExecutionComplete
from flowfabric.contract.ids import ClaimId, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload
from flowfabric.contract.stream import FrameInput, StreamAppend
from flowfabric.worker.entry import open_stores
from tests.faults.witness import Fact, Witness

LANE: Final = "held"
LEASE_TTL_MS: Final = 300
FRAMES: Final = 3


async def until_answered(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call until it is answered or refused."""
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0.02)


async def hold(stores: Stores, lease: Lease, witness: Witness) -> None:
    """Run one execution: frames, then a result that names the input and the attempt."""
    number = lease.input.data.decode()
    witness.saw(Fact(what="started", execution_id=lease.execution_id, attempt_index=lease.attempt_index))
    try:
        for sequence in range(1, FRAMES + 1):
            frame = FrameInput(sequence=sequence, payload=Payload(f"[{number},{sequence}]".encode()))
            append = StreamAppend(
                execution_id=lease.execution_id,
                attempt_index=lease.attempt_index,
                fence=lease.fence,
                frames=(frame,),
            )
            await until_answered(lambda append=append: stores.stream.append(append))
            witness.saw(
                Fact(
                    what="frame",
                    execution_id=lease.execution_id,
                    attempt_index=lease.attempt_index,
                    sequence=sequence,
                    data=frame.payload.data.decode(),
                )
            )
        result = f'{{"number":{number},"attempt":{lease.attempt_index},"process":{os.getpid()}}}'
        complete = ExecutionComplete(
            execution_id=lease.execution_id, fence=lease.fence, result=Payload(result.encode())
        )
        await until_answered(lambda: stores.execution.complete(complete))
        witness.saw(
            Fact(
                what="completed",
                execution_id=lease.execution_id,
                attempt_index=lease.attempt_index,
                data=result,
            )
        )
    except Refused:
        # The lease was lost while the call was on its way: somebody else runs this now.
        return


async def main(url: str, folder: Path) -> None:
    """Claim and hold until killed."""
    witness = Witness(folder)
    async with open_stores(url) as opened:
        while True:
            claim = LeaseClaim(
                worker_id=WorkerId("holder"),
                worker_instance=WorkerInstance(f"holder-{os.getpid()}"),
                lanes=(Lane(LANE),),
                max_tasks=4,
                lease_ttl_ms=LEASE_TTL_MS,
                wait_ms=1_000,
                claim_id=ClaimId(ids.mint_uuid()),
            )
            claimed = await until_answered(lambda claim=claim: opened.stores.lease.claim(claim))
            await asyncio.gather(*(hold(opened.stores, lease, witness) for lease in claimed.leases))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
