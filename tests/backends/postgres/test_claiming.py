"""Claiming: whose turn it is over lanes and kinds, many claimers at once, and what others have locked."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import pytest

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.contract import limits
from flowfabric.contract.attempt import AttemptList
from flowfabric.contract.errors import Refused
from flowfabric.contract.execution import (
    ExecutionChangePriority,
    ExecutionCreate,
    ExecutionDescribe,
    ExecutionFail,
    ExecutionSetTags,
)
from flowfabric.contract.ids import ExecutionId, Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lane import LaneSetState
from flowfabric.contract.lease import (
    Lease,
    LeaseGrant,
    LeaseGranted,
    LeaseRelease,
    LeaseRevoke,
    NothingToGrant,
)
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import (
    ExecutionPolicy,
    FixedBackoff,
    RetryPolicy,
    RoutingRequirements,
    TimeoutPolicy,
)
from flowfabric.contract.states import FailureClass, LaneState, PublicState
from tests.backends.postgres.work import asleep, held, opened, store_of
from tests.backends.working import (
    PATIENCE_S,
    claim,
    claim_id,
    claiming,
    complete,
    create,
    create_many,
    served,
    until,
    waiting,
)
from tests.postgres.servers import Node

LANES: Final = (Lane("default"), Lane("other"), Lane("third"))


@pytest.fixture
async def store(still_node: Node, clock: ManualClock) -> AsyncIterator[PostgresBackend]:
    """A store whose clock stands still, with nothing wrong in it afterwards."""
    async with opened(still_node.url, clock=clock) as (backend,):
        yield backend
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings


def in_turn(work: dict[ExecutionId, tuple[int, int]]) -> list[ExecutionId]:
    """Put what waits into the order of claims; `work` holds priority and age."""
    return sorted(work, key=lambda each: (-work[each][0], work[each][1], each[-36:]))


async def some_work(
    backend: PostgresBackend, clock: ManualClock, chance: random.Random, count: int, priorities: int
) -> dict[ExecutionId, tuple[int, int]]:
    """Create work in three lanes, of four kinds; return priority and age of each."""
    work: dict[ExecutionId, tuple[int, int]] = {}
    for _ in range(count):
        priority = chance.randrange(priorities)
        execution_id = await create(
            backend, priority=priority, lane=chance.choice(LANES), kind=Kind(f"k{chance.randrange(4)}")
        )
        work[execution_id] = (priority, clock.now_ms())
        clock.advance(chance.choice((0, 0, 1, 40)))
    return work


# Order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 16, 40])
@pytest.mark.parametrize("priorities", [1, 4, 9_000])
async def test_the_order_over_lanes_and_kinds(
    store: PostgresBackend, clock: ManualClock, count: int, priorities: int
) -> None:
    """However many are claimed at once: exactly by priority, age, and id, over all lanes and kinds."""
    work = await some_work(store, clock, random.Random(count * priorities), 120, priorities)
    turn = in_turn(work)
    while turn:
        leases = await claim(store, max_tasks=count, lanes=LANES)
        assert [lease.execution_id for lease in leases] == turn[:count]
        del turn[:count]
    assert await claim(store, lanes=LANES) == ()


@pytest.mark.parametrize("lanes", [LANES[:1], LANES])
async def test_claims_made_together_share_the_best(
    store: PostgresBackend, clock: ManualClock, lanes: tuple[Lane, ...]
) -> None:
    """Claims that are looked for together get the best there is between them, each in order and nothing twice."""
    work = await some_work(store, clock, random.Random(7), 100, 3)
    turn = [each for each in in_turn(work) if (await described(store, each)).lane in lanes]
    wanted = (1, 1, 4, 2, 1, 3)
    answers = await asyncio.gather(
        *(claim(store, f"w{number}", max_tasks=most, lanes=lanes) for number, most in enumerate(wanted))
    )
    assert [len(leases) for leases in answers] == list(wanted)
    for leases in answers:
        got = [lease.execution_id for lease in leases]
        assert got == sorted(got, key=turn.index)
    everything = {lease.execution_id for leases in answers for lease in leases}
    assert everything == set(turn[: sum(wanted)])


async def test_claims_of_different_workers_made_together(store: PostgresBackend) -> None:
    """Each claim gets what its own lanes, kinds and capabilities allow, whoever else claims with it."""
    for lane in LANES:
        for kind in ("a", "b"):
            await create(store, lane=lane, kind=Kind(kind))
    needs = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=("gpu",)))
    await create(store, kind=Kind("c"), policy=needs)
    one, two, three, none = await asyncio.gather(
        claim(store, "w1", kinds=(Kind("a"),), lanes=LANES, max_tasks=9),
        claim(store, "w2", lanes=LANES[1:], max_tasks=9),
        claim(store, "w3", kinds=(Kind("c"),), capabilities=("gpu",)),
        claim(store, "w4", kinds=(Kind("c"),)),
    )
    assert {lease.kind for lease in one} == {"a"}
    assert {lease.lane for lease in two} <= {"other", "third"}
    assert len({lease.execution_id for lease in one + two}) == 5
    assert [lease.kind for lease in three] == ["c"]
    assert none == ()
    by_worker = {"w1": one, "w2": two, "w3": three}
    for worker, leases in by_worker.items():
        for lease in leases:
            attempts = await store.attempt.list(AttemptList(execution_id=lease.execution_id))
            assert [attempt.worker_instance for attempt in attempts.attempts] == [worker]


async def test_changed_priorities_count(store: PostgresBackend, clock: ManualClock) -> None:
    """Work that was ranked up or down is claimed where it belongs by then."""
    created: list[ExecutionId] = []
    for _ in range(3):
        created.append(await create(store, priority=5))
        clock.advance(1)
    await store.execution.change_priority(ExecutionChangePriority(execution_id=created[0], priority=1))
    await store.execution.change_priority(ExecutionChangePriority(execution_id=created[2], priority=9))
    leases = await claim(store, max_tasks=5)
    assert [lease.execution_id for lease in leases] == [created[2], created[1], created[0]]


async def test_the_first_of_many_routes(store: PostgresBackend, clock: ManualClock) -> None:
    """With as many routes as a lane may have and most of them empty, the best is found."""
    kinds = [Kind(f"k{number}") for number in range(limits.ROUTES_PER_LANE_MAX)]
    await create_many(store, [ExecutionCreate(kind=kind, priority=1) for kind in kinds])
    clock.advance(1)
    best = await create(store, kind=kinds[567], priority=2)
    assert [lease.execution_id for lease in await claim(store)] == [best]
    for expected in (256, 256, 256, 232, 0):
        assert len(await claim(store, max_tasks=256)) == expected


# Inputs -----------------------------------------------------------------------------------------------------------


async def test_a_reply_is_bounded(store: PostgresBackend) -> None:
    """Inputs of one claim are at most eight MiB and one input; what did not fit is claimed the next time."""
    data = Payload(b"x" * 1_000_000, "application/octet-stream")
    for number in range(12):
        await create(store, input=data, kind=Kind(f"k{number % 2}"))
    first = await claim(store, max_tasks=20)
    assert sum(len(lease.input.data) for lease in first) >= limits.BODY_BATCH_MAX
    assert sum(len(lease.input.data) for lease in first[:-1]) < limits.BODY_BATCH_MAX
    rest = await claim(store, max_tasks=20)
    assert len(first) + len(rest) == 12
    assert all(lease.input == data for lease in first + rest)


async def test_claims_made_together_have_room_of_their_own(store: PostgresBackend) -> None:
    """That one claim's inputs fill its reply takes nothing away from another one made with it."""
    data = Payload(b"x" * 1_000_000, "application/octet-stream")
    for _ in range(20):
        await create(store, input=data)
    one, other = await asyncio.gather(claim(store, "w1", max_tasks=9), claim(store, "w2", max_tasks=9))
    assert len(one) == len(other) == 9
    assert all(lease.input == data for lease in one + other)


