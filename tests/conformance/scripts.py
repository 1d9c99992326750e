"""Random scripts of commands: how they are drawn, how one is carried out, what must hold after every command.

A script is plain data, so that it shrinks well and could be run against several stores. Whatever a command names that
does not exist (yet) is chosen among what there is: the third execution, the second lease.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from flowfabric.contract.errors import Refused
from flowfabric.contract.execution import ExecutionSnapshot
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.lease import Lease, LeasesClaimed, LeaseTaken
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import RoutingRequirements, StreamPolicy
from flowfabric.contract.states import (
    TERMINAL_STATES,
    BlockingReason,
    CancelSource,
    ExpireReason,
    FailureClass,
    FrameMode,
    GrantPurpose,
    LaneState,
    PublicState,
)
from flowfabric.contract.stream import FramesAppended
from tests.conformance.world import UNKNOWN, World, frame
from tests.rules.driving import CREATES, long_lists

LANES: Final = ("default", "other")
WORKERS: Final = ("a", "b", "c")
KEYS: Final = ("key 1", "key 2")
CLAIM_IDS: Final = tuple(f"{number}0000000-0000-4000-8000-000000000000" for number in range(3))


class Step(msgspec.Struct, frozen=True):
    """One command, after some time has passed."""

    name: str
    fields: dict[str, Any]
    pick: int = 0
    """Which execution or lease, counted from the latest."""
    wait_ms: int = 0
    timers: bool = True
    """Do what is due before the command."""


def _step(name: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        st.just(name),
        st.fixed_dictionaries(fields),
        st.sampled_from([0, 0, 0, 0, 1, 1, 2, 5, 99]),
        st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, 300, 1_000, 9_000, -60_000]),
        st.booleans(),
    )


_FROM_NOW: Final = st.sampled_from([None] * 8 + [-5, 0, 700, 8_000])
_SOURCES: Final = st.sampled_from([CancelSource.LEASE_HOLDER] * 3 + [CancelSource.OPERATOR_OVERRIDE])
_CAPABILITIES: Final = st.sampled_from([(), (), ("gpu",), ("gpu", "eu")])
_TTLS: Final = st.sampled_from([500, 3_000, 60_000, 60_000])

CREATE: Final = st.builds(
    lambda command, lane, kind, priority, key, required, maxlen, retention_ms, delay_ms, deadline_ms: {
        "lane": lane,
        "kind": kind,
        "priority": priority,
        "idempotency_key": key,
        "delay": delay_ms,
        "deadline": deadline_ms,
        "policy": msgspec.structs.replace(
            command.policy,
            routing_requirements=RoutingRequirements(required_capabilities=required),
            stream_policy=StreamPolicy(retention_maxlen=maxlen, retention_ttl_ms=retention_ms),
            retention_ms=retention_ms * 2 if retention_ms is not None else None,
        ),
    },
    CREATES,
    st.sampled_from(LANES),
    st.sampled_from(["k", "m"]),
    st.integers(0, 2),
    st.none() | st.sampled_from(KEYS),
    _CAPABILITIES,
    st.integers(1, 4),
    st.none() | st.sampled_from([500, 5_000]),
    _FROM_NOW,
    _FROM_NOW,
)


def _worker_fields(**more: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    return {"worker": st.sampled_from(WORKERS), **more}


_CREATE: Final = st.builds(Step, st.just("execution.create"), CREATE)
_CLAIM: Final = _step(
    "lease.claim",
    **_worker_fields(
        lanes=st.just(LANES),
        capabilities=st.just(("gpu", "eu")),
        max_tasks=st.integers(1, 3),
        lease_ttl_ms=_TTLS,
        claim_id=st.none() | st.sampled_from(CLAIM_IDS),
    ),
)
_PICKY_CLAIM: Final = _step(
    "lease.claim",
    **_worker_fields(lanes=st.just(LANES[:1]), kinds=st.just(("k",)), capabilities=_CAPABILITIES),
)
_BY_HOLDER: Final = st.one_of(
    _step("execution.complete", result=st.none() | st.binary(max_size=4).map(Payload), source=_SOURCES),
    _step("execution.fail", failure_class=st.sampled_from(FailureClass), source=_SOURCES),
    _step("execution.cancel", source=_SOURCES),
    _step("execution.delay", delay=st.sampled_from([-5, 0, 700, 8_000])),
    _step("execution.wait_children"),
    _step("execution.progress", percent=st.none() | st.floats(0, 100)),
    _step("lease.renew", lease_ttl_ms=st.none() | _TTLS),
    _step("lease.release"),
    _step(
        "stream.append",
        ahead=st.sampled_from([1, 1, 1, 0, 2]),
        mode=st.sampled_from(FrameMode),
        count=st.integers(1, 3),
    ),
)
_BY_OTHERS: Final = st.one_of(
    _step(
        "lease.grant",
        **_worker_fields(
            purpose=st.none() | st.sampled_from(GrantPurpose),
            capabilities=st.sampled_from([("gpu", "eu"), ()]),
            grant_ttl_ms=st.sampled_from([200, 5_000]),
        ),
    ),
    _step("lease.claim_granted", **_worker_fields(lease_ttl_ms=_TTLS)),
    _step("lease.revoke"),
    _step("lease.expire"),
    _step("execution.promote"),
    _step("execution.expire", reason=st.sampled_from(ExpireReason)),
    _step("execution.block", reason=st.sampled_from(BlockingReason)),
    _step("execution.unblock"),
    _step("execution.replay"),
    _step("execution.trim"),
    _step("execution.set_tags", tags=st.just({"a.b": "c"})),
    _step("execution.change_priority", priority=st.integers(-1, 9_001)),
    _step("lane.set_state", lane=st.sampled_from(LANES), state=st.sampled_from(LaneState)),
    _step("worker.register", **_worker_fields(liveness_ttl_ms=st.sampled_from([500, 60_000]))),
    _step("worker.heartbeat", instance=st.sampled_from(WORKERS)),
    _step("worker.mark_dead", instance=st.sampled_from(WORKERS)),
    _step("worker.expire", instance=st.sampled_from(WORKERS)),
)
STEPS: Final = st.one_of(_CREATE, *[_CLAIM] * 4, _PICKY_CLAIM, *[_BY_HOLDER] * 5, *[_BY_OTHERS] * 3)
SCRIPTS: Final = st.tuples(
    st.lists(_CREATE, min_size=2, max_size=6), st.lists(_CLAIM, min_size=1, max_size=3), long_lists(STEPS, 60)
).map(lambda parts: [step for part in parts for step in part])
"""A few executions, a claim or two, and then anything."""

HOLDERS: Final = frozenset(
    {
        "lease.renew",
        "lease.release",
        "execution.complete",
        "execution.fail",
        "execution.cancel",
        "execution.delay",
        "execution.wait_children",
        "execution.progress",
        "stream.append",
    }
)
"""Commands that a lease's holder sends."""


