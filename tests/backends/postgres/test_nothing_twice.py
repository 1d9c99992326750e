"""What callers are told under connections that are ended and callers that give up: exactly what happened, or less."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import Any, Final

import pytest

from flowfabric.backends.postgres import pool
from flowfabric.backends.postgres.batching import Batch
from flowfabric.backends.postgres.pool import Link
from flowfabric.contract.errors import Corrupt, OutcomeUnknown, Refused, Unavailable
from tests.backends.postgres.gated import Gated, own_gated

ECHO: Final = Batch(function="t_echo", types=("text", "text"), columns=("value", "statement"))
CALLERS: Final = 40
CALLS: Final = 25


async def call(store: Gated, value: str, chance: random.Random) -> Any:
    """Call a hot or a cold function, now and then as somebody who gives up; return what was answered."""
    if value == "bad" or chance.random() < 0.7:
        key = f"k{chance.randrange(10)}" if chance.random() < 0.5 else None
        task = asyncio.create_task(store.calls.hot(ECHO, (key, value), key))
    else:
        task = asyncio.create_task(store.calls.call("t_cold", value))
    if chance.random() < 0.1:
        await asyncio.sleep(chance.random() * 0.01)  # sleeps: somewhere in the middle of it
        task.cancel()
    (answer,) = await asyncio.gather(task, return_exceptions=True)
    return answer


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_calls(seed: int) -> None:
    """What is acknowledged happened once, what is refused as not executed never, and what is in doubt at most once."""
    chance = random.Random(seed)
    answers: dict[str, Any] = {}
    async with own_gated("?pool_size=4") as store:

        async def work(number: int) -> None:
            own = random.Random(f"{seed} {number}")
            for turn in range(CALLS):
                value = "bad" if own.random() < 0.01 else f"{number}-{turn}"
                answers[f"{number}-{turn}"] = await call(store, value, own)

        working = asyncio.gather(*(work(number) for number in range(CALLERS)))
        while not working.done():
            await asyncio.sleep(chance.random() * 0.1)  # sleeps: until the next fault
            for pid in store.node.backends(store.name, application=pool.APPLICATION):
                if chance.random() < 0.3:
                    store.call("SELECT pg_terminate_backend(%s)", pid)
        await working
        happened = store.done()
        assert len(await asyncio.gather(*(store.calls.value("SELECT 1") for _ in range(8)))) == 8
        assert store.store.pool.open_count <= 4
    for value, answer in answers.items():
        count = happened.count(value)
        match answer:
            case asyncio.CancelledError() | OutcomeUnknown():
                assert count <= 1, value
            case Corrupt() | Refused() | Unavailable():
                assert count == 0, (value, answer)
            case BaseException():
                raise answer
            case _:
                assert count == 1, (value, answer)
    assert sum(not isinstance(answer, BaseException) for answer in answers.values()) > 500


async def test_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """However borrowers come, wait, give up, break what they borrowed and are robbed, no connection is lost."""
    monkeypatch.setattr(pool, "PATIENCE_S", 0.2)
    chance = random.Random(4)
    async with own_gated("?pool_size=3") as store:
        lender = store.store.pool

        async def borrow() -> None:
            link: Link | None = None
            try:
                link = await lender.acquire(time.monotonic() + 5)
                assert lender.open_count <= 3
                if chance.random() < 0.5:
                    await link.fetch("SELECT pg_sleep($1)", (chance.random() * 0.01,), 5.0)
            except pool.StatementFailed:
                pass
            finally:
                if link is not None:
                    if chance.random() < 0.2:
                        lender.drop(link)
                    lender.release(link, is_doubtful=True)

        for _ in range(30):
            tasks = [asyncio.create_task(borrow()) for _ in range(20)]
            for task in tasks:
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                    task.cancel()
            if chance.random() < 0.3:
                store.node.drop_connections(store.name, application=pool.APPLICATION)
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                with suppress(asyncio.CancelledError, Refused):
                    if isinstance(outcome, BaseException):
                        raise outcome
        links = [await lender.acquire(time.monotonic() + 10) for _ in range(3)]
        for link in links:
            if not link.raw.is_closed():
                assert (await link.fetch("SELECT 1", (), 5.0))[0][0] == 1
            lender.release(link)
        assert lender.open_count == 3