@pytest.mark.parametrize("size", [0, 1, 8_192, 65_536, 65_537, limits.PAYLOAD_BYTES_MAX])
async def test_inputs_of_any_size_come_exactly(store: PostgresBackend, size: int) -> None:
    """An input comes byte for byte with its lease, and again when the claim is repeated."""
    data = Payload(random.Random(size).randbytes(size), "application/octet-stream")
    await create(store, input=data)
    known = claim_id()
    (first,) = await claim(store, claim_id=known)
    (again,) = await claim(store, claim_id=known)
    assert first == again and again.input == data


# What has a history -----------------------------------------------------------------------------------------------


async def test_work_with_a_history_among_new_work(store: PostgresBackend, clock: ManualClock) -> None:
    """Retries, work that was handed back, and what must not run any more are dealt with in one claim."""
    retry = RetryPolicy(max_retries=2, backoff=FixedBackoff(delay_ms=0, jitter=False))
    retried = await create(store, priority=9, policy=ExecutionPolicy(retry_policy=retry))
    released = await create(store, priority=8)
    capped = await create(store, priority=7, policy=ExecutionPolicy(max_reclaim_count=0))
    late = await create(
        store, priority=6, policy=ExecutionPolicy(timeout_policy=TimeoutPolicy(execution_deadline_ms=1_000))
    )
    first = {lease.execution_id: lease for lease in await claim(store, max_tasks=3)}
    await store.execution.fail(
        ExecutionFail(
            execution_id=retried,
            fence=first[retried].fence,
            failure_class=FailureClass.TRANSIENT,
            category="c",
            message="m",
        )
    )
    await store.lease.release(LeaseRelease(execution_id=released, fence=first[released].fence))
    await store.lease.revoke(LeaseRevoke(execution_id=capped))
    fresh = await create(store, priority=5)
    clock.advance(2_000)
    leases = await asyncio.gather(*(claim(store, f"w{number}") for number in range(5)))
    found = {lease.execution_id: lease for each in leases for lease in each}
    assert set(found) == {retried, released, fresh}
    assert [found[each].attempt_type for each in (retried, released, fresh)] == [
        "retry",
        "reclaim",
        "initial",
    ]
    assert [found[each].attempt_index for each in (retried, released, fresh)] == [1, 1, 0]
    assert (await described(store, late)).public_state is PublicState.EXPIRED
    assert (await described(store, capped)).public_state is PublicState.FAILED


