"""Logs: structured, on standard error; text on a terminal, JSON lines otherwise.

Execution id, attempt and trace ids are bound as context variables around a handler, so every line logged inside it
carries them, also lines by the standard library's logging once `configure` was called. What must stay true: payloads,
tokens and secrets are never logged, so tracebacks show no values of variables; a program that did not ask for our
configuration finds our lines in its own standard logging, and never on its standard output.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal

import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "text", "json"]

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_TALKATIVE: Final = ("asyncio", "uvicorn", "aiohttp")
"""Libraries of ours whose ordinary lines say nothing that we do not say ourselves."""


def configure(level: Level = "info", style: Format = "auto") -> None:
    """Set up logging for a process of ours; a library user's own configuration is never touched without this call.

    Lines by the standard library's logging come out in the same form.
    """
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any
    if as_text:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(sort_keys=False)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=[_add_origin, *shared],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(LEVELS[level])
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.WARNING))


def get_logger(name: str) -> Any:
    """Return a structured logger that names its origin.

    Until structlog is configured, by `configure` or by the program, its lines go to the standard library's logging.
    """
    return _Logger(name, {})


class _Logger:
    """Decides at each line where it goes, so that loggers made before the configuration follow it."""

    __slots__ = ("_name", "_values")

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self._name = name
        self._values = values

    def bind(self, **values: Any) -> _Logger:
        """Return a logger whose lines carry these fields too."""
        return _Logger(self._name, {**self._values, **values})

    def __getattr__(self, method: str) -> Any:
        if structlog.is_configured():
            return getattr(structlog.get_logger(origin=self._name, **self._values), method)
        return getattr(_standard(self._name).bind(**self._values), method)


def _standard(name: str) -> Any:
    return structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
    )


def _add_origin(_logger: Any, _method: str, event: Any) -> Any:
    record: logging.LogRecord = event["_record"]
    event["origin"] = record.name
    return event
