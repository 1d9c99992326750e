"""Talking to a server: by a real HTTP client, and by bare sockets for what no decent client would send."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate
from flowfabric.contract.ids import ExecutionId, Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload
from flowfabric.contract.stream import FrameInput, StreamAppend
from flowfabric.server.app import Application

PATIENCE_S = 20.0
"""How long a test waits for what must happen; never how long it takes."""


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code; the body must be a problem in the one form there is."""
        document = self.json
        assert set(document) == {"error"}, document
        assert set(document["error"]) == {"code", "message", "retryable", "details"}, document
        assert self.headers["content-type"] == "application/json"
        return document["error"]["code"]

    @property
    def details(self) -> dict[str, Any]:
        """The error's details."""
        return self.json["error"]["details"]


@dataclass
class Site:
    """A running server, the store behind it, and a client's session."""

    url: str
    backend: Backend
    session: aiohttp.ClientSession
    application: Application
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None and parts.port is not None
        return parts.hostname, parts.port

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send a request with a JSON body, or with `data` as it is."""
        sent = {**self.headers, **(headers or {})}
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            sent.setdefault("content-type", "application/json")
        async with self.session.request(
            method,
            self.url + path,
            data=data if data is None else io.BytesIO(data),
            headers=sent,
            allow_redirects=False,
        ) as response:
            lower = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, lower, await response.read())

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Reply:
        """Read a path."""
        return await self.send("GET", path, headers=headers)

    async def post(self, path: str, body: Any = None, **more: Any) -> Reply:
        """Post a JSON body."""
        return await self.send("POST", path, body, **more)

    # The store behind it ------------------------------------------------------------------------------------------

    async def create(self, value: Any = None, *, lane: str = "default") -> ExecutionId:
        """Create an execution in the store and return its id."""
        created = await self.backend.execution.create(
            ExecutionCreate(kind=Kind("k"), lane=Lane(lane), input=Payload(json.dumps(value).encode()))
        )
        return created.execution_id

    async def claim(self, lane: str = "default", *, wait_ms: int = 0) -> Lease:
        """Lease the execution that is eligible in a lane, or will be in time."""
        claimed = await self.backend.lease.claim(
            LeaseClaim(
                worker_id=WorkerId("w"),
                worker_instance=WorkerInstance("w-1"),
                lanes=(Lane(lane),),
                wait_ms=wait_ms,
            )
        )
        return claimed.leases[0]

    async def complete(self, lease: Lease, result: Payload | None = None) -> None:
        """Complete an execution."""
        await self.backend.execution.complete(
            ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=result)
        )

    async def append(self, lease: Lease, first: int, *values: Any) -> str:
        """Append JSON frames and return the last one's id."""
        appended = await self.backend.stream.append(
            StreamAppend(
                execution_id=lease.execution_id,
                attempt_index=lease.attempt_index,
                fence=lease.fence,
                frames=tuple(
                    FrameInput(sequence=first + index, payload=Payload(json.dumps(value).encode()))
                    for index, value in enumerate(values)
                ),
            )
        )
        return appended.last_frame_id


@dataclass
class Socket:
    """A bare connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)

    async def reply(self) -> Reply:
        """Read one answer with a content length, or without a body."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", "0"))
        body = await asyncio.wait_for(self.reader.readexactly(length), PATIENCE_S)
        return Reply(int(first.split(" ")[1]), headers, body)

    async def closed(self) -> bytes:
        """Wait until the server closes, and return what it had still sent."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE_S)
        except ConnectionError:
            return b""


@asynccontextmanager
async def connected(site: Site) -> AsyncGenerator[Socket]:
    """Open a bare connection to a server."""
    reader, writer = await asyncio.open_connection(*site.address)
    try:
        yield Socket(reader, writer)
    finally:
        writer.close()


async def ask(site: Site, data: bytes) -> Reply:
    """Send bytes on a connection of their own and read one answer."""
    async with connected(site) as socket:
        socket.write(data)
        return await socket.reply()


async def until(happened: Any) -> None:
    """Wait until a condition holds that nothing announces."""
    async with asyncio.timeout(PATIENCE_S):
        while not happened():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
