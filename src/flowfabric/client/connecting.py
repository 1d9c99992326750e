"""Opening a client: which URL and token are meant, what is opened for them, and closing it again."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Final, Protocol

from flowfabric import backends
from flowfabric.client.endpoint import DEFAULT_URL, is_server_url
from flowfabric.client.facade import Client
from flowfabric.contract import ids
from flowfabric.contract.backend import Backend
from flowfabric.contract.errors import Misuse

URL_VARIABLE: Final = "FLOWFABRIC_URL"
TOKEN_VARIABLE: Final = "FLOWFABRIC_TOKEN"  # noqa: S105 -- the variable's name
TIMEOUT_S: Final = 30.0
ENGINE_GRACE_S: Final = 5.0


class Timers(Protocol):
    """Something that runs a store's timers, such as `flowfabric.engine.supervisor.Engine`."""

    async def start(self) -> None:
        """Start the timers."""
        ...

    async def stop(self, grace_s: float) -> object:
        """Stop them, waiting at most `grace_s` seconds for what is under way."""
        ...


class Target:
    """What to open: a checked URL and the options that go with it. Nothing is opened by making one."""

    def __init__(
        self,
        url: str | None,
        *,
        token: str | None,
        namespace: str,
        timeout_s: float,
        trust_environment: bool,
        engine: Callable[[Backend], Timers] | None,
    ) -> None:
        self.url: str = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        self.is_server: bool = is_server_url(self.url)
        ids.check_name(namespace, "namespace")
        if self.is_server and engine is not None:
            raise Misuse("a server runs its own engine: leave engine out, or give a store's URL")
        if not self.is_server and token is not None:
            raise Misuse("a token is for a server's URL: a store that is opened directly needs none")
        self._token: str | None = token or os.environ.get(TOKEN_VARIABLE) or None
        self._namespace: str = namespace
        self._timeout_s: float = timeout_s
        self._trust_environment: bool = trust_environment
        self._engine: Callable[[Backend], Timers] | None = engine

    async def open(self) -> Client:
        """Open the store, or prepare to talk to the server (which is not contacted yet)."""
        return self._open_server() if self.is_server else await self._open_store()

    def _open_server(self) -> Client:
        # Imported here because the HTTP machinery takes longer to import than everything else, and stores need none.
        from flowfabric.client.http import HttpStores  # noqa: PLC0415

        stores = HttpStores(
            self.url,
            token=self._token,
            timeout_s=self._timeout_s,
            trust_environment=self._trust_environment,
        )
        return Client(
            stores, namespace=self._namespace, follow=stores.follow, now_ms=stores.now_ms, close=stores.close
        )

    async def _open_store(self) -> Client:
        backend = await backends.connect(self.url)
        engine: Timers | None = None

        async def close() -> None:
            try:
                if engine is not None:
                    await engine.stop(ENGINE_GRACE_S)
            finally:
                await backend.close()

        try:
            if self._engine is not None:
                engine = self._engine(backend)
                await engine.start()
        except BaseException:
            await backend.close()
            raise
        return Client(backend, namespace=self._namespace, now_ms=backend.now_ms, close=close)


class Connecting:
    """A client to be: `async with` opens it and closes it, `await` opens it for the caller to close."""

    def __init__(self, target: Target) -> None:
        self._target: Target = target
        self._client: Client | None = None

    async def __aenter__(self) -> Client:
        if self._client is not None:
            raise Misuse("this connection is open already: call connect again for another")
        self._client = await self._target.open()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def __await__(self) -> Generator[Any, None, Client]:
        return self._target.open().__await__()


def connect(
    url: str | None = None,
    *,
    token: str | None = None,
    namespace: str = ids.DEFAULT_NAMESPACE,
    timeout_s: float = TIMEOUT_S,
    trust_environment: bool = False,
    engine: Callable[[Backend], Timers] | None = None,
) -> Connecting:
    """Connect to a server (`http://`, `https://`) or open a store (`sqlite:///`, `valkey://`).

    `async with connect(...) as ff:` does it, and closes what it opened.

    Without a URL the variable FLOWFABRIC_URL is used, then http://127.0.0.1:9090; without a token, FLOWFABRIC_TOKEN.
    `timeout_s` is the deadline of each call to a server. A store opened like this runs no timers, since servers and
    workers do; a program that is all there is may pass `engine=flowfabric.engine.supervisor.Engine`.

    Raises: `Misuse` for a URL or option that cannot work; opening a store, what the store says.
    """
    return Connecting(
        Target(
            url,
            token=token,
            namespace=namespace,
            timeout_s=timeout_s,
            trust_environment=trust_environment,
            engine=engine,
        )
    )
