"""Numbers for state vectors, as stores that cannot keep the contract's words in every record keep them.

A vector is stored as its number, so the numbers of a released version never change: new vectors are appended.
"""

from __future__ import annotations

from typing import Final

from flowfabric.contract.states import (
    BLOCKED,
    DELAYED,
    ELIGIBLE,
    ENDED,
    LEASE_EXPIRED,
    LEASE_REVOKED,
    LEASED,
    WAITING_CHILDREN,
    StateVector,
)

VECTORS: Final[tuple[StateVector, ...]] = (
    LEASED,
    LEASE_EXPIRED,
    LEASE_REVOKED,
    *ELIGIBLE.values(),
    *DELAYED.values(),
    *WAITING_CHILDREN.values(),
    *BLOCKED.values(),
    *ENDED.values(),
)
"""Every vector that is stored, by its number."""
NUMBERS: Final[dict[StateVector, int]] = {vector: number for number, vector in enumerate(VECTORS)}
