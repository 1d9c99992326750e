"""Files that are part of the package: named SQL statements and whatever else a backend brings along.

A file of statements holds blocks headed `-- name: <name>`; a block ends where the next one begins. Statements are
constants: nothing is ever inserted into their text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

_HEADING: Final = re.compile(r"^-- name: ([a-z][a-z0-9_]*)[ \t]*$", re.MULTILINE)
_COMMENT: Final = re.compile(r"--[^\n]*")


def text(package: str, path: str) -> str:
    """Read a text file of a package, by its path below the package."""
    return resources.files(package).joinpath(path).read_text(encoding="utf-8")


def names(package: str, folder: str) -> tuple[str, ...]:
    """List the files in a folder of a package, in the order of their names."""
    return tuple(
        sorted(entry.name for entry in resources.files(package).joinpath(folder).iterdir() if entry.is_file())
    )


def parse(source: str) -> Mapping[str, str]:
    """Split a file of named statements; comments and line breaks are taken out of them."""
    parts = _HEADING.split(source)
    found: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        statement = " ".join(_COMMENT.sub("", body).split()).rstrip(";").rstrip()
        if name in found or not statement:
            raise ValueError(f"statement {name!r} is there twice, or empty")
        found[name] = statement
    return MappingProxyType(found)


@cache
def named(package: str, path: str) -> Mapping[str, str]:
    """Return the named statements in a file of a package."""
    return parse(text(package, path))
