"""Functions under malformed calls: every one answers or fails as a whole, and what is refused has written nothing.

Vectors (`fuzzing`) are thrown at a store with executions in many states, each undone at once, so that all of them meet
the same store. `FLOWFABRIC_FUZZ_VECTORS` says how many of each kind a function gets.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg
import pytest

from flowfabric import backends
from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres import functions
from flowfabric.backends.postgres.calling import AGAIN
from flowfabric.contract.backend import FsckReport
from flowfabric.contract.errors import BY_CODE
from flowfabric.contract.ids import mint_uuid
from tests.backends.filling import Filling, Made
from tests.backends.postgres.fuzzing import (
    PLAIN,
    TRYING,
    Function,
    Generator,
    Values,
    functions_of,
    shown,
    statement,
)
from tests.backends.postgres.work import FEW
from tests.postgres import session

VECTORS: Final = int(os.environ.get("FLOWFABRIC_FUZZ_VECTORS", "200"))
GROUP: Final = 50
"""Vectors that are sent together."""
UNBORN: Final = 8
PUBLIC: Final = [found for found in functions.assemble(manual_clock=True).functions if found.is_public]
NAMES: Final = sorted(found.name for found in PUBLIC)
HOT: Final = sorted(
    found.name for found in PUBLIC if re.search(r"RETURNS TABLE \(\s*at integer", found.statement)
)
"""Functions that take several commands."""
BAD_DATA: Final = ("22", "23502", "23505")
"""What malformed arguments may be answered with: errors about data, nulls where there may be none, the same twice."""

WRITES_AND_REFUSES: Final = {
    "lease_expired": None,
    "execution_not_leaseable": ("lease_claim_granted",),
    "execution_not_reclaimable": ("lease_grant",),
    "execution_not_eligible": ("lease_grant",),
    "grant_already_exists": ("lease_grant",),
    "lane_not_accepting": ("lease_grant",),
    "use_claim_resumed_execution": ("lease_grant",),
    "not_a_resumed_execution": ("lease_grant",),
    "capability_mismatch": ("lease_grant",),
    "execution_not_active": ("lease_revoke",),
}
"""Refusals that may find out that a lease ran out, or that the execution has to end, and record it."""


class Store:
    """A populated store in a database of its own, and what vectors need of it."""

    def __init__(self, url: str) -> None:
        self.clock: Final = ManualClock()
        self._url = url
        self._node: Final = session.shared_node()
        self._database = url.rpartition("/")[2]
        self.made: Final = asyncio.run(self._fill())
        self.functions: Final = {
            function.name: function for function in functions_of(self._node, self._database)
        }
        for part in TRYING.split("\n\n"):
            self.call(part)
        self.tell_time()
        self.call("ANALYZE")

    def call(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement."""
        return self._node.call(statement, *values, database=self._database)

    def tell_time(self) -> None:
        """Have functions see what time it is."""
        self.call("UPDATE ff.manual_clock SET now_ms = %s", self.clock.now_ms())

    def try_each(self, statements: Sequence[str]) -> list[tuple[Any, ...]]:
        """Carry out statements, each undone at once: SQLSTATE, message, answer, rows written."""
        return self.call(
            "SELECT t.* FROM unnest(%s::text[]) WITH ORDINALITY AS s(statement, n), "
            "LATERAL fuzz.try(s.statement) AS t ORDER BY s.n",
            list(statements),
        )

    def check(self) -> FsckReport:
        """Check the whole store."""

        async def run() -> FsckReport:
            backend = await backends.connect(self._url, clock=self.clock)
            try:
                return await backend.maintenance.fsck()
            finally:
                await backend.close()

        return asyncio.run(run())

    async def _fill(self) -> list[Made]:
        backend = await backends.connect(self._url, clock=self.clock, partitions=FEW)
        try:
            filling = Filling(backend)
            await filling.fill()
            # The lease that was given for 10 ms has run out, unnoticed.
            self.clock.advance(1_000)
            unborn = [
                Made(f"{{fp:{number % FEW.flow}}}:{mint_uuid()}", "default", None, "default")
                for number in range(UNBORN)
            ]
            return [*filling.made, *unborn]
        finally:
            await backend.close()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """A store that nobody changes for good."""
    with session.own_database() as url:
        yield Store(url)


