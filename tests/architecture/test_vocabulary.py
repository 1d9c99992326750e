"""Words written in SQL exist in the contract, and the conformance suite speaks of no backend."""

from __future__ import annotations

import importlib
import re
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tests.architecture.house import BACKENDS, SRC, TESTS, files, relative

COMMENT: Final = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
WORD: Final = re.compile(r"'([a-z][a-z0-9_]*)'")
COLUMN_WITH_WORDS: Final = re.compile(
    r"""
    \b(?P<column>[a-z][a-z0-9_]*)"?\s*
    (?: (?:=|==|<>|!=|\bIS\b(?:\s+NOT\b)?)\s* (?P<one>'[^']*')
      | (?:\bNOT\s+)?\bIN\s*\( (?P<several>[^()]*) \)
      | [^,;()]*? \bDEFAULT\s+ (?P<default>'[^']*')
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
STATE_COLUMN: Final = re.compile(r"(?:\w+_)?(?:state|phase|outcome)")
BACKEND_NAME: Final = re.compile(r"sqlite|valkey|redis|postgres", re.IGNORECASE)

SQL: Final = files(SRC, ".sql")
CONFORMANCE: Final = [path for path in files(TESTS / "conformance", ".py") if path.name.startswith("test_")]


@cache
def _enums() -> dict[str, frozenset[str]]:
    """Return the members of each enumeration in the contract's states, by its column's name (`lifecycle_phase`)."""
    states = importlib.import_module("flowfabric.contract.states")
    enums = [
        kind
        for kind in vars(states).values()
        if isinstance(kind, type) and issubclass(kind, Enum) and kind.__module__ == states.__name__
    ]
    found = {
        re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): frozenset(
            str(member.value) for member in kind
        )
        for kind in enums
    }
    # What a column for the state of an attempt holds: what its execution says of it, or its own.
    return found | {"attempt_state": found["attempt_state"] | found["attempt_record_state"]}


def _unknown_words(sql: str) -> list[str]:
    """List `column: word` for each word compared with, or given to, a state column that has no such state."""
    enums = _enums()
    anywhere = frozenset[str]().union(*enums.values())
    unknown: list[str] = []
    for match in COLUMN_WITH_WORDS.finditer(COMMENT.sub("", sql)):
        column = match["column"].lower()
        if column not in enums and not STATE_COLUMN.fullmatch(column):
            continue
        known = enums.get(column, anywhere)
        text = match["one"] or match["several"] or match["default"] or ""
        unknown += [f"{column}: {word}" for word in WORD.findall(text) if word not in known]
    return unknown


@pytest.mark.parametrize("path", SQL, ids=relative)
def test_states_in_sql_exist(path: Path) -> None:
    """A state named in SQL is one of the contract's."""
    unknown = _unknown_words(path.read_text(encoding="utf-8"))
    assert not unknown, f"{relative(path)}: {unknown}"


@pytest.mark.parametrize(
    ("sql", "unknown"),
    [
        ("SELECT 1 FROM execution WHERE lifecycle_phase = 'active'", []),
        ("SELECT 1 FROM execution WHERE lifecycle_phase = 'dormant'", ["lifecycle_phase: dormant"]),
        ("... e.public_state NOT IN ('completed', 'done')", ["public_state: done"]),
        ("CREATE TABLE lane (state TEXT NOT NULL DEFAULT 'open')", ["state: open"]),
        ("UPDATE lane SET state='paused' -- state = 'open'", []),
        ("UPDATE lane SET reason = 'because'", []),
    ],
)
def test_the_check_sees_unknown_states(sql: str, unknown: list[str]) -> None:
    """The vocabulary check notices a wrong word in each form SQL has for it."""
    assert _unknown_words(sql) == unknown


@pytest.mark.parametrize("path", CONFORMANCE, ids=relative)
def test_conformance_names_no_backend(path: Path) -> None:
    """A conformance test holds for every backend, so it names none."""
    named = [
        f"{relative(path)}:{number}: {line.strip()}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if BACKEND_NAME.search(line)
    ]
    assert not named, "\n".join(named)


def test_backend_peculiarities_say_why() -> None:
    """A test file of one backend starts with a docstring that says what is peculiar to it."""
    names = sorted(path.name for path in (BACKENDS.iterdir() if BACKENDS.is_dir() else ()) if path.is_dir())
    silent = [
        relative(path)
        for name in names
        for path in files(TESTS / "backends" / name, ".py")
        if path.name.startswith("test_") and not path.read_text(encoding="utf-8").startswith('"""')
    ]
    assert not silent, silent
