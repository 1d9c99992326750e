"""worker.list: the registered instances of a namespace, by name."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from tests.conformance.world import World


async def register(world: World, *instances: str, namespace: str = "default") -> None:
    """Register instances."""
    for instance in instances:
        await world.worker.register(
            worker_id="w", worker_instance=instance, namespace=namespace, lanes=("default",)
        )


@pytest.mark.parametrize("limit", [1, 2, 3, 1_000])
async def test_instances_come_in_the_order_of_their_names(world: World, limit: int) -> None:
    """Whatever the page size every instance appears once, by name, and the last page has no cursor.

    Acceptance: list-workers-pages-by-name
    """
    await register(world, "c", "a", "B", "b")
    found = await world.pages("worker.list", "workers", limit=limit)
    assert [info.worker_instance for info in found] == ["B", "a", "b", "c"]


async def test_a_namespace_sees_its_own(world: World) -> None:
    """Only instances of the namespace are listed; without one, of `default`.

    Acceptance: list-workers-is-per-namespace
    """
    await register(world, "here")
    await register(world, "there", namespace="other")
    for namespace, instance in (("default", "here"), ("other", "there")):
        (info,) = (await world.worker.list(namespace=namespace)).workers
        assert (info.worker_instance, info.namespace) == (instance, namespace)


async def test_leases_are_counted(world: World) -> None:
    """Each instance shows how many leases it holds now."""
    await register(world, "w-1")
    for _ in range(3):
        await world.create()
    leases = await world.claim("w", max_tasks=2)

    async def held() -> int:
        (info,) = (await world.worker.list()).workers
        return info.leases

    assert await held() == 2
    await world.execution.complete(leases[0])
    assert await held() == 1
    await world.lease.release(leases[1])
    assert await held() == 0


async def test_without_workers_it_is_empty(world: World) -> None:
    """With nobody registered there is one empty page."""
    page = await world.worker.list()
    assert (page.workers, page.next_cursor) == ((), None)


@pytest.mark.parametrize(
    "fields",
    [{"limit": 0}, {"limit": limits.PAGE_MAX + 1}, {"namespace": ""}, {"cursor": "a b"}, {"cursor": ""}],
    ids=str,
)
async def test_malformed_arguments_are_refused(world: World, fields: dict[str, Any]) -> None:
    """Bounds are kept and malformed names refused."""
    await world.refused(InvalidInput, world.worker.list(**fields))