class Script:
    """Carries out steps and keeps what a client saw, to hold the store to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.executions: list[ExecutionId] = []
        self.leases: list[Lease] = []
        self.sequences: dict[str, int] = {}
        self.ends: dict[tuple[str, int], tuple[PublicState, Any]] = {}
        self.gone: set[str] = set()

    async def run(self, steps: list[Step]) -> None:
        """Carry out a whole script, checking after every step, and see that everything can come to its end."""
        for step in steps:
            self.world.clock.advance(step.wait_ms)
            if step.timers:
                await self.world.advance(0)
            await self._carry_out(step)
            await self._check()
        await self._finish()

    async def _carry_out(self, step: Step) -> None:
        subject, fields = self._arguments(step)
        try:
            reply = await self.world.call(step.name, subject, **fields)
        except Refused:
            return
        if step.name == "execution.create" and reply.execution_id not in self.executions:
            self.executions.append(reply.execution_id)
        if isinstance(reply, LeasesClaimed):
            for lease in reply.leases:
                self._note(lease)
        if isinstance(reply, LeaseTaken):
            self._note(reply.lease)
        if isinstance(subject, Lease) and isinstance(reply, FramesAppended):
            self.sequences[f"{subject.execution_id} {subject.attempt_index}"] = reply.last_sequence

    def _arguments(self, step: Step) -> tuple[Lease | str | None, dict[str, Any]]:
        fields = dict(step.fields)
        for given, field in (("delay", "delay_until_ms"), ("deadline", "deadline_at_ms")):
            offset_ms = fields.pop(given, None)
            if offset_ms is not None:
                fields[field] = self.world.now_ms + offset_ms
        if "worker" in fields:
            worker = fields.pop("worker")
            fields |= {"worker_id": worker, "worker_instance": f"{worker}-1"}
        if "instance" in fields:
            fields["worker_instance"] = f"{fields.pop('instance')}-1"
        if step.name == "worker.register":
            fields["lanes"] = LANES
        if step.name.startswith(("lane.", "worker.")) or step.name in ("execution.create", "lease.claim"):
            return None, fields
        if step.name in HOLDERS and self.leases:
            lease = self.leases[-1 - step.pick % len(self.leases)]
            if fields.get("source") is CancelSource.OPERATOR_OVERRIDE:
                return lease.execution_id, fields
            if step.name == "stream.append":
                fields = self._frames(lease, **fields)
            return lease, fields
        if step.name == "stream.append":
            fields = {"attempt_index": 0, "frames": (frame(1),)}
        execution_id = self.executions[-1 - step.pick % len(self.executions)] if self.executions else UNKNOWN
        return execution_id, fields

    def _frames(self, lease: Lease, *, ahead: int, mode: FrameMode, count: int) -> dict[str, Any]:
        known = self.sequences.get(f"{lease.execution_id} {lease.attempt_index}", 0)
        first = max(1, known + ahead)
        ttl_ms = 400 if mode is FrameMode.BEST_EFFORT else None
        frames = tuple(
            frame(first + number, b'{"a": 1}', mode=mode, ttl_ms=ttl_ms) for number in range(count)
        )
        return {"frames": frames}

    def _note(self, lease: Lease) -> None:
        """Hold a lease against the earlier ones: never the same id for another, always a higher epoch."""
        for earlier in self.leases:
            if earlier.lease_id == lease.lease_id:
                assert (earlier.execution_id, earlier.lease_epoch) == (lease.execution_id, lease.lease_epoch)
                return
            if earlier.execution_id == lease.execution_id:
                assert lease.lease_epoch > earlier.lease_epoch, "two leases of one epoch"
                assert lease.attempt_index >= earlier.attempt_index
        self.leases.append(lease)

    # What must hold -----------------------------------------------------------------------------------------------

    async def _check(self) -> None:
        report = await self.world.backend.maintenance.fsck()
        assert not report.findings, report.findings
        assert set(await self.world.listed(limit=1_000)) <= set(self.executions)
        for execution_id in self.executions:
            try:
                seen = await self.world.describe(execution_id)
            except Refused as refusal:
                assert refusal.code == "execution_not_found"
                self.gone.add(execution_id)
                continue
            assert execution_id not in self.gone, "what retention removed came back"
            await self._check_end(seen)

    async def _check_end(self, seen: ExecutionSnapshot) -> None:
        """An end never changes: one outcome and one result for every run."""
        if seen.public_state not in TERMINAL_STATES:
            assert (str(seen.execution_id), seen.replay_count) not in self.ends, "a finished run goes on"
            return
        result = await self.world.execution.read_result(seen.execution_id)
        known = self.ends.setdefault((str(seen.execution_id), seen.replay_count), (seen.public_state, result))
        assert known == (seen.public_state, result)

    async def _finish(self) -> None:
        """Nothing is stuck: with lanes open, blocks lifted and capable workers, everything ends."""
        world = self.world
        for lane in LANES:
            await world.lane.set_state(lane=lane, state="active")
        for _ in range(30):
            await world.advance(100_000)
            left = [info for info in await self._live() if info.public_state not in TERMINAL_STATES]
            if not left:
                return
            for info in left:
                if info.state_vector.eligibility_state.value.startswith("blocked_by"):
                    await world.execution.unblock(info.execution_id)
            for lease in await world.claim("z", lanes=LANES, capabilities=("gpu", "eu"), max_tasks=100):
                await world.execution.complete(lease)
        raise AssertionError(f"stuck: {await self._live()}")

    async def _live(self) -> list[Any]:
        return await self.world.pages("execution.list", "executions", limit=1_000)
