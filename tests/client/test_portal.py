"""The background thread that blocking calls run on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowfabric.client.portal import Portal
from flowfabric.contract.errors import Misuse


async def identity(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def fail() -> None:
    raise LookupError("no")


def test_many_threads_call_at_once() -> None:
    """Any number of threads may call; each gets its own answer."""
    portal = Portal()
    try:
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(lambda n: portal.call(identity(n)), range(500))) == list(range(500))
        with pytest.raises(LookupError):
            portal.call(fail())
    finally:
        portal.stop()


def test_a_call_from_its_own_thread_is_refused() -> None:
    """A blocking call on the portal's own event loop would wait for itself: it is refused, not hung."""
    portal = Portal()

    async def inside() -> int:
        return portal.call(identity(1))

    try:
        with pytest.raises(Misuse, match="wait for itself"):
            portal.call(inside())
    finally:
        portal.stop()


async def test_calls_work_on_a_thread_with_a_running_loop() -> None:
    """Blocking calls from a thread that runs another event loop block that loop, and are answered."""
    portal = Portal()
    try:
        assert portal.call(identity(7)) == 7
    finally:
        portal.stop()


def test_stopping_ends_calls_and_thread() -> None:
    """Stopping cancels what is under way, runs its cleanup and ends the thread; later calls are refused."""
    portal = Portal("to-be-stopped")
    begun, cleaned = threading.Event(), threading.Event()

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: portal.call(forever()))
        assert begun.wait(5)
        portal.stop()
        assert cleaned.is_set()
        with pytest.raises(Misuse, match="closed"):
            future.result(5)
    with pytest.raises(Misuse, match="closed"):
        portal.call(identity(1))
    portal.stop()
    assert not any(thread.name == "to-be-stopped" for thread in threading.enumerate())


def test_leaving_a_loop_early_closes_the_generator() -> None:
    """Breaking out of a blocking iteration runs the asynchronous generator's cleanup."""
    portal = Portal()
    closed = threading.Event()

    async def numbers() -> AsyncGenerator[int]:
        try:
            for number in range(1_000):
                yield number
        finally:
            closed.set()

    try:
        items = portal.iterate(numbers())
        assert [next(items), next(items)] == [0, 1]
        items.close()
        assert closed.is_set()
        assert sum(portal.iterate(numbers())) == 499_500
    finally:
        portal.stop()
