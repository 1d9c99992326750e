"""Server-Sent Events on the tail routes: frames as they are written, resumable, ended by the stream's end."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from flowfabric.client.sse import Event, EventParser
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import Kind
from flowfabric.contract.lease import Lease
from flowfabric.contract.payloads import Payload
from flowfabric.contract.policies import ExecutionPolicy, StreamPolicy
from flowfabric.contract.stream import FrameInput, StreamAppend
from flowfabric.server import sse
from tests.server.conftest import TOKEN, Start
from tests.server.talking import PATIENCE_S, Site, connected, until

EVENTS = {"accept": "text/event-stream"}


@dataclass
class Following:
    """An open stream of events."""

    response: aiohttp.ClientResponse
    parser: EventParser
    pending: list[Event]
    raw: bytes = b""

    async def next(self) -> Event:
        """Wait for the next event."""
        while not self.pending:
            piece = await self.response.content.readany()
            assert piece, "the stream ended"
            self.raw += piece
            self.pending += self.parser.feed(piece)
        return self.pending.pop(0)

    async def rest(self) -> list[Event]:
        """Read to the end of the answer."""
        while piece := await self.response.content.readany():
            self.pending += self.parser.feed(piece)
        return self.pending


@asynccontextmanager
async def following(
    site: Site, path: str, *, last: str | None = None, status: int = 200
) -> AsyncGenerator[Following]:
    """Follow a stream by events."""
    headers = {**site.headers, **EVENTS, **({"last-event-id": last} if last is not None else {})}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with site.session.get(site.url + path, headers=headers, timeout=timeout) as response:
        assert response.status == status, await response.read()
        yield Following(response, EventParser(), [])


def run_path(lease: Lease) -> str:
    """Return the tail of a whole run."""
    return f"/v1/executions/{quote(lease.execution_id, safe='')}/stream/tail"


def attempt_path(lease: Lease) -> str:
    """Return the tail of one attempt."""
    return f"/v1/executions/{quote(lease.execution_id, safe='')}/attempts/0/stream/tail"


async def begun(site: Site) -> Lease:
    """Create and claim an execution."""
    await site.create()
    return await site.claim()


def payload_of(event: Event) -> Any:
    """Return a frame event's payload."""
    return json.loads(event.data)["payload"]


async def test_headers(site: Site) -> None:
    """The answer is an event stream that nothing on the way may keep or hold back."""
    async with following(site, run_path(await begun(site))) as events:
        headers = events.response.headers
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert "x-request-id" in headers


async def test_frames_as_they_are_written(site: Site) -> None:
    """Each frame is one event whose id is its cursor; the end is an event, after which the answer ends."""
    lease = await begun(site)
    async with following(site, attempt_path(lease)) as events:
        for number in (1, 2, 3):
            frame_id = await site.append(lease, number, {"n": number})
            event = await events.next()
            assert (event.name, event.last_event_id, payload_of(event)) == ("frame", frame_id, {"n": number})
        await site.complete(lease)
        event = await events.next()
        assert event.name == "closed"
        assert json.loads(event.data)["closed_reason"] == "attempt_success"
        assert await events.rest() == []


async def test_whole_run(site: Site) -> None:
    """Over a whole run the ids name the attempt, and each attempt begins with a marker."""
    lease = await begun(site)
    await site.append(lease, 1, "a")
    await site.complete(lease)
    async with following(site, run_path(lease)) as events:
        received = await events.rest()
    assert [event.name for event in received] == ["frame", "frame", "closed"]
    types = [json.loads(event.data).get("frame_type") for event in received]
    assert types == ["attempt_started", "event", None]
    assert all(event.last_event_id.startswith("0:") for event in received[:2])


@pytest.mark.parametrize("path_of", [run_path, attempt_path])
async def test_resume(site: Site, path_of: Any) -> None:
    """With `Last-Event-ID` the stream goes on after that event, wherever it was cut, missing and repeating nothing."""
    lease = await begun(site)
    await site.append(lease, 1, *range(5))
    await site.complete(lease)
    async with following(site, path_of(lease)) as events:
        whole = await events.rest()
    for cut, event in enumerate(whole[:-1]):
        async with following(site, path_of(lease), last=event.last_event_id) as events:
            assert [again.data for again in await events.rest()] == [after.data for after in whole[cut + 1 :]]


async def test_last_event_beats_after(site: Site) -> None:
    """`Last-Event-ID` counts more than `after`, which a reconnecting browser sends again unchanged."""
    lease = await begun(site)
    first = await site.append(lease, 1, "a")
    second = await site.append(lease, 2, "b")
    await site.append(lease, 3, "c")
    async with following(site, f"{attempt_path(lease)}?after={first}", last=second) as events:
        assert payload_of(await events.next()) == "c"


@pytest.mark.parametrize("last", ["x", "1:2", "-1", "9" * 400, "ä", "1-2-3"])
async def test_malformed_last_event(site: Site, last: str) -> None:
    """A last event id that is no cursor is refused before the stream starts."""
    reply = await site.get(attempt_path(await begun(site)), {**EVENTS, "last-event-id": last})
    assert (reply.status, reply.code) == (400, "invalid_offset")


