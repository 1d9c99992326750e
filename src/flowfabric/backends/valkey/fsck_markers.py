"""Marks that stand for payloads while fsck remembers which ones executions name."""

from __future__ import annotations

import hashlib

from flowfabric.backends.valkey.keys import Partition


def marker_of(partition: Partition, nonce: str) -> int:
    """Return 64 bits that stand for a payload. Two payloads with the same bits hide a stray one, no more."""
    return int.from_bytes(hashlib.blake2b(partition.payload(nonce).encode(), digest_size=8).digest(), "big")
