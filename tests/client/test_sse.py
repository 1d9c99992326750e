"""The parser of Server-Sent Events."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st

from flowfabric.client import sse
from flowfabric.client.sse import Event, EventParser
from flowfabric.contract.errors import Misuse

STREAM = (
    b"\xef\xbb\xbf: hello\n\n"
    b'id: 0:5-1\nevent: frame\ndata: {"a":\ndata: 1}\n\n'
    b"event: ping\n\n"
    b"data\n\n"
    b"id: bad\0id\nevent:frame\ndata:x\r\n\r\n"
    b"retry: 10\rid\rdata: y\r\r"
    b"data: unfinished"
)
EVENTS = [
    Event("frame", b'{"a":\n1}', "0:5-1"),
    Event("message", b"", "0:5-1"),
    Event("frame", b"x", "0:5-1"),
    Event("message", b"y", ""),
]


def test_events_are_read_as_the_standard_says() -> None:
    """Names, several data lines, kept ids, comments, all three line ends; an unfinished event is not one."""
    assert EventParser().feed(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_do_not_depend_on_how_the_bytes_arrive(cuts: list[int]) -> None:
    """Wherever the stream is cut into pieces, the events are the same."""
    parser = EventParser()
    bounds = [0, *sorted(cuts), len(STREAM)]
    found: list[Event] = []
    for begin, end in itertools.pairwise(bounds):
        found += parser.feed(STREAM[begin:end])
    assert found == EVENTS


def test_an_endless_event_is_refused() -> None:
    """A server cannot fill the client's memory with one event."""
    parser = EventParser()
    piece = b"data: " + b"x" * 1024 * 1024 + b"\n"
    with pytest.raises(Misuse):
        for _ in range(sse.EVENT_BYTES_MAX // len(piece) + 2):
            parser.feed(piece)
    with pytest.raises(Misuse):
        EventParser().feed(b"data: " + b"x" * (sse.EVENT_BYTES_MAX + 1))