async def test_resume_after_the_end(site: Site) -> None:
    """Resuming after the last frame of a finished stream gives its end at once, and so does resuming after that."""
    lease = await begun(site)
    await site.append(lease, 1, "a")
    await site.complete(lease)
    async with following(site, attempt_path(lease)) as events:
        *_, closed = await events.rest()
    async with following(site, attempt_path(lease), last=closed.last_event_id) as events:
        assert [event.name for event in await events.rest()] == ["closed"]


async def test_trimmed(site: Site) -> None:
    """Frames that were removed before they could be read are reported by an event of their own."""
    created = await site.backend.execution.create(
        ExecutionCreate(
            kind=Kind("k"), policy=ExecutionPolicy(stream_policy=StreamPolicy(retention_maxlen=2))
        )
    )
    lease = await site.claim()
    assert lease.execution_id == created.execution_id
    await site.append(lease, 1, *range(5))
    async with following(site, attempt_path(lease)) as events:
        assert (await events.next()).name == "trimmed"
        assert [payload_of(await events.next()) for _ in range(2)] == [3, 4]


@pytest.mark.parametrize(
    "payload",
    [
        Payload(b'{"a":\n 1,\n\n"data: x":\r\n"event: closed\\n"}'),
        Payload(b'"\xe2\x80\xa8"'),
        Payload(b"\r\n\r\nevent: closed\r\n\r\n", "text/plain"),
        Payload(b'"' + b"x" * 65_000 + b'"'),
    ],
)
async def test_payloads_cannot_break_out(site: Site, payload: Payload) -> None:
    """No payload can end its event or start another: its value arrives whole."""
    lease = await begun(site)
    await site.backend.stream.append(
        StreamAppend(
            execution_id=lease.execution_id,
            attempt_index=0,
            fence=lease.fence,
            frames=(FrameInput(sequence=1, payload=payload),),
        )
    )
    await site.complete(lease)
    async with following(site, attempt_path(lease)) as events:
        frame, closed = await events.rest()
    assert (frame.name, closed.name) == ("frame", "closed")
    document = json.loads(frame.data)
    if "payload" in document:
        assert document["payload"] == json.loads(payload.data)
    else:
        assert base64.b64decode(document["payload_base64"]) == payload.data
        assert document["content_type"] == payload.content_type


async def test_heartbeat(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens a comment is sent from time to time, which is no event."""
    monkeypatch.setattr(sse, "HEARTBEAT_MS", 10)
    lease = await begun(site)
    async with following(site, attempt_path(lease)) as events:
        while events.raw.count(b"\n\n") < 3:
            piece = await events.response.content.readany()
            events.raw += piece
            assert events.parser.feed(piece) == []
        assert all(line.startswith(b":") for line in events.raw.split(b"\n") if line)
        await site.append(lease, 1, "x")
        assert (await events.next()).name == "frame"


async def test_refusals_are_problems(site: Site) -> None:
    """What is refused is refused with an ordinary problem, not with events."""
    unknown = quote("{fp:7}:550e8400-e29b-41d4-a716-446655440000", safe="")
    reply = await site.get(f"/v1/executions/{unknown}/stream/tail", EVENTS)
    assert (reply.status, reply.code) == (404, "execution_not_found")


async def test_events_need_the_token(start: Start) -> None:
    """Events need the token like every other read."""
    site = await start({"FF_API_TOKEN": TOKEN})
    lease = await begun(site)
    async with following(site, run_path(lease)) as events:
        assert (await events.next()).name == "frame"
    site.headers = {}
    assert (await site.get(run_path(lease), EVENTS)).status == 401


async def test_head_of_events(site: Site) -> None:
    """HEAD on a tail answers at once, without a stream."""
    reply = await site.send("HEAD", attempt_path(await begun(site)), headers=EVENTS)
    assert (reply.status, reply.body) == (200, b"")


async def test_follower_that_leaves(site: Site) -> None:
    """A follower that leaves gives its place back."""
    lease = await begun(site)
    async with connected(site) as socket:
        socket.write(
            f"GET {attempt_path(lease)} HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n".encode()
        )
        await until(lambda: site.application.load.waits == 1)
    await until(lambda: site.application.load.waits == 0)


async def test_many_followers(site: Site) -> None:
    """Everybody who follows a stream gets each frame once."""
    lease = await begun(site)
    path = attempt_path(lease)
    async with following(site, path) as one, following(site, path) as two, following(site, path) as three:
        await until(lambda: site.application.load.waits == 3)
        for number in range(1, 6):
            await site.append(lease, number, number)
        await site.complete(lease)
        for follower in (one, two, three):
            *frames, closed = await follower.rest()
            assert [payload_of(frame) for frame in frames] == [1, 2, 3, 4, 5]
            assert closed.name == "closed"
