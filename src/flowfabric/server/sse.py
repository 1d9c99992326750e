"""Server-Sent Events on the tail route: one event a frame, resumable by `Last-Event-ID`.

Event ids are stream cursors. Events: `frame`, `trimmed` (retention removed frames before they could be read) and
`closed`, after which the answer ends. A comment every 15 s keeps proxies from closing a quiet connection.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

import msgspec

from flowfabric.contract.backend import Stores
from flowfabric.contract.errors import FlowFabricError, Unavailable
from flowfabric.contract.stream import Frame, FramePage, StreamTail
from flowfabric.contract.wire_types import shape_of
from flowfabric.server.requests import ClientGone, Headers, Receive, Send
from flowfabric.server.waiting import Load

CONTENT_TYPE: Final = b"text/event-stream"
HEARTBEAT_MS: Final = 15_000

_ENCODER: Final = msgspec.json.Encoder()
_FRAME: Final = shape_of(Frame)


def is_wanted(headers: Headers) -> bool:
    """Say whether the client asks for events."""
    return CONTENT_TYPE in headers.get(b"accept").lower()


def with_last_event(command: StreamTail, headers: Headers) -> StreamTail:
    """Continue after the last event the client saw, when it says which."""
    last = headers.get(b"last-event-id").strip()
    if not last:
        return command
    resumed = msgspec.structs.replace(command, after=last.decode("ascii", "replace"))
    resumed.check()
    return resumed


def _event(name: str, data: bytes, cursor: str | None = None) -> bytes:
    start = f"id: {cursor}\n".encode("ascii") if cursor is not None else b""
    return start + f"event: {name}\n".encode("ascii") + b"data: " + data + b"\n\n"


def _frame_data(frame: Frame) -> bytes:
    """Write a frame as the data of one event, so that its payload comes back identical.

    A line feed in a payload's JSON becomes a further `data:` line, which readers join by a line feed again; a carriage
    return would come back as one too, so such a payload goes as base64.
    """
    to_wire = _FRAME.to_wire
    assert to_wire is not None, "a frame has a payload"
    wire = to_wire(frame)
    if b"\r" in frame.payload.data:
        encoded = b64encode(frame.payload.data).decode("ascii")
        wire = msgspec.structs.replace(
            wire, payload=msgspec.UNSET, payload_base64=encoded, content_type=frame.payload.content_type
        )
    data = _ENCODER.encode(wire)
    return data.replace(b"\n", b"\ndata: ") if b"\n" in data else data


def _page_events(page: FramePage, *, whole_run: bool) -> bytes:
    parts: list[bytes] = []
    if page.trimmed:
        parts.append(_event("trimmed", b"{}"))
    for frame in page.frames:
        cursor = f"{frame.attempt_index}:{frame.frame_id}" if whole_run else frame.frame_id
        parts.append(_event("frame", _frame_data(frame), cursor))
    return b"".join(parts)


async def stream(
    stores: Stores,
    command: StreamTail,
    load: Load,
    receive: Receive,
    send: Send,
    more: list[tuple[bytes, bytes]],
) -> None:
    """Send frames as events until the stream closes, the client leaves or the server drains."""
    wait = msgspec.structs.replace(command, wait_ms=0)
    page = await stores.stream.tail(wait)
    headers = [
        (b"content-type", CONTENT_TYPE),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        *more,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    whole_run = command.attempt_index is None
    while True:
        if page.frames or page.trimmed:
            body = _page_events(page, whole_run=whole_run)
        elif page.closed_at_ms is not None:
            reason = page.closed_reason.value if page.closed_reason is not None else None
            closed: dict[str, Any] = {"closed_at_ms": page.closed_at_ms, "closed_reason": reason}
            body = _event("closed", _ENCODER.encode(closed), page.next_cursor)
            await send({"type": "http.response.body", "body": body})
            return
        else:
            body = b": waiting\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
        following = msgspec.structs.replace(command, after=page.next_cursor, wait_ms=HEARTBEAT_MS)
        try:
            page = await load.wait_for(stores.stream.tail(following), receive)  # pyright: ignore[reportArgumentType]
        except ClientGone:
            return
        except Unavailable:
            # The client comes back with its last event id.
            await send({"type": "http.response.body", "body": b""})
            return
        except FlowFabricError as error:
            data = _ENCODER.encode({"code": error.code, "message": error.message})
            await send({"type": "http.response.body", "body": _event("error", data)})
            return