# Others -----------------------------------------------------------------------------------------------------------


async def drain(backend: PostgresBackend, worker: str, most: int) -> list[Lease]:
    """Claim until there is nothing."""
    found: list[Lease] = []
    while leases := await claim(backend, worker, max_tasks=most, lanes=LANES):
        found += leases
    return found


@pytest.mark.parametrize("routes", [1, 5])
async def test_racers_get_nothing_twice_and_everything_once(node: Node, routes: int) -> None:
    """Claimers on many connections at once share out the work: each piece goes to one of them, each gets its in order.

    What a claimer gets later is never better than what it got before, because nothing is passed over that stays.
    """
    async with opened(node.url, 4) as backends:
        created = await create_many(
            backends[0],
            [
                ExecutionCreate(kind=Kind(f"k{number % routes}"), priority=number % 7)
                for number in range(1_500)
            ],
        )
        shares = await asyncio.gather(
            *(drain(backends[number % 4], f"w{number}", 1 + number % 3) for number in range(16))
        )
        assert sorted(lease.execution_id for share in shares for lease in share) == sorted(created)
        for share in shares:
            priorities = [lease.priority for lease in share]
            assert priorities == sorted(priorities, reverse=True)
        report = await backends[0].maintenance.fsck()
        assert not report.findings, report.findings


async def test_racing_processes(node: Node) -> None:
    """Claimers in processes of their own share out the work: nothing goes to two of them and nothing is left."""
    async with opened(node.url) as (backend,):
        created = await create_many(
            backend,
            [ExecutionCreate(kind=Kind(f"k{number % 3}"), priority=number % 5) for number in range(600)],
        )
        children = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.backends.postgres.claimer",
                node.url,
                f"w{number}",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            for number in range(3)
        ]
        async with asyncio.timeout(3 * PATIENCE_S):
            for child in children:
                assert child.stdout is not None and await child.stdout.readline() == b"ready\n"
            outputs = await asyncio.gather(*(child.communicate(b"go\n") for child in children))
        assert [child.returncode for child in children] == [0, 0, 0]
        shares = [[line.split() for line in out.decode().splitlines()] for out, _ in outputs]
        assert sorted(execution_id for share in shares for execution_id, _ in share) == sorted(created)
        report = await backend.maintenance.fsck()
        assert not report.findings, report.findings


