"""What every test shares: how much Hypothesis tries."""

from __future__ import annotations

import os
import signal
from typing import Final

from hypothesis import HealthCheck, settings

_QUIET: Final = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)

settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=_QUIET)
settings.register_profile("thorough", deadline=None, max_examples=2_000, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for jobs in the background; the processes that tests start must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
