"""Rules of attempts: they are only read."""

from __future__ import annotations

from flowfabric.contract.projections import attempt_info as info

__all__ = ["info"]
