"""Execution id, attempt and trace in the user's own log lines.

structlog users get them as context variables. For the standard library's logging there is a filter.
"""

from __future__ import annotations

import logging
from typing import Final

from flowfabric.worker.attempt_run import CURRENT, log_fields

FIELDS: Final = ("execution_id", "attempt", "kind", "trace_id", "span_id")


class AttemptLogFilter(logging.Filter):
    """Adds `execution_id`, `attempt`, `kind`, `trace_id` and `span_id` to records logged inside a handler.

    Add it to a handler of the standard library's logging; outside of tasks the fields are empty.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; no record is dropped."""
        run = CURRENT.get()
        fields = log_fields(run) if run is not None else {}
        for name in FIELDS:
            setattr(record, name, fields.get(name, ""))
        return True
