"""Files and functions stay small, carry honest names, and hold nothing unfinished."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from tests.architecture.house import ROOT, SRC, TESTS, files, relative, repository_files, tree, warn

LINES_WARN: Final = 400
LINES_MAX: Final = 600
FUNCTION_LINES_WARN: Final = 70

UNFINISHED: Final = re.compile(
    r"\b(?:TODO|FIXME|XXX|raise NotImplementedError)\b|(?i:\bnot (?:yet )?implemented\b|\bnot supported yet\b)"
)
NAMELESS: Final = re.compile(r"_?(?:util|utils|common|misc|helper|helpers|stuff)")
REASON_TO_SLEEP: Final = re.compile(r"# sleeps: \S")
SLEEP_MAX_SECONDS: Final = 0.5

SOURCES: Final = files(SRC, ".py", ".lua", ".sql")
PYTHON_SOURCES: Final = files(SRC, ".py")
TEST_SOURCES: Final = files(TESTS, ".py")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_file_is_short(path: Path) -> None:
    """A source file has at most 600 lines; past 400 it is time to think again."""
    lines = path.read_text(encoding="utf-8").count("\n")
    if lines > LINES_WARN:
        warn(f"{relative(path)} has {lines} lines; think again at {LINES_WARN}")
    assert lines <= LINES_MAX, f"{relative(path)} has {lines} lines, more than {LINES_MAX}: split it"


@pytest.mark.parametrize("path", PYTHON_SOURCES, ids=relative)
def test_functions_are_short(path: Path) -> None:
    """A function longer than 70 lines is reported; judgement decides."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_WARN:
                warn(f"{relative(path)}:{node.lineno}: {node.name} has {lines} lines")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_unfinished(path: Path) -> None:
    """The product contains no placeholder and no promise to finish something later."""
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert not found, "\n".join(found)


def test_files_are_named_by_what_they_hold() -> None:
    """No file or folder of code is called utils, common, misc or helpers."""
    code = [path for path in repository_files() if path.suffix in {".py", ".lua", ".sql"}]
    nameless = [
        relative(path)
        for path in code
        if any(NAMELESS.fullmatch(part) for part in path.relative_to(ROOT).with_suffix("").parts)
    ]
    assert not nameless, f"name these by what they hold: {nameless}"


@pytest.mark.parametrize("path", TEST_SOURCES, ids=relative)
def test_tests_own_their_time(path: Path) -> None:
    """A test does not sleep on a real clock, except where a comment `# sleeps: <reason>` on the line says why."""
    lines = path.read_text(encoding="utf-8").splitlines()
    names = _sleep_names(tree(path))
    found = [
        f"{relative(path)}:{node.lineno}: {lines[node.lineno - 1].strip()}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and _sleeps(node, names)
        and not REASON_TO_SLEEP.search(lines[node.lineno - 1])
    ]
    assert not found, "\n".join(found)


def _sleep_names(module: ast.Module) -> dict[str, str]:
    """Map each spelling in this file (`sleep`, `t.sleep`) to the function it means (`time.sleep`)."""
    names = {"time.sleep": "time.sleep", "asyncio.sleep": "asyncio.sleep"}
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "asyncio"}:
            for alias in node.names:
                if alias.name == "sleep":
                    names[alias.asname or alias.name] = f"{node.module}.sleep"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in {"time", "asyncio"} and alias.asname:
                    names[f"{alias.asname}.sleep"] = f"{alias.name}.sleep"
    return names


def _sleeps(call: ast.Call, names: dict[str, str]) -> bool:
    target = names.get(ast.unparse(call.func))
    if target == "time.sleep":
        return True
    if target != "asyncio.sleep" or not call.args:
        return False
    seconds = call.args[0]
    return (
        isinstance(seconds, ast.Constant)
        and isinstance(seconds.value, int | float)
        and seconds.value > SLEEP_MAX_SECONDS
    )
