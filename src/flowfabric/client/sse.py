"""Server-Sent Events: the parser, and nothing about what the events mean."""

from __future__ import annotations

from typing import Final

import msgspec

from flowfabric.contract.errors import Misuse

EVENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one event: a frame of the largest size, as base64 in JSON, many times over."""


class Event(msgspec.Struct, frozen=True):
    """One event: its name, its data, and the id to resume after."""

    name: str
    data: bytes
    last_event_id: str


class EventParser:
    """Turns the bytes of a stream, in pieces of any size, into events."""

    def __init__(self) -> None:
        self._pending: bytes = b""
        self._size: int = 0
        self._name: str = ""
        self._data: list[bytes] = []
        self._last_event_id: str = ""
        self._at_start: bool = True

    def feed(self, piece: bytes) -> list[Event]:
        """Take a piece of the stream and return the events it completes, in order.

        Raises: `Misuse` when one event is larger than 4 MiB.
        """
        events: list[Event] = []
        lines = self._lines(piece)
        for line in lines:
            self._size += len(line)
            if not line:
                if self._data:
                    events.append(Event(self._name or "message", b"\n".join(self._data), self._last_event_id))
                self._name, self._data, self._size = "", [], 0
            else:
                self._field(line)
        if self._size + len(self._pending) > EVENT_BYTES_MAX:
            raise Misuse(f"the server sent an event of more than {EVENT_BYTES_MAX} bytes")
        return events

    def _lines(self, piece: bytes) -> list[bytes]:
        text = self._pending + piece
        if self._at_start and text:
            text = text.removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        # A carriage return at the end may be the first half of CR LF: wait for what follows.
        held = b"\r" if text.endswith(b"\r") else b""
        text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, last = text.split(b"\n")
        self._pending = last + held
        return lines

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._last_event_id = value.decode("utf-8", "replace")