async def test_racers_with_new_work_all_the_time(node: Node) -> None:
    """While work comes, is claimed, handed back and completed at once everywhere, each piece is completed once."""
    async with opened(node.url, 3) as backends:
        created: set[ExecutionId] = set()
        completed: list[ExecutionId] = []
        total = 300

        async def feed(backend: PostgresBackend, share: int) -> None:
            for number in range(share):
                created.add(await create(backend, kind=Kind(f"k{number % 3}"), priority=number % 3))

        async def work(backend: PostgresBackend, worker: str, chance: random.Random) -> None:
            while len(completed) < total:
                for lease in await claim(backend, worker, max_tasks=2, wait_ms=200):
                    if chance.random() < 0.2:
                        await backend.lease.release(
                            LeaseRelease(execution_id=lease.execution_id, fence=lease.fence)
                        )
                    else:
                        await complete(backend, lease)
                        completed.append(lease.execution_id)

        async with asyncio.timeout(4 * PATIENCE_S):
            await asyncio.gather(
                *(feed(backend, total // 3) for backend in backends),
                *(work(backends[number % 3], f"w{number}", random.Random(number)) for number in range(9)),
            )
        assert sorted(completed) == sorted(created) and len(created) == total
        report = await backends[0].maintenance.fsck()
        assert not report.findings, report.findings


async def test_racers_beside_changes(node: Node) -> None:
    """While tags and priorities of waiting work change all the time, claimers lose nothing and get nothing twice."""
    async with opened(node.url, 3) as backends:
        created = await create_many(
            backends[0],
            [ExecutionCreate(kind=Kind(f"k{number % 2}"), priority=number % 4) for number in range(300)],
        )
        claimed: list[ExecutionId] = []

        async def change(backend: PostgresBackend, chance: random.Random) -> None:
            while len(claimed) < len(created):
                execution_id = chance.choice(created)
                tags = {"t.number": str(chance.random())}
                await backend.execution.set_tags(ExecutionSetTags(execution_id=execution_id, tags=tags))
                with suppress(Refused):
                    await backend.execution.change_priority(
                        ExecutionChangePriority(execution_id=execution_id, priority=chance.randrange(9))
                    )

        async def work(backend: PostgresBackend, worker: str) -> None:
            while len(claimed) < len(created):
                leases = await claim(backend, worker, max_tasks=2)
                claimed.extend(lease.execution_id for lease in leases)

        async with asyncio.timeout(3 * PATIENCE_S):
            await asyncio.gather(
                *(change(backends[number % 3], random.Random(number)) for number in range(6)),
                *(work(backends[number % 3], f"w{number}") for number in range(4)),
            )
        assert sorted(claimed) == sorted(created)
        report = await backends[0].maintenance.fsck()
        assert not report.findings, report.findings


async def test_what_is_locked_is_passed_over(pair: list[PostgresBackend]) -> None:
    """A claim takes the next best instead of waiting for an execution that somebody else changes just then."""
    one, other = pair
    created = [await create(one, priority=priority) for priority in (9, 8, 7)]
    async with held(one, "SELECT FROM ff.execution WHERE id = $1 FOR UPDATE", created[0][-36:]):
        leases = await claim(other, max_tasks=1)
        assert [lease.execution_id for lease in leases] == [created[1]]
    leases = await claim(other, max_tasks=5)
    assert [lease.execution_id for lease in leases] == [created[0], created[2]]


@pytest.mark.parametrize("lanes", [LANES[:1], LANES])
async def test_a_rival_that_is_under_way_holds_only_what_it_takes(
    pair: list[PostgresBackend], lanes: tuple[Lane, ...]
) -> None:
    """Beside a claim that is not committed yet another one gets what comes next, and never an empty answer."""
    one, other = pair
    created = [await create(one, lane=lane, priority=90 - number) for number, lane in enumerate(5 * lanes)]
    await one._catalog.refresh()
    routes = await one._catalog.fitting(claiming(lanes=lanes))
    rival = (
        "SELECT count(*) FROM ff.lease_claim(ARRAY['default'], ARRAY[$1], ARRAY[$2::integer], ARRAY['r'], ARRAY['r'],"
        " ARRAY[30000], ARRAY[NULL]::uuid[], ARRAY[2])"
    )
    text = f"{{{','.join(map(str, routes))}}}"
    async with held(one, rival, text, one._catalog.known):
        leases = await claim(other, max_tasks=len(created), lanes=lanes)
        assert [lease.execution_id for lease in leases] == created[2:]


async def test_a_claim_that_waits_gets_what_was_locked(pair: list[PostgresBackend]) -> None:
    """Work that is claimable but locked when a waiting claim looks goes to it as soon as the lock is gone."""
    one, other = pair
    execution_id = await create(one)
    async with held(one, "SELECT FROM ff.execution WHERE id = $1 FOR UPDATE", execution_id[-36:]):
        task = waiting(other)
        await until(lambda: bool(store_of(other).bells.claims_waiting))
        done, _ = await asyncio.wait([task], timeout=0.3)
        assert not done
    assert [lease.execution_id for lease in await served(task)] == [execution_id]


async def test_no_work_is_left_lying_while_claims_wait(pair: list[PostgresBackend]) -> None:
    """As many claims as there are pieces of work are served at once, wherever they wait and however the work comes."""
    one, other = pair
    for _ in range(5):
        tasks = [waiting(backend, f"w{number}") for number in range(4) for backend in pair]
        await asleep(one, other, count=8)
        await create_many(one, [ExecutionCreate(kind=Kind(f"k{number % 2}")) for number in range(5)])
        await asyncio.gather(*(create(other) for _ in range(3)))
        leases = await served(*tasks)
        assert len({lease.execution_id for lease in leases}) == 8
        for lease in leases:
            await complete(one, lease)


async def test_a_route_not_heard_of_is_found(pair: list[PostgresBackend]) -> None:
    """A claim in a process that has not heard of a new route finds its work by itself."""
    one, other = pair
    assert await claim(other) == ()
    for kind in ("k", "l"):
        execution_id = await create(one, kind=Kind(kind))
        assert [lease.execution_id for lease in await claim(other)] == [execution_id]


async def test_a_lane_stopped_elsewhere_gives_nothing_at_once(pair: list[PostgresBackend]) -> None:
    """Once a lane is paused in one process no other one gets work from it, and all of it is there when it goes on."""
    one, other = pair
    await create(one)
    assert len(await claim(other)) == 1
    await create(one)
    await create(one, lane=Lane("other"))
    await one.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.PAUSED))
    assert [lease.lane for lease in await claim(other, max_tasks=5, lanes=LANES)] == ["other"]
    await one.lane.set_state(LaneSetState(lane=Lane("default"), state=LaneState.ACTIVE))
    assert [lease.lane for lease in await claim(other, max_tasks=5, lanes=LANES)] == ["default"]


