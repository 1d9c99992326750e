"""A store, its clock and short ways to say what tests do with them.

`world.execution.complete(lease, result=...)` builds the command that the manifest declares and calls the store; a lease
as the first argument gives execution id, fence and attempt index, an execution id itself. `refused` expects a refusal
and checks that nothing a reader can see has changed.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.contract.backend import Backend, Stores
from flowfabric.contract.errors import FlowFabricError, Refused
from flowfabric.contract.execution import ExecutionSnapshot
from flowfabric.contract.ids import ExecutionId, PartitionCounts
from flowfabric.contract.lease import Lease, LeaseEvent
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import (
    ExecutionPolicy,
    FixedBackoff,
    RetryPolicy,
    RoutingRequirements,
    TimeoutPolicy,
)
from flowfabric.contract.states import PublicState
from flowfabric.contract.stream import Frame, FrameInput
from flowfabric.engine.timers import run_due

START_MS: Final = 1_760_000_000_000
TTL_MS: Final = 10_000
UNKNOWN: Final = ExecutionId("{fp:7}:00000000-0000-4000-8000-000000000000")
OTHER_UUID: Final = "11111111-1111-4111-8111-111111111111"
PATIENCE_S: Final = 20.0
"""How long a test waits for something that must happen; never how long it takes."""

Error = TypeVar("Error", bound=FlowFabricError)


def command(name: str, subject: Lease | str | None = None, /, **fields: Any) -> msgspec.Struct:
    """Build an operation's command; a lease gives what its holder sends with every call."""
    kind = OPERATIONS[name].command
    if isinstance(subject, Lease):
        for field, value in (
            ("execution_id", subject.execution_id),
            ("fence", subject.fence),
            ("attempt_index", subject.attempt_index),
        ):
            if field in kind.__struct_fields__:
                fields.setdefault(field, value)
    elif subject is not None:
        fields.setdefault("execution_id", subject)
    for field, enum in _enums(kind).items():
        if type(fields.get(field)) is str:
            fields[field] = enum(fields[field])
    return kind(**fields)


@cache
def _enums(kind: type[msgspec.Struct]) -> dict[str, type[StrEnum]]:
    """Return the command's fields that hold a word of a closed set, so that tests may write the word."""
    return {
        field: part
        for field, hint in typing.get_type_hints(kind).items()
        for part in (hint, *typing.get_args(hint))
        if isinstance(part, type) and issubclass(part, StrEnum)
    }


class Calls:
    """The operations of one concept, each as a function of its command's fields.

    Whatever they answer or refuse must be what the manifest declares.
    """

    def __init__(self, concept: str, store: object) -> None:
        self._concept = concept
        self._store = store

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._store, verb)
        operation = OPERATIONS[f"{self._concept}.{verb}"]

        async def call(subject: Lease | str | None = None, /, **fields: Any) -> Any:
            try:
                reply = await method(command(operation.name, subject, **fields))
            except Refused as refusal:
                assert type(refusal) in operation.refuses, f"{operation.name}: {refusal!r} is not declared"
                raise
            assert type(reply) in operation.replies
            return reply

        return call


def payload(text: str) -> Payload:
    """Make a JSON payload."""
    return Payload(text.encode())


def policy(**fields: Any) -> ExecutionPolicy:
    """Make a policy."""
    return ExecutionPolicy(**fields)


def retrying(max_retries: int = 3, delay_ms: int = 1_000, **fields: Any) -> ExecutionPolicy:
    """Make a policy with retries after a fixed delay."""
    retry = RetryPolicy(max_retries=max_retries, backoff=FixedBackoff(delay_ms=delay_ms))
    return ExecutionPolicy(retry_policy=retry, **fields)


def requiring(*capabilities: str) -> ExecutionPolicy:
    """Make a policy that requires capabilities."""
    return ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=capabilities))


def timing(**fields: int) -> TimeoutPolicy:
    """Make a timeout policy."""
    return TimeoutPolicy(**fields)


def frame(sequence: int, data: bytes = b"1", **fields: Any) -> FrameInput:
    """Make a frame to append."""
    return FrameInput(sequence=sequence, payload=Payload(data), **fields)


