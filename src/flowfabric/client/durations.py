"""Lengths of time as people give them: seconds, a `timedelta`, or text such as `"30s"`, `"1h30m"`, `"500ms"`."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import Final

from flowfabric.contract import limits
from flowfabric.contract.errors import Misuse

Duration = float | int | str | timedelta

_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|[smhdw])\s*")
_TEXT: Final = re.compile(rf"\s*(?:{_PART.pattern})+")


def milliseconds(value: Duration, field: str) -> int:
    """Return a length of time in whole milliseconds. Numbers are seconds.

    Raises: `Misuse` for text without a unit, negative, not finite, or longer than ten years.
    """
    if isinstance(value, timedelta):
        length = value / timedelta(milliseconds=1)
    elif isinstance(value, str):
        length = _parse(value, field)
    else:
        length = float(value) * 1_000
    if not math.isfinite(length) or not 0 <= length <= limits.DURATION_MAX_MS:
        raise Misuse(f"{field} is a length of time from 0 to ten years, not {value!r}", field=field)
    return round(length)


def _parse(text: str, field: str) -> float:
    if _TEXT.fullmatch(text) is None:
        raise Misuse(
            f'{field}={text!r} is not a length of time: write a number of seconds, or text such as "30s", "5m", '
            '"1h30m", "500ms"',
            field=field,
        )
    return sum(float(number) * _UNITS_MS[unit] for number, unit in _PART.findall(text))


def instant_ms(value: datetime, field: str) -> int:
    """Return a point in time as milliseconds since the epoch.

    Raises: `Misuse` for a datetime without a time zone.
    """
    if value.tzinfo is None:
        raise Misuse(
            f"{field} has no time zone: use datetime.now(timezone.utc) or .astimezone()", field=field
        )
    return max(0, round(value.timestamp() * 1_000))
