"""What a check of a whole store found, as far as it is listed."""

from __future__ import annotations

from typing import Final

from flowfabric.contract.backend import Finding

FINDINGS_MAX: Final = 1_000
REPAIRABLE: Final = "S10 index and record agree"
"""What `repair` puts right: index entries follow from the records."""


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
