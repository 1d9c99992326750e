"""Shared steps: backoff, ends, and the order in which deadlines, caps and graces act."""

from __future__ import annotations

from hypothesis import assume, given, strategies as st

from flowfabric.contract import limits
from flowfabric.contract.policies import Backoff, ExponentialBackoff, FixedBackoff
from flowfabric.rules.transitions import retry_delay_ms
from tests.contract.test_policies import BACKOFFS

COUNTS = st.integers(0, limits.MAX_RETRIES_MAX)


def _without_jitter(backoff: Backoff) -> Backoff:
    if isinstance(backoff, FixedBackoff):
        return FixedBackoff(delay_ms=backoff.delay_ms)
    return ExponentialBackoff(
        initial_delay_ms=backoff.initial_delay_ms,
        max_delay_ms=backoff.max_delay_ms,
        multiplier=backoff.multiplier,
    )


@given(backoff=BACKOFFS, count=COUNTS)
def test_backoff_is_bounded(backoff: Backoff, count: int) -> None:
    """A backoff is never negative and never above its policy's maximum, however many retries there were."""
    delay_ms = retry_delay_ms(backoff, "id", count)
    most = backoff.delay_ms if isinstance(backoff, FixedBackoff) else backoff.max_delay_ms
    assert 0 <= delay_ms <= most


@given(backoff=BACKOFFS, count=COUNTS)
def test_backoff_does_not_shrink(backoff: Backoff, count: int) -> None:
    """Without jitter each backoff is at least as long as the one before."""
    plain = _without_jitter(backoff)
    assert retry_delay_ms(plain, "id", count) <= retry_delay_ms(plain, "id", count + 1)


@given(backoff=BACKOFFS, count=COUNTS, execution_id=st.text(max_size=50))
def test_jitter_takes_half_to_all(backoff: Backoff, count: int, execution_id: str) -> None:
    """Jitter gives half to all of the backoff, the same for the same execution and count."""
    assume(backoff.jitter)
    whole = retry_delay_ms(_without_jitter(backoff), execution_id, count)
    delay_ms = retry_delay_ms(backoff, execution_id, count)
    assert whole // 2 <= delay_ms <= whole + 1
    assert delay_ms == retry_delay_ms(backoff, execution_id, count)


def test_jitter_spreads() -> None:
    """Different executions that fail at the same time come back at different times."""
    backoff = FixedBackoff(delay_ms=60_000, jitter=True)
    delays = [retry_delay_ms(backoff, f"execution {number}", 0) for number in range(1_000)]
    assert len(set(delays)) > 900
    assert 43_000 < sum(delays) / len(delays) < 47_000
