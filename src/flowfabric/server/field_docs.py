"""The sentences under the fields of records and the members of enumerations, read from their source.

Python keeps no docstring for a field, so it is taken from the text of its module. Where there is no source (a
byte-compiled install), fields simply have no description.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Mapping
from functools import cache


@cache
def field_docs(kind: type) -> Mapping[str, str]:
    """Return what is said about the fields of a class, by name; inherited ones included."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if part.__module__.startswith("flowfabric."):
            found.update(_module_docs(part.__module__).get(part.__qualname__, {}))
    return found


def class_doc(kind: type) -> str:
    """Return a class's docstring without its indentation; empty when it has none."""
    return inspect.cleandoc(kind.__doc__) if kind.__doc__ else ""


@cache
def _module_docs(name: str) -> Mapping[str, Mapping[str, str]]:
    try:
        source = inspect.getsource(importlib.import_module(name))
    except OSError:
        return {}
    return {node.name: _class_docs(node) for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _class_docs(node: ast.ClassDef) -> dict[str, str]:
    found: dict[str, str] = {}
    for statement, following in zip(node.body, node.body[1:], strict=False):
        target: ast.expr | None = None
        if isinstance(statement, ast.AnnAssign):
            target = statement.target
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        if (
            isinstance(target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[target.id] = inspect.cleandoc(following.value.value)
    return found
