"""The generated pages are current, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flowfabric.contract.errors import BY_CODE
from flowfabric.contract.operations import OPERATIONS
from tests.docs.pages import PAGES, ROOT, generator

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def test_generated_pages_are_current() -> None:
    """The pages that follow from the code are what the code says now: otherwise `make docs`."""
    stale = [
        path.relative_to(ROOT)
        for path, text in generator().pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, f"make docs: {stale}"


def test_every_code_and_operation_is_described() -> None:
    """Each error code and operation has its row, each operation has a sentence."""
    errors_page = generator().errors_page()
    operations_page = generator().operations_page()
    assert all(f"| `{code}` |" in errors_page for code in BY_CODE)
    assert all(f"### `{name}`" in operations_page for name in OPERATIONS)
    assert all(operation.summary.endswith(".") for operation in OPERATIONS.values())


def test_every_field_says_its_type() -> None:
    """No field of a command or record is described as something without a name."""
    fields = [line for line in generator().operations_page().splitlines() if line.startswith("| `")]
    assert not [line for line in fields if "<class" in line or "typing." in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file, and a heading of it if it names one."""
    broken: list[str] = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (heading and heading not in headings(file)):
            broken.append(target)
    assert not broken, broken


def headings(page: Path) -> set[str]:
    """Return the anchors of a page."""
    found: set[str] = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            words = line.lstrip("#").strip().lower()
            found.add(re.sub(r"[^a-z0-9_ -]", "", words).replace(" ", "-"))
    return found
