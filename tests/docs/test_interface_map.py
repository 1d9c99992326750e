"""Every row of the interface map resolves to something that exists."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from flowfabric.contract.operations import OPERATIONS
from tests.docs.pages import generator

ROWS: list[Any] = generator().map_rows()

PUBLISHED = {
    "Engine interface": 73,
    "Worker SDK": 53,
    "Server": 31,
    "Contract records": 111,
    "Contract unions and enumerations": 77,
    "Contract constants": 6,
    "REST": 29,
    "Environment": 35,
    "Background scanners": 18,
    "Commands": 2,
    "Parts": 31,
}
"""How many names the published interface has of each sort."""


def test_nothing_published_is_left_out() -> None:
    """Each section has as many rows as the published interface has names, and no name twice."""
    assert Counter(row.section for row in ROWS) == PUBLISHED
    names = Counter((row.section, row.published) for row in ROWS)
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("section", PUBLISHED)
def test_rows_resolve(section: str) -> None:
    """What a row names exists: an operation, a record, a route, a setting, a command, a file, or a plan."""
    wrong = [
        f"{row.published}: {why}"
        for row in ROWS
        if row.section == section and (why := generator().unresolved(row)) is not None
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_rows_that_lead_nowhere() -> None:
    """A row that names something missing is noticed, whatever it claims to be."""
    row = ROWS[0]._replace
    for kind, here in (
        ("operation", "`execution.explode`"),
        ("record", "`contract.execution.ExecutionNothing`"),
        ("module", "`nowhere`"),
        ("route", "`GET /v2`"),
        ("setting", "`FF_NOTHING`"),
        ("file", "`nothing.txt`"),
        ("planned", "teleportation"),
        ("replaced", "no"),
        ("guess", "`x`"),
    ):
        assert generator().unresolved(row(kind=kind, here=here)) is not None, kind


def test_every_operation_is_on_the_map_or_new() -> None:
    """Operations that the map does not mention are those the published interface has no name for."""
    mentioned = {name for row in ROWS for name in OPERATIONS if f"`{name}`" in row.here}
    assert OPERATIONS.keys() - mentioned == {
        "execution.create_many", "execution.set_tags", "execution.block", "lease.release", "lease.list_expired",
        "lease.history", "attempt.describe", "attempt.list", "worker.register", "worker.heartbeat",
        "worker.mark_dead", "worker.list", "lane.set_state",
    }  # fmt: skip
