"""The page that lists the documentation leaves nothing out."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(
    path.relative_to(DOCS).as_posix()
    for folder in ("concepts", "decisions")
    for path in (DOCS / folder).iterdir()
)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_listed(page: str) -> None:
    """Each concept page and each decision is linked from the list, under the title it has."""
    listed = (DOCS / "README.md").read_text(encoding="utf-8")
    assert f"]({page})" in listed
    if page.startswith("decisions/"):
        number, title = (
            (DOCS / page).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").split(". ", 1)
        )
        assert f"{number}. [{title}]({page})" in listed
