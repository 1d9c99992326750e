"""Where the library is: on every primary, as long as a process of its version lives, and not much longer.

It is loaded at open, again when a call finds it missing, and after a server appeared that may lack it (restarted,
promoted, joined); loading what is there changes nothing. Each process writes the name of its library into `{w}:libs`
every minute. A library that no process has named for a while is removed. That is safe even when it is wrong: a call
that finds its library missing was not executed, loads it and is sent again. Libraries that `{w}:libs` does not name
are left alone: another store on the same servers may use them.
"""

from __future__ import annotations

import asyncio
from typing import Final

from flowfabric.backends import reply
from flowfabric.backends.valkey.calling import Calls, failed
from flowfabric.backends.valkey.keys import LIBRARIES
from flowfabric.backends.valkey.library import Library
from flowfabric.backends.valkey.wire import Client, ServerError
from flowfabric.contract.errors import Misuse, Unavailable

REGISTER_EVERY_S: Final = 60.0
UNUSED_AFTER_MS: Final = 15 * 60_000
"""A library that nobody has named for this long is removed."""
LOAD_TIMEOUT_S: Final = 10.0


class Loader:
    """Loads one library on every primary of one store."""

    def __init__(self, client: Client, library: Library) -> None:
        self._client = client
        self._library = library
        self._loading: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Load the library wherever it is missing. Callers at the same time share the work.

        Raises: Misuse when the store does not let this user, Unavailable.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
            self._loading.add_done_callback(self._loaded)
        await asyncio.shield(self._loading)

    async def close(self) -> None:
        """Wait until nothing of this is under way."""
        if self._loading is not None:
            await asyncio.gather(self._loading, return_exceptions=True)

    def _loaded(self, task: asyncio.Task[None]) -> None:
        self._loading = None
        if not task.cancelled():
            # Those who wait raise it; when all of them were cancelled, the next call finds out.
            task.exception()

    async def _load(self) -> None:
        outcomes = await self._client.on_primaries(
            [("FUNCTION", "LOAD", self._library.code)], timeout_s=LOAD_TIMEOUT_S, repeatable=True
        )
        for server, (answer,) in outcomes.items():
            if not isinstance(answer, ServerError) or "already exists" in answer.message:
                continue
            if answer.code == "NOPERM":
                await self._require(server, answer)
                continue
            raise failed(answer)

    async def _require(self, server: str, refused: ServerError) -> None:
        """Accept that this user may not load functions if somebody else has loaded this library."""
        found = await self._client.on_primaries(
            [("FUNCTION", "LIST", "LIBRARYNAME", self._library.name)], repeatable=True
        )
        (listed,) = found.get(server, [[]])
        if not listed or isinstance(listed, ServerError):
            raise Misuse(
                f"{server} does not let this user load the functions FlowFabric is made of ({refused.message}): allow "
                "FUNCTION LOAD"
            )


class Registration:
    """Says which library this process uses, and removes those that nobody uses any more."""

    def __init__(self, calls: Calls, library: Library) -> None:
        self._calls = calls
        self._library = library

    async def register(self) -> None:
        """Say that this process uses its library now."""
        await self._calls.read(None, [("HSET", LIBRARIES, self._library.name, await self._calls.now_ms())])

    async def keep_registered(self) -> None:
        """Say so again and again, and tidy up, for ever."""
        while True:
            await asyncio.sleep(REGISTER_EVERY_S)
            try:
                await self.register()
                await self.remove_unused()
            except Unavailable:
                # The store cannot be reached or does not allow it; calls find out by themselves.
                continue

    async def remove_unused(self) -> list[str]:
        """Remove the libraries of this store that no process has named for a while; return their names."""
        now_ms = await self._calls.now_ms()
        (found,) = await self._calls.read(None, [("HGETALL", LIBRARIES)])
        unused = [
            reply.text(name)
            for name, used_ms in found.items()
            if int(used_ms) < now_ms - UNUSED_AFTER_MS and reply.text(name) != self._library.name
        ]
        for name in unused:
            outcomes = await self._calls.client.on_primaries([("FUNCTION", "DELETE", name)], repeatable=True)
            refused = [
                answer
                for (answer,) in outcomes.values()
                if isinstance(answer, ServerError) and "not found" not in answer.message.lower()
            ]
            if refused:
                raise failed(refused[0])
            await self._calls.read(None, [("HDEL", LIBRARIES, name)])
        return unused
