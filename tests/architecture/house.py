"""What the architecture tests share: where things are, and reading source without importing it.

Nothing here asserts. Paths are relative to the checkout, so that a failure names a file one can open.
"""

from __future__ import annotations

import ast
import os
import subprocess
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
SRC: Final = ROOT / "src" / "flowfabric"
BACKENDS: Final = SRC / "backends"
TESTS: Final = ROOT / "tests"

_GENERATED: Final = frozenset(
    {".git", ".venv", ".hypothesis", ".pytest_cache", ".ruff_cache", "__pycache__", "build", "dist"}
)


def warn(message: str) -> None:
    """Report something a person should judge, without failing."""
    warnings.warn(f"house: {message}", UserWarning, stacklevel=2)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def files(top: Path, *suffixes: str) -> list[Path]:
    """List the files under `top` with one of these suffixes, sorted; none if `top` does not exist."""
    return sorted(
        path
        for path in top.rglob("*")
        if path.suffix in suffixes
        and path.is_file()
        and not _GENERATED.intersection(path.relative_to(ROOT).parts)
    )


@cache
def repository_files() -> tuple[Path, ...]:
    """List what is, or is about to be, under version control; outside a checkout everything not generated."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return tuple(
            path
            for path in sorted(ROOT.rglob("*"))
            if path.is_file() and not _GENERATED.intersection(path.relative_to(ROOT).parts)
        )
    names = {os.fsdecode(name) for name in listing.split(b"\0") if name}
    return tuple(path for path in (ROOT / name for name in sorted(names)) if path.is_file())


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=relative(path))


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (dotted module, line) of every import; `from a import b` yields `a.b`, relative ones are resolved."""
    package = path.relative_to(ROOT / "src").with_suffix("").parts[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, (node.module,))))
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def function_names(body: list[ast.stmt]) -> set[str]:
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def method_names(path: Path) -> set[str]:
    """Name every method of every class at the top level of a file; none if there is no such file."""
    if not path.is_file():
        return set()
    classes = [node for node in tree(path).body if isinstance(node, ast.ClassDef)]
    return set().union(*(function_names(node.body) for node in classes))


def dotted(node: ast.expr) -> str:
    """Spell `a.b.c` as it is written; empty for anything that is not a plain dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""
