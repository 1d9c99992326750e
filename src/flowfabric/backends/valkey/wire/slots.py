"""Which of a cluster's 16,384 slots a key belongs to."""

from __future__ import annotations

from typing import Final

from flowfabric.contract.ids import crc16

SLOTS: Final = 16_384


def slot_of(key: bytes) -> int:
    """Return a key's slot, 0 to 16,383: that of its hash tag (the first non-empty `{...}`) when it has one."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc16(key) % SLOTS
