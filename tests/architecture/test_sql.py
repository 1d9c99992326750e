"""The SQL of the Postgres backend by its text: functions are where their names say and say what they refuse.

That functions and statements fit the schema is checked on a server, with the backend's own tests.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from flowfabric.backends.postgres import constants
from flowfabric.backends.postgres.calling import AGAIN
from flowfabric.contract.errors import BY_CODE
from flowfabric.contract.operations import OPERATIONS
from tests.architecture.house import BACKENDS, files, relative

SQL: Final = BACKENDS / "postgres" / "sql"
FUNCTIONS: Final = files(SQL / "functions", ".sql")
SHARED: Final = "_core"
OF_CONCEPTS: Final = [path for path in FUNCTIONS if path.parent.name != SHARED]
STATEMENTS: Final = [*files(SQL / "queries", ".sql"), *FUNCTIONS]
FUNCTION_LINES_MAX: Final = 300
"""A function whose common path is one statement is as long as that statement."""

CREATED: Final = re.compile(r"^CREATE (?:OR REPLACE )?FUNCTION ff\.([a-z_0-9]+)\s*\(", re.MULTILINE)
REFUSES: Final = re.compile(r"^-- Refuses: (.*)$", re.MULTILINE)
ASSIGNED: Final = re.compile(r"\bcode\s*:=\s*'([a-z_]+)'")
TYPED_VECTOR: Final = re.compile(r"\bvector\s*(?:=|<>|IN|NOT IN)\s*\(?\s*-?[0-9]")
UNQUALIFIED: Final = re.compile(
    r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(?:ONLY\s+)?(execution|ready|agenda|definition|result|attempt|event|stream|frame|"
    r"idempotency|lane|route|worker|kind_default|store)\b(?!\s*\()",
    re.IGNORECASE,
)
COMMENT: Final = re.compile(r"--[^\n]*")


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _operation(path: Path) -> str:
    return f"{path.parent.name}.{path.stem}"


@pytest.mark.parametrize("path", FUNCTIONS, ids=relative)
def test_a_file_says_what_it_is_for(path: Path) -> None:
    """A file of functions begins with a comment."""
    assert re.match(r"-- \S", _text(path)), f"{relative(path)} begins with no comment"


@pytest.mark.parametrize("path", OF_CONCEPTS, ids=relative)
def test_a_function_is_where_its_name_says(path: Path) -> None:
    """`<concept>/<verb>.sql` holds `ff.<concept>_<verb>`, once; whatever else is in it is its own."""
    names = CREATED.findall(_text(path))
    assert names.count(f"{path.parent.name}_{path.stem}") == 1
    others = [name for name in names if name != f"{path.parent.name}_{path.stem}"]
    assert all(name.startswith("_") for name in others), others


@pytest.mark.parametrize("path", [path for path in FUNCTIONS if path.parent.name == SHARED], ids=relative)
def test_shared_functions_are_not_called_from_outside(path: Path) -> None:
    """What several functions share begins with an underscore."""
    assert all(name.startswith("_") for name in CREATED.findall(_text(path)))


@pytest.mark.parametrize("path", OF_CONCEPTS, ids=relative)
def test_refusals_exist_and_are_declared(path: Path) -> None:
    """Codes in the header and in the body exist; those of an operation are declared by it, or for its adapter alone."""
    text = _text(path)
    header = REFUSES.search(text)
    said = set(re.findall(r"[a-z]+_[a-z_]+|\bcontended\b", header[1])) if header is not None else set[str]()
    assigned = set(ASSIGNED.findall(text))
    known = set(BY_CODE) | AGAIN
    assert said | assigned <= known | {"execution_create"}, (said | assigned) - known
    operation = OPERATIONS.get(_operation(path))
    if operation is not None:
        declared = {refused.code for refused in operation.refuses} | AGAIN
        assert said | assigned <= declared, (said | assigned) - declared
    assert assigned <= said, f"not in the header: {assigned - said}"


@pytest.mark.parametrize("path", STATEMENTS, ids=relative)
def test_constants_are_known(path: Path) -> None:
    """Every `@NAME@` stands for something."""
    constants.fill(_text(path))


@pytest.mark.parametrize("path", STATEMENTS, ids=relative)
def test_state_vectors_are_never_typed(path: Path) -> None:
    """No number of a state vector is written by hand."""
    typed = TYPED_VECTOR.findall(COMMENT.sub("", _text(path)))
    assert not typed, typed


@pytest.mark.parametrize("path", FUNCTIONS, ids=relative)
def test_functions_build_no_statements(path: Path) -> None:
    """A function executes what is written in it, never text that it has put together."""
    assert not re.search(r"\bEXECUTE\b", COMMENT.sub("", _text(path)))


@pytest.mark.parametrize("path", FUNCTIONS, ids=relative)
def test_functions_are_short(path: Path) -> None:
    """A function has at most 300 lines."""
    parts = re.split(r"(?m)^(?=CREATE (?:OR REPLACE )?FUNCTION )", _text(path))
    longest = max(part.count("\n") for part in parts)
    assert longest <= FUNCTION_LINES_MAX, f"{relative(path)}: a function of {longest} lines"


@pytest.mark.parametrize("path", STATEMENTS, ids=relative)
def test_tables_are_named_with_their_schema(path: Path) -> None:
    """No statement relies on a search path: every table of the store is written `ff.<table>`."""
    text = COMMENT.sub("", _text(path))
    ctes = set(
        re.findall(
            r"\b([a-z_]+)(?:\s*\([a-z_, ]*\))?\s+AS\s+(?:MATERIALIZED\s*|NOT MATERIALIZED\s*)?\(", text
        )
    )
    found = {name for name in UNQUALIFIED.findall(text) if name not in ctes}
    assert not found, found
