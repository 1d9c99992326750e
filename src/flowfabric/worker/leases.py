"""One lease as its holder sees it: what is known about its health, and how its loss reaches whoever works under it.

The renewal thread writes here and the worker's event loop reads, so every attribute is a plain value whose assignment
is atomic. Times are `time.monotonic()` seconds of this process, except where a name ends in `_ms`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from flowfabric.contract.errors import ExecutionNotActive, Refused
from flowfabric.contract.lease import Lease

UNHEALTHY_AFTER: Final = 3
"""Consecutive renewal failures after which a lease counts as unhealthy."""

RENEWAL_PART: Final = 3
"""A lease is renewed at least once in each third of its life."""

STALL_TTLS: Final = 10
"""Without an attempt timeout, a lease is renewed for this many of its lives while the event loop makes no progress."""

LOST_CODES: Final = frozenset(
    {
        "stale_lease",
        "lease_expired",
        "lease_revoked",
        "execution_not_active",
        "execution_not_found",
        "stale_owner_cannot_append",
        "stream_closed",
    }
)
"""Refusals that say that the lease is gone for good."""


class HeldLease:
    """A lease this process holds."""

    __slots__ = (
        "asked_at",
        "failures",
        "lease",
        "lost_reason",
        "on_lost",
        "renewed_at",
        "renewing",
        "stall_limit_s",
        "store_offset_ms",
        "ttl_s",
    )

    def __init__(self, lease: Lease, on_lost: Callable[[str], None], obtained_at: float) -> None:
        """Start to hold a lease that was asked for at `obtained_at`; `on_lost` is called from another thread."""
        self.lease: Lease = lease
        self.on_lost: Callable[[str], None] = on_lost
        self.ttl_s: float = lease.lease_ttl_ms / 1_000
        self.renewed_at: float = obtained_at
        self.asked_at: float = obtained_at
        """When a renewal was last asked for."""
        self.store_offset_ms: float = (
            lease.lease_expires_at_ms - lease.lease_ttl_ms - time.monotonic() * 1_000
        )
        """Add to the monotonic clock, in milliseconds, to get the store's clock."""
        self.failures: int = 0
        self.renewing: bool = False
        self.lost_reason: str | None = None
        timeout_at_ms = lease.attempt_timeout_at_ms
        self.stall_limit_s: float = (
            STALL_TTLS * self.ttl_s
            if timeout_at_ms is None
            else max(0.0, (timeout_at_ms - lease.lease_expires_at_ms + lease.lease_ttl_ms) / 1_000)
        )

    @property
    def is_healthy(self) -> bool:
        """Say whether the lease is held and its renewals get through."""
        return self.lost_reason is None and self.failures < UNHEALTHY_AFTER

    @property
    def expires_at(self) -> float:
        """When the lease has surely run out unless it is renewed before."""
        return self.renewed_at + self.ttl_s

    def store_now_ms(self) -> int:
        """Estimate the store's clock."""
        return int(time.monotonic() * 1_000 + self.store_offset_ms)

    def renewed(self, asked_at: float, expires_at_ms: int) -> None:
        """Note a renewal that was asked for at `asked_at`."""
        self.renewed_at = asked_at
        self.failures = 0
        self.store_offset_ms = expires_at_ms - self.lease.lease_ttl_ms - time.monotonic() * 1_000

    def lose(self, reason: str) -> None:
        """Note that the lease is gone, once, and tell its holder."""
        if self.lost_reason is None:
            self.lost_reason = reason
            self.on_lost(reason)


def is_lost(error: Refused) -> bool:
    """Say whether a refusal means that the lease is gone."""
    return error.code in LOST_CODES


def loss_reason(error: Refused) -> str:
    """Name why a lease is gone: how the execution ended, else the refusal's code."""
    if isinstance(error, ExecutionNotActive):
        outcome = error.details.get("terminal_outcome")
        if isinstance(outcome, str) and outcome != "none":
            return outcome
    return error.code
