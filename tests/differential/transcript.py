"""What a client sees of a script, written down so that two stores can be compared.

Identifiers that a store mints are replaced by numbers in the order of their appearance; cursors and event ids, which
are opaque, are left out. Everything else, every reply, refusal with its details, record, history, frame and result,
must be the same. Work is in one partition and on one route per script, where the order of claims is exact.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec

from flowfabric.contract.errors import Refused
from flowfabric.contract.ids import ExecutionId, Lane, PartitionCounts
from flowfabric.contract.lease import Lease, LeasesClaimed, LeaseTaken
from flowfabric.contract.policies import RoutingRequirements
from flowfabric.contract.stream import ATTEMPT_STARTED, FramesAppended
from tests.conformance.scripts import Script, Step
from tests.conformance.world import World

ONE_PARTITION: Final = PartitionCounts(flow=1, budget=1, quota=1)
_MINTED: Final = ("lease_id", "attempt_id")
_OPAQUE: Final = ("event_id", "next_cursor", "message")


class Transcript(Script):
    """Carries out a script and writes down all that can be seen."""

    def __init__(self, world: World, required: tuple[str, ...]) -> None:
        super().__init__(world)
        self.lines: list[Any] = []
        self._required = required
        self._created = 0
        self._tokens: dict[str, str] = {}

    async def run(self, steps: list[Step]) -> None:
        """Carry out the script, looking at everything after every step."""
        for step in steps:
            self.world.clock.advance(abs(step.wait_ms))
            if step.timers:
                await self.world.advance(0)
            await self._step(step)
            for execution_id in self.executions:
                await self._look(execution_id)

    async def _step(self, step: Step) -> None:
        subject, fields = self._arguments(step)
        if step.name == "execution.create":
            fields |= self._placed(fields)
        try:
            reply = await self.world.call(step.name, subject, **fields)
        except Refused as refusal:
            self._note_line(step.name, refusal.code, refusal.details)
            return
        self._note_line(step.name, type(reply).__name__, reply)
        if step.name == "execution.create" and reply.execution_id not in self.executions:
            self.executions.append(reply.execution_id)
        leases: tuple[Lease, ...] = ()
        if isinstance(reply, LeasesClaimed):
            leases = reply.leases
        elif isinstance(reply, LeaseTaken):
            leases = (reply.lease,)
        known = {lease.lease_id for lease in self.leases}
        self.leases += [lease for lease in leases if lease.lease_id not in known]
        if isinstance(subject, Lease) and isinstance(reply, FramesAppended):
            self.sequences[f"{subject.execution_id} {subject.attempt_index}"] = reply.last_sequence

    def _placed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Give a create the next id of the script, and its one route."""
        self._created += 1
        minted = uuid.uuid5(uuid.NAMESPACE_OID, str(self._created))
        execution_id = uuid.UUID(bytes=minted.bytes, version=4)
        policy = msgspec.structs.replace(
            fields["policy"], routing_requirements=RoutingRequirements(required_capabilities=self._required)
        )
        return {
            "execution_id": ExecutionId(f"{{fp:0}}:{execution_id}"),
            "lane": Lane("default"),
            "kind": "k",
            "policy": policy,
        }

    async def _look(self, execution_id: ExecutionId) -> None:
        """Write down everything there is to read about an execution."""
        for name, more in (
            ("execution.describe", {}),
            ("execution.read_context", {}),
            ("execution.read_result", {}),
            ("attempt.list", {}),
            ("lease.history", {}),
            ("stream.read", {}),
        ):
            try:
                seen = await self.world.call(name, execution_id, **more)
            except Refused as refusal:
                self._note_line(name, refusal.code, refusal.details)
            else:
                self._note_line(name, type(seen).__name__, seen)

    def _note_line(self, name: str, outcome: str, what: Any) -> None:
        self.lines.append((name, outcome, self._plain(msgspec.to_builtins(what))))

    def _plain(self, value: Any, field: str = "") -> Any:
        if isinstance(value, dict):
            if value.get("frame_type") == ATTEMPT_STARTED:
                # Its payload tells the attempt's id, which the rest of the transcript does too.
                value = {key: item for key, item in value.items() if key != "payload"}
            return {key: self._plain(item, key) for key, item in value.items() if key not in _OPAQUE}
        if isinstance(value, (list, tuple)):
            return [self._plain(item, field) for item in value]
        if field in _MINTED and isinstance(value, str):
            return self._tokens.setdefault(value, f"{field} {len(self._tokens)}")
        return value
