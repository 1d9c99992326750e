"""What a group of commits announces: to the waiters of this process, and in a datagram to the others."""

from __future__ import annotations

from typing import Final

import msgspec

from flowfabric.backends.bells import Bells, Topic, Wake

DATAGRAM_BYTES_MAX: Final = 1_900
"""Some systems take datagrams of 2,048 bytes at most on local sockets."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    work: list[tuple[Topic, int]]
    lanes: list[str]
    changed: list[str]
    due_at_ms: int | None


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Message)
EVERYTHING: Final = b"*"
"""A datagram that says no more than: look at everything."""


class News:
    """Collects what to announce while a group runs; nothing is announced before the group is committed."""

    __slots__ = ("changed", "due_at_ms", "lanes", "work")

    def __init__(self) -> None:
        self.work: dict[Topic, int] = {}
        self.lanes: set[str] = set()
        self.changed: set[str] = set()
        self.due_at_ms: int | None = None

    def __bool__(self) -> bool:
        return bool(self.work or self.lanes or self.changed or self.due_at_ms is not None)

    def claimable(self, topic: Topic) -> None:
        """Note that one more execution became claimable."""
        self.work[topic] = self.work.get(topic, 0) + 1

    def due(self, at_ms: int) -> None:
        """Note that something is due at an instant."""
        if self.due_at_ms is None or at_ms < self.due_at_ms:
            self.due_at_ms = at_ms

    def ring(self, bells: Bells) -> list[Wake]:
        """Wake whom it concerns in this process."""
        wakes: list[Wake] = []
        for topic, count in self.work.items():
            wakes += bells.ring_work(topic, count)
        for lane in self.lanes:
            wakes += bells.ring_lane(lane)
        if self.changed:
            wakes += bells.ring_executions(self.changed)
        if self.due_at_ms is not None:
            wakes += bells.ring_due(self.due_at_ms)
        return wakes

    def encode(self) -> bytes:
        """Write it as a datagram; too much news becomes `EVERYTHING`."""
        if len(self.changed) + len(self.work) > 64:
            return EVERYTHING
        data = _ENCODER.encode(
            _Message(list(self.work.items()), list(self.lanes), list(self.changed), self.due_at_ms)
        )
        return data if len(data) <= DATAGRAM_BYTES_MAX else EVERYTHING


def decode(data: bytes) -> News | None:
    """Read a datagram; None means everything (also when it cannot be read: it is only a reason to look)."""
    if data == EVERYTHING:
        return None
    try:
        message = _DECODER.decode(data)
    except msgspec.MsgspecError:
        return None
    news = News()
    news.work.update(message.work)
    news.lanes.update(message.lanes)
    news.changed.update(message.changed)
    news.due_at_ms = message.due_at_ms
    return news
