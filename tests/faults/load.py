"""Continuous load on a store, and everything that was acknowledged on the way.

A `Load` opens the store several times, as several processes would: one submits and reads results, the others hold
leases (claim, append, renew, fail now and then, complete) and run timers. A call whose outcome is unknown is repeated
as it is until it is answered; nothing else is ever repeated, and nobody is told that a server went away. Whatever a
caller must not see (an error that is neither a refusal nor `Unavailable`) ends the load and fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec
import pytest

from flowfabric import backends
from flowfabric.contract import ids
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import ExecutionNotFound, ExecutionNotTerminal, Refused, Unavailable
from flowfabric.contract.execution import (
    ExecutionComplete,
    ExecutionCreate,
    ExecutionCreateMany,
    ExecutionDescribe,
    ExecutionFail,
    ExecutionReadResult,
    ItemRefused,
    ResultCompleted,
)
from flowfabric.contract.ids import (
    ClaimId,
    ExecutionId,
    Kind,
    Lane,
    PartitionCounts,
    WorkerId,
    WorkerInstance,
)
from flowfabric.contract.lease import Lease, LeaseClaim, LeaseRenew
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy, FixedBackoff, RetryPolicy, StreamPolicy
from flowfabric.contract.states import FailureClass
from flowfabric.contract.stream import FrameInput, StreamAppend
from flowfabric.engine.supervisor import Engine
from tests.faults.witness import Fact

LANE: Final = Lane("held")
SDK_LANE: Final = Lane("sdk")
"""Served by `tests.faults.app`."""
LEASE_TTL_MS: Final = 1_000
CLAIMS_AT_ONCE: Final = 2
"""Of each holder."""
FRAMES: Final = 2
OUTSTANDING_MAX: Final = 64
PATIENCE_S: Final = 20.0
"""How long a test waits for something that must happen; never how long it takes."""
SETTLE_S: Final = 60.0
"""Longer than the store takes to sweep by itself."""
FEW: Final = PartitionCounts(flow=32)
POLICY: Final = ExecutionPolicy(
    retry_policy=RetryPolicy(max_retries=1_000, backoff=FixedBackoff(delay_ms=10)),
    max_reclaim_count=10_000,
    stream_policy=StreamPolicy(durability_mode="durable"),
)


class Held(msgspec.Struct, kw_only=True):
    """What a holder knows of one lease."""

    execution_id: ExecutionId
    lease_id: str
    lease_epoch: int
    acquired_at_ms: int
    expires_at_ms: int
    """As the latest acknowledged renewal has it."""
    is_over: bool = False
    """Its holder has had the end of the attempt acknowledged."""


class Seen:
    """Everything that was acknowledged."""

    def __init__(self) -> None:
        self.created: Final[dict[ExecutionId, int]] = {}
        self.results: Final[dict[ExecutionId, ResultCompleted]] = {}
        self.lost: Final[set[ExecutionId]] = set()
        """Acknowledged creates that the store no longer knows: only where it may forget."""
        self.facts: Final[list[Fact]] = []
        self.held: Final[list[Held]] = []

    def add(self, facts: Iterable[Fact]) -> None:
        """Add what other processes wrote down."""
        self.facts.extend(facts)


class Load:
    """A busy store. Made by `loading`."""

    def __init__(
        self,
        submitter: Backend,
        holders: list[Backend],
        *,
        partitions: PartitionCounts,
        sdk: bool,
        forgets: bool,
    ) -> None:
        self.backend: Final = submitter
        """For looking at the store."""
        self.holders: Final = holders
        self.seen: Final = Seen()
        self.unavailable = 0
        """How often a call could not be answered."""
        self._partitions = partitions
        self._sdk = sdk
        self._forgets = forgets
        self._stopping = False
        self._news: Final = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        claiming = (self._claim(holder, at) for holder in self.holders for at in range(CLAIMS_AT_ONCE))
        for work in (self._submit(), *claiming):
            task = asyncio.create_task(work)
            task.add_done_callback(lambda _: self._news.set())
            self._tasks.append(task)

    async def progress(self, count: int = 20, *, within_s: float = PATIENCE_S) -> None:
        """Wait until so many more executions have ended; the test fails when they do not."""
        wanted = len(self.seen.results) + count
        try:
            async with asyncio.timeout(within_s):
                while len(self.seen.results) < wanted:
                    self._check()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"no progress within {within_s:g} s\n{await self._stuck()}")

    async def finish(self, *, within_s: float = SETTLE_S) -> Seen:
        """Submit nothing more, wait until everything has ended, stop; return what was acknowledged."""
        self._stopping = True
        submitting = self._tasks[0]
        try:
            async with asyncio.timeout(within_s):
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pytest.fail(f"not everything ended within {within_s:g} s\n{await self._stuck()}")
        self._check()
        assert submitting.done()
        await self.stop()
        seen = self.seen
        print(
            f"{len(seen.created)} executions, {len(seen.lost)} forgotten, {len(seen.held)} leases, "
            f"{len(seen.facts)} facts, {self.unavailable} calls not answered"
        )
        return seen

    async def stop(self) -> None:
        """Stop everything at once."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Private ------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        for task in self._tasks:
            error = task.exception() if task.done() and not task.cancelled() else None
            if error is not None:
                pytest.fail("".join(traceback.format_exception(error)))

    async def _stuck(self) -> str:
        """Describe some of the executions that have not ended."""
        lines: list[str] = []
        left = [item for item in self.seen.created if item not in self.seen.results]
        for execution_id in left[:5]:
            try:
                found = await self.backend.execution.describe(ExecutionDescribe(execution_id=execution_id))
                lines.append(f"{execution_id} {found.lane} {found.public_state} {found.current_lease}")
            except (Refused, Unavailable) as error:
                lines.append(f"{execution_id}: {error!r}")
        return "\n".join([f"{len(left)} executions have not ended", *lines])

    async def _answered(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Repeat a call until it is answered or refused."""
        while True:
            try:
                return await call()
            except Unavailable:
                self.unavailable += 1
                await asyncio.sleep(0.02)  # sleeps: a client asks again shortly

    # Submitting ---------------------------------------------------------------------------------------------------

    async def _submit(self) -> None:
        """Submit until told to stop, then wait for every result."""
        number = 0
        async with asyncio.TaskGroup() as group:
            watching: set[asyncio.Task[None]] = set()
            while not self._stopping:
                if len(watching) < OUTSTANDING_MAX:
                    before = set(self.seen.created)
                    await asyncio.gather(
                        *(self._create(number + at) for at in range(4)), self._create_batch(number + 4, 4)
                    )
                    number += 8
                    watching |= {
                        group.create_task(self._watch(item))
                        for item in self.seen.created
                        if item not in before
                    }
                else:
                    await asyncio.wait(watching, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
                watching = {task for task in watching if not task.done()}

    def _command(self, number: int) -> ExecutionCreate:
        sdk = self._sdk and number % 2 == 0
        if sdk:
            data = b'{"number":%d}' % number
        else:
            # Every third input is larger than what stores keep inside the record.
            data = b"%d%s" % (number, b" " * 3_000 if number % 3 == 0 else b"")
        by_key = number % 4 != 1
        return ExecutionCreate(
            kind=Kind("streamed" if sdk else "held"),
            lane=SDK_LANE if sdk else LANE,
            input=Payload(data),
            idempotency_key=f"number {number}" if by_key else None,
            execution_id=None if by_key else ids.mint_execution_id(self._partitions),
            policy=POLICY,
        )

    async def _create(self, number: int) -> None:
        command = self._command(number)
        reply = await self._answered(lambda: self.backend.execution.create(command))
        self._created(reply.execution_id, number)

    async def _create_batch(self, first: int, count: int) -> None:
        command = ExecutionCreateMany(executions=tuple(self._command(first + at) for at in range(count)))
        while True:
            reply = await self._answered(lambda: self.backend.execution.create_many(command))
            refused = [item for item in reply.results if isinstance(item, ItemRefused)]
            assert all(item.retryable for item in refused), refused
            if not refused:
                break
            await asyncio.sleep(0.02)  # sleeps: a client asks again shortly
        for at, item in enumerate(reply.results):
            self._created(item.execution_id, first + at)

    def _created(self, execution_id: ExecutionId, number: int) -> None:
        assert execution_id not in self.seen.created, "one execution for two keys"
        self.seen.created[execution_id] = number

    async def _watch(self, execution_id: ExecutionId) -> None:
        """Wait for a result."""
        read = ExecutionReadResult(execution_id=execution_id, wait_ms=5_000)
        while True:
            try:
                result = await self._answered(lambda: self.backend.execution.read_result(read))
            except ExecutionNotTerminal:
                continue
            except ExecutionNotFound:
                if not self._forgets:
                    raise
                del self.seen.created[execution_id]
                self.seen.lost.add(execution_id)
                return
            assert isinstance(result, ResultCompleted), result
            self.seen.results[execution_id] = result
            self._news.set()
            return

    # Holding ------------------------------------------------------------------------------------------------------

    async def _claim(self, backend: Backend, at: int) -> None:
        """Claim and hold, for ever."""
        while True:
            claim = LeaseClaim(
                worker_id=WorkerId("load"),
                worker_instance=WorkerInstance(f"load-{os.getpid()}-{at}"),
                lanes=(LANE,),
                max_tasks=8,
                lease_ttl_ms=LEASE_TTL_MS,
                wait_ms=1_000,
                claim_id=ClaimId(ids.mint_uuid()),
            )
            claimed = await self._answered(lambda claim=claim: backend.lease.claim(claim))
            await asyncio.gather(*(self._hold(backend, lease) for lease in claimed.leases))

    async def _hold(self, backend: Backend, lease: Lease) -> None:
        """Run one execution: frames, a renewal, an end; a refusal means that somebody else has it by now."""
        held = Held(
            execution_id=lease.execution_id,
            lease_id=lease.lease_id,
            lease_epoch=lease.lease_epoch,
            acquired_at_ms=lease.lease_expires_at_ms - lease.lease_ttl_ms,
            expires_at_ms=lease.lease_expires_at_ms,
        )
        self.seen.held.append(held)
        number = int(lease.input.data)
        self._saw("started", lease)
        with contextlib.suppress(Refused):
            for sequence in range(1, FRAMES + 1):
                await self._append(backend, lease, number, sequence)
            renew = LeaseRenew(execution_id=lease.execution_id, fence=lease.fence)
            renewed = await self._answered(lambda: backend.lease.renew(renew))
            held.expires_at_ms = renewed.lease_expires_at_ms
            if number % 7 == 3 and lease.attempt_index == 0:
                fail = ExecutionFail(
                    execution_id=lease.execution_id,
                    fence=lease.fence,
                    failure_class=FailureClass.TRANSIENT,
                    category="load",
                    message="once",
                )
                await self._answered(lambda: backend.execution.fail(fail))
                held.is_over = True
                return
            padding = "x" * 2_000 if number % 5 == 0 else ""
            result = (
                f'{{"number":{number},"attempt":{lease.attempt_index},"epoch":{lease.lease_epoch},'
                f'"padding":"{padding}"}}'
            )
            complete = ExecutionComplete(
                execution_id=lease.execution_id, fence=lease.fence, result=Payload(result.encode())
            )
            await self._answered(lambda: backend.execution.complete(complete))
            held.is_over = True
            self._saw("completed", lease, data=result)

    async def _append(self, backend: Backend, lease: Lease, number: int, sequence: int) -> None:
        data = f"[{number},{sequence}]"
        append = StreamAppend(
            execution_id=lease.execution_id,
            attempt_index=lease.attempt_index,
            fence=lease.fence,
            frames=(FrameInput(sequence=sequence, payload=Payload(data.encode())),),
        )
        await self._answered(lambda: backend.stream.append(append))
        self._saw("frame", lease, sequence=sequence, data=data)

    def _saw(self, what: Any, lease: Lease, *, sequence: int = 0, data: str = "") -> None:
        self.seen.facts.append(
            Fact(
                what=what,
                execution_id=lease.execution_id,
                attempt_index=lease.attempt_index,
                sequence=sequence,
                data=data,
            )
        )


@contextlib.asynccontextmanager
async def loading(
    url: str, *, holders: int = 2, sdk: bool = False, forgets: bool = False, partitions: PartitionCounts = FEW
) -> AsyncIterator[Load]:
    """Open the store and keep it busy.

    `sdk`: half of the work is for `tests.faults.app`; `forgets`: the store may lose acknowledged creates.
    """
    async with contextlib.AsyncExitStack() as stack:
        opened: list[Backend] = []
        for at in range(1 + holders):
            backend = await backends.connect(url, partitions=partitions)
            stack.push_async_callback(backend.close)
            opened.append(backend)
            if at > 0:
                engine = Engine(backend)
                await engine.start()
                stack.push_async_callback(engine.stop)
        load = Load(opened[0], opened[1:], partitions=partitions, sdk=sdk, forgets=forgets)
        load.start()
        stack.push_async_callback(load.stop)
        yield load
