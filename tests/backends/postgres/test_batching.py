"""Concurrent calls share statements: by themselves, never two about the same thing, and none at another's expense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flowfabric.backends.postgres import batching
from flowfabric.backends.postgres.batching import Batch
from flowfabric.backends.postgres.calling import Again
from flowfabric.contract.errors import Corrupt, ExecutionNotFound, InvalidInput, OutcomeUnknown, Unavailable
from tests.backends.postgres.gated import Gated, own_gated
from tests.proxy import until

ECHO = Batch(function="t_echo", types=("text", "text"), columns=("value", "statement"))


@pytest.fixture
async def store() -> AsyncIterator[Gated]:
    async with own_gated() as found:
        yield found


def start(store: Gated, value: str, key: str | None = None, batch: Batch = ECHO) -> asyncio.Task[Any]:
    return asyncio.create_task(store.calls.hot(batch, (key, value), key))


async def start_held(store: Gated, value: str, held: int, key: str | None = None) -> asyncio.Task[Any]:
    """Start a call and wait until its statement is held up at the gate."""
    task = start(store, value, key)
    await store.until_waiting(held)
    return task


async def test_one_call_alone(store: Gated) -> None:
    """A call that nobody shares is sent at once and gets its row."""
    row = await store.calls.hot(ECHO, ("k", "hello"), "k")
    assert row["value"] == "hello"
    assert store.done() == ["hello"]


async def test_concurrent_calls_share_statements(store: Gated) -> None:
    """While two statements are under way, calls gather, and go together in the next one."""
    with store.shut():
        tasks = [await start_held(store, str(at), at + 1) for at in range(2)]
        tasks += [start(store, str(at)) for at in range(2, 40)]
        await asyncio.sleep(0)
        assert len(store.waiting()) == batching.LANES
    rows = await asyncio.gather(*tasks)
    assert [row["value"] for row in rows] == [str(at) for at in range(40)]
    assert len({row["statement"] for row in rows}) == 3


async def test_calls_about_the_same_thing(store: Gated) -> None:
    """Calls with one key never share a statement, not even with one under way, and keep their order."""
    with store.shut():
        tasks = [await start_held(store, "a0", 1, "a")]
        tasks += [start(store, f"a{at}", "a") for at in range(1, 4)]
        others = [start(store, f"b{at}", f"b{at}") for at in range(10)]
        await store.until_waiting(2)
    rows = await asyncio.gather(*tasks)
    assert len({row["statement"] for row in rows}) == 4
    assert len({row["statement"] for row in await asyncio.gather(*others)}) <= 2
    assert [value for value in store.done() if value.startswith("a")] == ["a0", "a1", "a2", "a3"]


async def test_a_call_that_makes_its_statement_fail(store: Gated) -> None:
    """A statement that fails because of one command is repeated command by command: the others are carried out."""
    with store.shut():
        first = [await start_held(store, str(at), at + 1) for at in range(2)]
        tasks = [start(store, value) for value in ("a", "bad", "b", "nul\x00", "c", "no execution_not_found")]
        await asyncio.sleep(0)
    await asyncio.gather(*first)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [row["value"] for row in found if not isinstance(row, BaseException)] == ["a", "b", "c"]
    assert isinstance(found[1], Corrupt) and "division by zero" in found[1].message
    assert isinstance(found[3], InvalidInput)
    assert isinstance(found[5], ExecutionNotFound)
    assert sorted(store.done()) == ["0", "1", "a", "b", "c", "no execution_not_found"]


async def test_refusals(store: Gated) -> None:
    """A returned code is raised, with its details; one for adapters is told apart; one nobody knows is a bug."""
    with pytest.raises(ExecutionNotFound) as refused:
        await start(store, "no execution_not_found")
    assert refused.value.details == {"a": 1}
    with pytest.raises(Again) as again:
        await start(store, "no stale_catalog")
    assert again.value.code == "stale_catalog"
    with pytest.raises(Corrupt, match="no_such_code"):
        await start(store, "no no_such_code")


async def test_several_rows_and_none(store: Gated) -> None:
    """A command may have several rows, or none; who expects one says so."""
    assert len(await store.calls.hot_rows(ECHO, (None, "two"), None)) == 2
    assert await store.calls.hot_rows(ECHO, (None, "none"), None) == []
    for value in ("two", "none"):
        with pytest.raises(Corrupt, match="rows"):
            await start(store, value)
    with pytest.raises(Corrupt, match="takes 2 values"):
        await store.calls.hot(ECHO, ("a",), None)


async def test_who_gives_up(store: Gated) -> None:
    """A caller that is cancelled leaves the statement it shares alone; one that still waited is not sent."""
    with store.shut():
        leaver, stayer = await start_held(store, "leaves", 1), await start_held(store, "stays", 2)
        waits, gone = start(store, "waits"), start(store, "gone")
        await asyncio.sleep(0)
        for task in (leaver, gone):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert (await stayer)["value"] == "stays"
    assert (await waits)["value"] == "waits"
    # Nobody is told when the first one ends, which another connection carries out.
    await until(lambda: sorted(store.done()) == ["leaves", "stays", "waits"], "each was carried out")


@pytest.mark.parametrize(
    ("batch", "values", "statements"),
    [
        (
            Batch(function="t_echo", types=("text", "text"), columns=("value", "statement"), most=4),
            ["x"] * 10,
            3,
        ),
        (ECHO, ["x"] * 129, 2),
    ],
)
async def test_a_statement_carries_so_many(
    store: Gated, batch: Batch, values: list[str], statements: int
) -> None:
    """A statement carries no more commands than its bound."""
    with store.shut():
        first = [start(store, "first", batch=batch)]
        await store.until_waiting(1)
        first.append(start(store, "first", batch=batch))
        await store.until_waiting(2)
        tasks = [start(store, value, batch=batch) for value in values]
        await asyncio.sleep(0)
    await asyncio.gather(*first)
    rows = await asyncio.gather(*tasks)
    assert len({row["statement"] for row in rows}) == statements


async def test_a_statement_carries_so_many_bytes(store: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where commands carry payloads their bytes bound a statement too; a single one always fits."""
    monkeypatch.setattr(batching, "BYTES_MOST", 1_000)
    store.call(
        "CREATE FUNCTION ff.t_bytes(p_bytes bytea[]) RETURNS TABLE (at int, code text, message text, details jsonb, "
        "statement bigint) LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN QUERY SELECT "
        "o::int, NULL::text, NULL::text, NULL::jsonb, pg_current_xact_id()::text::bigint FROM "
        "unnest(p_bytes) WITH ORDINALITY AS u (b, o); END $$"
    )
    batch = Batch(function="t_bytes", types=("bytea",), columns=("statement",), is_heavy=True)

    def send(size: int) -> asyncio.Task[Any]:
        return asyncio.create_task(store.calls.hot(batch, (b"x" * size,), None))

    with store.shut():
        first = [send(1)]
        await store.until_waiting(1)
        first.append(send(1))
        await store.until_waiting(2)
        tasks = [send(size) for size in (600, 400, 1, 2_000, 999, 1)]
        await asyncio.sleep(0)
    await asyncio.gather(*first)
    found = [row["statement"] for row in await asyncio.gather(*tasks)]
    assert found[0] == found[1] != found[2] != found[3] != found[4] == found[5]


async def test_a_deadline_that_passes(store: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that was sent and not answered in time is in doubt; one that still waited was not executed."""
    monkeypatch.setattr(batching, "DEADLINE_S", 0.8)
    with store.shut():
        sent = [start(store, "sent", "a"), start(store, "sent", "b")]
        await store.until_waiting(1)
        waits = start(store, "waits", "a")
        found = await asyncio.gather(*sent, waits, return_exceptions=True)
    assert all(isinstance(error, OutcomeUnknown) for error in found[:2])
    assert type(found[2]) is Unavailable
    assert "nothing was executed" in found[2].message


async def test_closing(store: Gated) -> None:
    """When the store is closed, everybody who waits for a batch is told, sent or not."""
    with store.shut():
        tasks = [await start_held(store, "a", 1), await start_held(store, "b", 2), start(store, "c")]
        await asyncio.sleep(0)
        await store.store.close()
        for task in tasks:
            with pytest.raises(Unavailable):
                await task
