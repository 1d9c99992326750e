"""Named statements and numbered migrations, which every SQL store shares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flowfabric.backends import assets, migrations
from flowfabric.contract.errors import Corrupt, Misuse

PACKAGE = "flowfabric.backends.sqlite"


def test_statements_have_names() -> None:
    """A file of statements is split at its headings; comments and line breaks go."""
    source = "-- About it.\n\n-- name: one\nSELECT 1; -- because\n\n-- name: two\nSELECT\n    2;\n"
    assert dict(assets.parse(source)) == {"one": "SELECT 1", "two": "SELECT 2"}


@pytest.mark.parametrize("source", ["-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;", "-- name: a\n;\n"])
def test_a_name_means_one_statement(source: str) -> None:
    """A name given twice, or to nothing, is an error of ours."""
    with pytest.raises(ValueError, match="twice, or empty"):
        assets.parse(source)


def test_every_statement_is_used() -> None:
    """Each named statement of a store is named in the module that loads its file."""
    root = Path(assets.__file__).parent
    for path in sorted(root.glob("*/sql/*.sql")):
        package = ".".join(("flowfabric.backends", path.parents[1].name))
        users = [
            module.read_text()
            for module in path.parents[1].glob("*.py")
            if f"sql/{path.name}" in module.read_text()
        ]
        used = set(re.findall(r'"([a-z0-9_]+)"', "\n".join(users)))
        unused = {name for name in assets.named(package, f"sql/{path.name}") if name not in used} - _indirect(
            path.name
        )
        assert not unused, f"{path.name}: {sorted(unused)}"


def _indirect(name: str) -> set[str]:
    """Statements whose names a module builds."""
    tables = ("definitions", "results", "attempts", "events", "streams", "frames")
    return {f"orphan_{table}" for table in tables} if name == "fsck.sql" else set()


def test_migrations_are_applied_in_order() -> None:
    """What is pending is what follows the applied ones; newer or different ones are refused."""
    known = migrations.read(PACKAGE, "sql/migrations")
    first = known[0]
    assert migrations.pending(known, {}) == known
    assert migrations.pending(known, {step.number: step.checksum for step in known}) == ()
    with pytest.raises(Misuse, match="newer FlowFabric"):
        migrations.pending(known, {step.number: step.checksum for step in known} | {len(known) + 1: "x"})
    with pytest.raises(Corrupt, match=f"migration {first.number}"):
        migrations.pending(known, {first.number: "other"})