@pytest.fixture
def changing() -> Iterator[Store]:
    """A store for one test."""
    with session.own_database() as url:
        yield Store(url)


def _judge(function: Function, values: Values, told: tuple[Any, ...], *, plausible: bool, where: str) -> None:
    """Check what came of one call."""
    state, message, answer, writes = told
    if state is not None:
        assert not plausible, f"{state} {message} <- {where}"
        assert state.startswith(BAD_DATA), f"{state} {message} <- {where}"
        return
    if function.name in (*PLAIN, "enqueue_outline"):
        return
    assert isinstance(answer, list), where
    refused = True
    for row in answer:
        code = row["code"]
        if code is None:
            refused = False
            assert function.is_hot or isinstance(row["value"], list), where
            continue
        assert code in BY_CODE or code in AGAIN, f"{code} <- {where}"
        details = row["details"]
        assert details is None or isinstance(
            json.loads(details) if type(details) is str else details, dict
        ), where
        if code in WRITES_AND_REFUSES:
            only = WRITES_AND_REFUSES[code]
            refused = refused and not (only is None or function.name in only)
    if refused:
        assert writes == 0, f"it refused and wrote {writes} rows: {answer!r:.300} <- {where}"
    if plausible and function.is_hot and function.name != "lease_claim":
        commands = len(values[0])
        assert sorted(row["at"] for row in answer) == list(range(1, commands + 1)), (
            f"{answer!r:.300} <- {where}"
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plausible", [True, False], ids=["plausible", "malformed"])
def test_every_call_is_answered_and_refusals_write_nothing(store: Store, name: str, plausible: bool) -> None:
    """What looks right is answered, every command of it; what does not may fail as a whole, for its data alone.

    A refused call leaves the store as it was.
    """
    function = store.functions[name]
    maker = Generator(function, store.made)
    for start in range(0, VECTORS, GROUP):
        vectors = [maker.plausible() if plausible else maker.malformed() for _ in range(GROUP)]
        told = store.try_each([statement(function, values) for values in vectors])
        for at, (values, found) in enumerate(zip(vectors, told, strict=True), start):
            _judge(
                function, values, found, plausible=plausible, where=f"{name}, vector {at}: {shown(values)}"
            )


@pytest.mark.parametrize("name", [name for name in HOT if name != "lease_claim"])
def test_a_batch_is_its_commands_one_by_one(store: Store, name: str) -> None:
    """A statement of several commands answers and leaves what the same commands do one after the other."""
    function = store.functions[name]
    maker = Generator(function, store.made, seed="together")
    for number in range(VECTORS // 5):
        commands = maker.commands(6)
        whole = statement(function, maker.batch(commands))
        parts = [statement(function, maker.batch([command])) for command in commands]
        ((answers, digest),) = store.call("SELECT * FROM fuzz.try_all(%s)", [whole])
        ((single, expected),) = store.call("SELECT * FROM fuzz.try_all(%s)", parts)
        where = f"{name}, vector {number}: {shown(commands)}"
        ordered = sorted(answers, key=lambda row: row["at"])
        assert [{**row, "at": 1} for row in ordered] == single, where
        assert digest == expected, where


def test_whatever_was_accepted_leaves_a_sound_store(changing: Store) -> None:
    """After thousands of calls that looked right, of all functions in turn, fsck finds nothing."""
    makers = [Generator(function, changing.made, seed="for good") for function in changing.functions.values()]
    for start in range(0, 5 * VECTORS, GROUP):
        for at in range(start, start + GROUP):
            maker = makers[at % len(makers)]
            values = maker.plausible()
            try:
                changing.call(statement(maker.function, values))
            except psycopg.Error as error:
                pytest.fail(f"{maker.function.name}, vector {at}: {error} <- {shown(values)}")
        changing.clock.advance(20_000)
        changing.tell_time()
    report = changing.check()
    assert not report.findings, report.findings[:20]
    assert report.executions > len(changing.made)