async def test_a_wrong_entry_is_put_right(store: PostgresBackend) -> None:
    """An entry of the claimable work whose execution cannot be claimed misleads one claim and is gone."""
    await create(store, priority=9)
    (lease,) = await claim(store)
    wanted = await create(store, priority=1)
    calls = store_of(store).calls
    await calls.change(
        "INSERT INTO ff.ready SELECT route_id, -priority, eligible_since_ms, id, seq FROM ff.execution WHERE id = $1",
        lease.execution_id[-36:],
    )
    assert [found.execution_id for found in await claim(store)] == [wanted]
    assert await calls.value("SELECT count(*) FROM ff.ready") == 0


# Grants -----------------------------------------------------------------------------------------------------------


def granting(worker: str = "w") -> LeaseGrant:
    """Build a grant of the best of all lanes."""
    return LeaseGrant(worker_id=WorkerId(worker), worker_instance=WorkerInstance(worker), lanes=LANES)


async def test_grants_go_to_the_best(store: PostgresBackend, clock: ManualClock) -> None:
    """Grants are given best first over all lanes, each execution once, until there is none."""
    work = await some_work(store, clock, random.Random(3), 20, 3)
    for execution_id in in_turn(work):
        granted = await store.lease.grant(granting())
        assert isinstance(granted, LeaseGranted) and granted.execution_id == execution_id
    assert await store.lease.grant(granting()) == NothingToGrant()


# Looking ----------------------------------------------------------------------------------------------------------


async def described(backend: PostgresBackend, execution_id: ExecutionId) -> Any:
    """Describe an execution."""
    return await backend.execution.describe(ExecutionDescribe(execution_id=execution_id))
