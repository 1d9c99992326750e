"""What is counted in one file, and how counts are added up: shared by the tasks and the plain loop."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

LONG_FUNCTION_LINES = 80
MANY_ARGUMENTS = 10
DEEP_NESTING = 6
FAILS_FIRST_ONE_IN = 25

PARSE_TRIES = 20
"""CPython 3.11 counts the depth of syntax trees per interpreter: when another thread parses in between, as the
formatting of a traceback does, it raises SystemError, and trying again helps."""

_PARSING = threading.Lock()
"""One thread at a time parses, also because warning filters are global."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something worth telling about a file."""

    line: int
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one file holds, or many together; `parsed` and `unparsable` count files."""

    parsed: int = 0
    unparsable: int = 0
    bytes: int = 0
    lines: int = 0
    blank: int = 0
    comments: int = 0
    functions: int = 0
    classes: int = 0
    imports: int = 0
    longest_function: int = 0
    findings: dict[str, int] = field(default_factory=dict[str, int])

    def __add__(self, other: Counts) -> Counts:
        """Add up two censuses: counts are summed, the longest function is the longer one."""
        summed: dict[str, Any] = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(self)
            if each.name not in ("longest_function", "findings")
        }
        kinds = sorted(self.findings.keys() | other.findings.keys())
        return Counts(
            **summed,
            longest_function=max(self.longest_function, other.longest_function),
            findings={kind: self.findings.get(kind, 0) + other.findings.get(kind, 0) for kind in kinds},
        )


def add_up(all_counts: Iterable[Counts]) -> Counts:
    """Add up any number of censuses."""
    total = Counts()
    for counts in all_counts:
        total = total + counts
    return total


def differences(one: Counts, other: Counts) -> list[str]:
    """Say where two censuses differ."""
    left, right = asdict(one), asdict(other)
    return [f"{name}: {left[name]} and {right[name]}" for name in left if left[name] != right[name]]


def standard_library() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_files(root: Path, limit: int | None) -> list[str]:
    """List the Python files under a folder, relative to it, sorted; installed packages are left out."""
    skipped = {"site-packages", "dist-packages", "__pycache__", ".venv"}
    found = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if path.is_file() and not skipped.intersection(path.relative_to(root).parts)
    )
    return found if limit is None else found[:limit]


def fails_first(path: str) -> bool:
    """Say whether a file is among those whose first attempt fails on purpose; the same ones every time."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % FAILS_FIRST_ONE_IN == 0


class Census:
    """Counts one file. Iterating over `findings` does the work; `counts` is complete afterwards."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._counts: dict[str, Any] = {}
        self._kinds: dict[str, int] = {}

    @property
    def counts(self) -> Counts:
        """What was counted so far."""
        return Counts(**self._counts, findings=dict(sorted(self._kinds.items())))

    def findings(self) -> Iterator[Finding]:
        """Count the file, yielding what is worth telling as it is come upon."""
        for finding in self._look():
            self._kinds[finding.kind] = self._kinds.get(finding.kind, 0) + 1
            yield finding

    def _look(self) -> Iterator[Finding]:
        lines = self._source.splitlines()
        stripped = [line.strip() for line in lines]
        self._counts = {
            "bytes": len(self._source),
            "lines": len(lines),
            "blank": sum(not line for line in stripped),
            "comments": sum(line.startswith(b"#") for line in stripped),
        }
        try:
            tree = _parse(self._source)
        except (SyntaxError, ValueError, RecursionError, UnicodeDecodeError) as error:
            self._counts["unparsable"] = 1
            yield Finding(
                line=getattr(error, "lineno", None) or 1, kind="unparsable", text=type(error).__name__
            )
            return
        self._counts["parsed"] = 1
        yield from self._walk(tree)

    def _walk(self, tree: ast.Module) -> Iterator[Finding]:
        functions = classes = imports = longest = 0
        pending: list[tuple[ast.AST, int]] = [(tree, 0)]
        while pending:
            node, depth = pending.pop()
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    functions += 1
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    longest = max(longest, length)
                    yield from _about_function(node, length)
                case ast.ClassDef():
                    classes += 1
                case ast.Import() | ast.ImportFrom():
                    imports += 1
                case ast.ExceptHandler() if node.type is None:
                    yield Finding(line=node.lineno, kind="bare_except", text="catches everything")
                case ast.For() | ast.While() | ast.If() | ast.With() | ast.Try():
                    depth += 1
                    if depth == DEEP_NESTING:
                        yield Finding(line=node.lineno, kind="deep_nesting", text=f"{depth} levels deep")
                case _:
                    pass
            pending.extend((child, depth) for child in ast.iter_child_nodes(node))
        self._counts |= {
            "functions": functions,
            "classes": classes,
            "imports": imports,
            "longest_function": longest,
        }


def _about_function(node: ast.FunctionDef | ast.AsyncFunctionDef, length: int) -> Iterator[Finding]:
    if length > LONG_FUNCTION_LINES:
        yield Finding(line=node.lineno, kind="long_function", text=f"{node.name}: {length} lines")
    arguments = node.args
    count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
    if count > MANY_ARGUMENTS:
        yield Finding(line=node.lineno, kind="many_arguments", text=f"{node.name}: {count} arguments")


def _parse(source: bytes) -> ast.Module:
    # Old code warns about escapes and comparisons; that is its own affair.
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(PARSE_TRIES - 1):
            try:
                return ast.parse(source)
            except SystemError:
                continue
        return ast.parse(source)


def count_file(root: Path, path: str) -> Counts:
    """Count one file the plain way."""
    census = Census((root / path).read_bytes())
    for _ in census.findings():
        pass
    return census.counts


def plain_loop(root: Path, paths: Iterable[str]) -> Counts:
    """Do the whole job the plain way: one process, one file after the other."""
    return add_up(count_file(root, path) for path in paths)


__all__ = [
    "Census",
    "Counts",
    "Finding",
    "add_up",
    "count_file",
    "differences",
    "fails_first",
    "plain_loop",
    "source_files",
    "standard_library",
]