class World:
    """A store, its clock, and what tests do with them."""

    def __init__(self, backend: Backend, clock: ManualClock, stores: Stores | None = None) -> None:
        """Use the backend's own stores, or others that lead to it."""
        through: Stores = stores if stores is not None else backend
        self.backend: Final = backend
        self.clock: Final = clock
        self.execution: Final = Calls("execution", through.execution)
        self.lease: Final = Calls("lease", through.lease)
        self.attempt: Final = Calls("attempt", through.attempt)
        self.stream: Final = Calls("stream", through.stream)
        self.worker: Final = Calls("worker", through.worker)
        self.lane: Final = Calls("lane", through.lane)

    def call(
        self, name: str, subject: Lease | str | None = None, /, **fields: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call an operation by its name."""
        concept, _, verb = name.partition(".")
        return getattr(getattr(self, concept), verb)(subject, **fields)

    # Time ---------------------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """The present instant."""
        return self.clock.now_ms()

    async def advance(self, ms: int) -> int:
        """Move the clock and do what is due then; return how many timers were served."""
        self.clock.advance(ms)
        return await run_due(self.backend)

    async def partitions(self) -> PartitionCounts:
        """Return how many partitions the store was made with."""
        return (await self.backend.capabilities()).partitions

    # Getting somewhere --------------------------------------------------------------------------------------------

    async def create(self, **fields: Any) -> ExecutionId:
        """Create an execution of kind `k` unless told otherwise."""
        fields.setdefault("kind", "k")
        return (await self.execution.create(**fields)).execution_id

    async def claim(self, worker: str = "w", **fields: Any) -> tuple[Lease, ...]:
        """Claim as a worker from lane `default` unless told otherwise."""
        fields = {
            "worker_id": worker,
            "worker_instance": f"{worker}-1",
            "lanes": ("default",),
            "lease_ttl_ms": TTL_MS,
            **fields,
        }
        return (await self.lease.claim(**fields)).leases

    async def claim_one(self, worker: str = "w", **fields: Any) -> Lease:
        """Claim exactly one execution."""
        leases = await self.claim(worker, **fields)
        assert len(leases) == 1, f"{len(leases)} leases"
        return leases[0]

    async def leased(self, worker: str = "w", *, lease_ttl_ms: int = TTL_MS, **fields: Any) -> Lease:
        """Create an execution and claim it; nothing better may be eligible."""
        execution_id = await self.create(**fields)
        lease = await self.claim_one(
            worker,
            lease_ttl_ms=lease_ttl_ms,
            lanes=(fields.get("lane", "default"),),
            capabilities=_all(fields),
        )
        assert lease.execution_id == execution_id, "something better was eligible"
        return lease

    async def completed(self, result: Payload | None = None, **fields: Any) -> Lease:
        """Create, claim and complete an execution."""
        lease = await self.leased(**fields)
        await self.execution.complete(lease, result=result)
        return lease

    async def grant(self, execution_id: str, worker: str = "w", **fields: Any) -> Any:
        """Grant an execution to a worker."""
        return await self.lease.grant(execution_id, worker_id=worker, worker_instance=f"{worker}-1", **fields)

    async def claim_granted(self, execution_id: str, worker: str = "w", **fields: Any) -> Any:
        """Use a grant."""
        fields = {"worker_id": worker, "worker_instance": f"{worker}-1", "lease_ttl_ms": TTL_MS, **fields}
        return await self.lease.claim_granted(execution_id, **fields)

    # Looking ------------------------------------------------------------------------------------------------------

    async def describe(self, execution_id: str) -> ExecutionSnapshot:
        """Read everything about an execution."""
        return await self.execution.describe(execution_id)

    async def state(self, execution_id: str) -> PublicState:
        """Read an execution's public state."""
        return (await self.execution.read_state(execution_id)).public_state

    async def history(self, execution_id: str) -> tuple[LeaseEvent, ...]:
        """Read an execution's whole lease history."""
        return tuple(await self.pages("lease.history", "events", execution_id, limit=1_000))

    async def events(self, execution_id: str) -> list[str]:
        """Name the steps of an execution's lease history."""
        return [event.name.value for event in await self.history(execution_id)]

    async def frames(self, execution_id: str, attempt_index: int | None = None) -> tuple[Frame, ...]:
        """Read the frames of an attempt, or of the whole run."""
        page = await self.stream.read(execution_id, attempt_index=attempt_index, limit=10_000)
        found = list(page.frames)
        while page.frames:
            page = await self.stream.tail(
                execution_id, attempt_index=attempt_index, after=page.next_cursor, limit=1_000
            )
            found += page.frames
        return tuple(found)

    async def lane_info(self, lane: str) -> Any:
        """Read one lane, or None."""
        lanes = (await self.lane.list()).lanes
        return next((info for info in lanes if info.lane == lane), None)

    async def listed(self, **filters: Any) -> list[ExecutionId]:
        """List the ids of all executions that pass the filters, page by page."""
        return [info.execution_id for info in await self.pages("execution.list", "executions", **filters)]

    async def pages(self, name: str, field: str, subject: str | None = None, /, **fields: Any) -> list[Any]:
        """Read a listing page by page; no page may be longer than asked for."""
        found: list[Any] = []
        cursor: str | None = None
        while True:
            page = await self.call(name, subject, cursor=cursor, **fields)
            entries = getattr(page, field)
            assert "limit" not in fields or len(entries) <= fields["limit"]
            found += entries
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def observe(self) -> dict[str, Any]:
        """Read everything that readers can see."""
        seen: dict[str, Any] = {
            "lanes": (await self.lane.list()).lanes,
            "workers": (await self.worker.list()).workers,
            "lost": (await self.lease.list_expired()).leases,
        }
        for info in await self.pages("execution.list", "executions", limit=1_000):
            execution_id = info.execution_id
            attempts = await self.pages("attempt.list", "attempts", execution_id, limit=1_000)
            seen[execution_id] = [
                info,
                await self.describe(execution_id),
                await self.execution.read_context(execution_id),
                attempts,
                await self.history(execution_id),
                await self.frames(execution_id),
                [
                    await self.stream.read_summary(execution_id, attempt_index=attempt.attempt_index)
                    for attempt in attempts
                ],
                await self._result(execution_id),
            ]
        return seen

    async def _result(self, execution_id: str) -> Any:
        try:
            return await self.execution.read_result(execution_id)
        except Refused as refusal:
            return refusal.code

    # Expecting ----------------------------------------------------------------------------------------------------

    async def refused(self, kind: type[Error], call: Awaitable[Any], **details: Any) -> Error:
        """Expect this refusal, with these details among its own, and that nothing readable changed."""
        before = await self.observe()
        with pytest.raises(FlowFabricError) as caught:
            await call
        refusal = caught.value
        assert type(refusal) is kind, repr(refusal)
        assert details.items() <= refusal.details.items(), refusal.details
        assert await self.observe() == before, "a refused call left traces"
        return refusal

    async def unchanged(self, call: Awaitable[Any]) -> Any:
        """Expect an answer, and that nothing readable changed."""
        before = await self.observe()
        reply = await call
        assert await self.observe() == before, "the call left traces"
        return reply

    async def race(self, *calls: Awaitable[Any]) -> list[Any]:
        """Make the calls at the same time; return replies and refusals in the order of the calls."""
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Refused):
                raise outcome
        return list(outcomes)


def _all(fields: dict[str, Any]) -> tuple[str, ...]:
    given: ExecutionPolicy | None = fields.get("policy")
    if given is None or given.routing_requirements is None:
        return ()
    return given.routing_requirements.required_capabilities


def won(outcomes: list[Any]) -> list[Any]:
    """Keep the replies of a race."""
    return [outcome for outcome in outcomes if not isinstance(outcome, Refused)]


def lost(outcomes: list[Any]) -> list[str]:
    """Keep the codes of the refusals of a race."""
    return [outcome.code for outcome in outcomes if isinstance(outcome, Refused)]
