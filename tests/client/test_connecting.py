"""What `connect` opens for which URL."""

from __future__ import annotations

from pathlib import Path

import pytest

import flowfabric
from flowfabric import Misuse, Unavailable
from flowfabric.contract.states import PublicState
from flowfabric.engine.supervisor import Engine
from tests.client.conftest import Served
from tests.client.working import claim_one, complete


async def test_a_store_url_opens_the_store(tmp_path: Path) -> None:
    """A client over a store's file sees what an earlier one left there."""
    url = f"sqlite:///{tmp_path}/ff.db"
    async with flowfabric.connect(url) as ff:
        run = await ff.submit("count")
    async with flowfabric.connect(url) as ff:
        assert await ff.run(run.id).state() is PublicState.WAITING


async def test_connect_can_be_awaited(tmp_path: Path) -> None:
    """Without `async with`, the client is awaited and closed by hand, twice if need be."""
    ff = await flowfabric.connect(f"sqlite:///{tmp_path}/ff.db")
    await ff.ping()
    await ff.close()
    await ff.close()


async def test_the_environment_names_the_server(guarded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments, URL and token come from FLOWFABRIC_URL and FLOWFABRIC_TOKEN; arguments win."""
    monkeypatch.setenv("FLOWFABRIC_URL", guarded.url)
    monkeypatch.setenv("FLOWFABRIC_TOKEN", guarded.token or "")
    async with flowfabric.connect() as ff:
        assert await (await ff.submit("count")).state() is PublicState.WAITING
    async with flowfabric.connect("http://127.0.0.1:1") as ff:
        with pytest.raises(Unavailable, match="flowfabric dev"):
            await ff.submit("count")


async def test_namespaces_are_apart(tmp_path: Path) -> None:
    """A client submits to and lists its own namespace."""
    async with flowfabric.connect(f"sqlite:///{tmp_path}/ff.db", namespace="acme") as ff:
        await ff.submit("count")
        assert [info.namespace async for info in ff.list()] == ["acme"]
        assert [info async for info in ff.list(namespace="default")] == []


async def test_a_lone_program_may_bring_the_engine(tmp_path: Path) -> None:
    """With `engine`, a client over a store runs its timers too: a delay ends by itself."""
    async with flowfabric.connect(f"sqlite:///{tmp_path}/ff.db", engine=Engine) as ff:
        run = await ff.submit("count", delay="50ms")
        from flowfabric.contract.ids import Lane, WorkerId, WorkerInstance
        from flowfabric.contract.lease import LeaseClaim

        claimed = await ff.stores.lease.claim(
            LeaseClaim(
                worker_id=WorkerId("w"),
                worker_instance=WorkerInstance("w-1"),
                lanes=(Lane("default"),),
                wait_ms=20_000,
            )
        )
        (lease,) = claimed.leases
        assert [lease.execution_id] == [run.id]
        await complete(ff.stores, lease, 1)
        assert await run.result() == 1


async def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    """A token for a store, an engine for a server, an odd namespace or URL are refused before anything is opened."""
    with pytest.raises(Misuse, match="token"):
        flowfabric.connect(f"sqlite:///{tmp_path}/ff.db", token="x")
    with pytest.raises(Misuse, match="engine"):
        flowfabric.connect("http://127.0.0.1:1", engine=Engine)
    with pytest.raises(flowfabric.Refused):
        flowfabric.connect("http://127.0.0.1:1", namespace="{x}")
    with pytest.raises(Misuse, match="not a server's URL"):
        async with flowfabric.connect("http://"):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_testing_owns_the_clock() -> None:
    """`flowfabric.testing.embedded` gives a store whose timers fire when its clock is moved, and only then."""
    from flowfabric.testing import embedded

    async with embedded() as ff:
        run = await ff.client.submit("count", delay="1h")
        assert await ff.advance(minutes=59) == 0
        assert await run.state() is PublicState.DELAYED
        assert await ff.advance(minutes=1) == 1
        assert await run.state() is PublicState.WAITING
        await complete(ff.backend, await claim_one(ff.backend), 1)
        assert await run.result() == 1
        assert await ff.advance(days=2) >= 1
        with pytest.raises(flowfabric.Refused, match="execution_not_found"):
            await run.state()
