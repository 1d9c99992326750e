"""What fsck found, as far as it is listed, and marks that stand for payloads."""

from __future__ import annotations

import hashlib
from typing import Final

from flowfabric.backends.valkey.keys import Partition
from flowfabric.contract.backend import Finding

FINDINGS_MAX: Final = 1_000
REPAIRABLE: Final = "S10 index and record agree"


class Findings:
    """The first 1,000 findings."""

    def __init__(self) -> None:
        self._found: list[Finding] = []

    def add(self, invariant: str, subject: str, message: str, *, repaired: bool = False) -> None:
        """Note a finding, unless there are enough."""
        if len(self._found) < FINDINGS_MAX:
            self._found.append(
                Finding(invariant=invariant, subject=subject, message=message, repaired=repaired)
            )

    def listed(self) -> tuple[Finding, ...]:
        """Return what is listed."""
        return tuple(self._found)


def marker_of(partition: Partition, nonce: str) -> int:
    """Return 64 bits that stand for a payload. Two payloads with the same bits hide a stray one, no more."""
    return int.from_bytes(hashlib.blake2b(partition.payload(nonce).encode(), digest_size=8).digest(), "big")
