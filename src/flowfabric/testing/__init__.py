"""For tests of programs that use FlowFabric: a real store and engine in memory, with a clock that tests own.

Nothing here imitates anything: tests run the same store, rules and engine as production, only time stands still until
it is moved.
"""

from flowfabric.backends.clock import ManualClock
from flowfabric.testing.embedded import Embedded, embedded

__all__ = ["Embedded", "ManualClock", "embedded"]
