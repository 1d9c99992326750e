"""Logs: one form for all lines of a process, ids of the execution in them, no values of variables.

Each case runs in a process of its own, because logging is configured once for a whole process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

SPEAK = """
import logging, sys, structlog
from flowfabric.telemetry import log
early = log.get_logger("flowfabric.early")
{configure}
structlog.contextvars.bind_contextvars(execution_id="e1", trace_id="t1")
early.info("began", count=1)
early.bind(more="m").warning("careful")
early.debug("detail")
logging.getLogger("user").info("by %s", "logging")
logging.getLogger("user").debug("detail")
logging.getLogger("uvicorn.error").info("chatter")
def broken(token):
    raise ValueError("went wrong")
try:
    broken("s3cret" + "-token")
except ValueError:
    early.exception("failed")
    logging.getLogger("user").exception("failed too")
"""


def speak(configure: str) -> subprocess.CompletedProcess[str]:
    """Run the lines above after a configuration."""
    return subprocess.run(
        [sys.executable, "-c", SPEAK.format(configure=configure)], capture_output=True, text=True, check=True
    )


def lines(ran: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Read the JSON lines."""
    assert ran.stdout == ""
    return [json.loads(line) for line in ran.stderr.splitlines()]


def test_json_lines() -> None:
    """Off a terminal every line is a JSON object with level, time, origin and the bound ids, whoever logged it."""
    said = lines(speak('log.configure("info")'))
    assert [line["event"] for line in said] == ["began", "careful", "by logging", "failed", "failed too"]
    assert [line["level"] for line in said] == ["info", "warning", "info", "error", "error"]
    for line in said:
        assert (line["execution_id"], line["trace_id"]) == ("e1", "t1")
        assert line["timestamp"].endswith("Z")
    assert [line["origin"] for line in said] == ["flowfabric.early"] * 2 + [
        "user",
        "flowfabric.early",
        "user",
    ]
    assert (said[0]["count"], said[1]["more"]) == (1, "m")
    assert all("ValueError: went wrong" in line["exception"] for line in said[3:])


@pytest.mark.parametrize("style", ["json", "text"])
def test_no_values(style: str) -> None:
    """A traceback shows lines of code and no values of variables, in either form."""
    ran = speak(f'log.configure("info", "{style}")')
    assert "went wrong" in ran.stderr
    assert "s3cret-token" not in ran.stderr


def test_text() -> None:
    """As text, each event is one readable line, without colours off a terminal."""
    ran = speak('log.configure("info", "text")')
    assert ran.stdout == ""
    assert "\x1b" not in ran.stderr
    assert "began" in ran.stderr
    assert "execution_id=e1" in ran.stderr


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", {"began", "careful", "detail", "by logging", "failed", "failed too"}),
        ("warning", {"careful", "failed", "failed too"}),
        ("error", {"failed", "failed too"}),
    ],
)
def test_levels(level: str, events: set[str]) -> None:
    """Lines below the level are left out."""
    assert {line["event"] for line in lines(speak(f'log.configure("{level}", "json")'))} == events


def test_unconfigured() -> None:
    """A program that configured nothing gets warnings on standard error and nothing on standard output."""
    ran = speak("")
    assert ran.stdout == ""
    assert "careful" in ran.stderr
    assert "began" not in ran.stderr


def test_programs_own_logging() -> None:
    """A program's own standard logging gets our lines under our names, with the bound ids."""
    own = 'logging.basicConfig(level="INFO", format="%(name)s|%(levelname)s|%(message)s", stream=sys.stderr)'
    ran = speak(own)
    assert ran.stdout == ""
    first = ran.stderr.splitlines()[0]
    assert first.startswith("flowfabric.early|INFO|event='began'")
    assert "execution_id='e1'" in first


def test_programs_own_structlog() -> None:
    """A program's own structlog configuration is used as it is."""
    own = "structlog.configure(processors=[structlog.processors.JSONRenderer()])"
    ran = speak(own)
    assert json.loads(ran.stdout.splitlines()[0]) == {
        "origin": "flowfabric.early",
        "count": 1,
        "event": "began",
    }
