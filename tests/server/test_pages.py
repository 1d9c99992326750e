"""The documentation page: it is served without a token, asks nobody else for anything, and runs nothing foreign."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from flowfabric.server import pages
from tests.server.talking import Site

FILES = {
    file.name: file.read_text(encoding="utf-8")
    for file in resources.files(pages).iterdir()
    if file.name.endswith((".html", ".css", ".js"))
}
ELSEWHERE = re.compile(r"(?:https?:|[\"'(])//[a-z0-9]|\burl\(|@import")


async def test_page(guarded: Site) -> None:
    """The page and its parts are served with their media types, without a token."""
    guarded.headers.clear()
    page = await guarded.get("/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    parts = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.body.decode())
    assert parts
    types = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
    for part in parts:
        reply = await guarded.get(f"/{part}")
        assert (reply.status, reply.headers["content-type"]) == (200, types[part.rpartition(".")[2]])


async def test_policy(site: Site) -> None:
    """The browser is told to run only what this server serves, and to let nobody frame the page."""
    policy = (await site.get("/docs")).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy


@pytest.mark.parametrize("name", ["__init__.py", "%2e%2e%2fapp.py", "docs.map", "docs.js/", ""])
async def test_nothing_else(site: Site, name: str) -> None:
    """Only the page's own files are served."""
    assert (await site.get(f"/docs/{name}")).status == 404


@pytest.mark.parametrize("name", sorted(FILES))
def test_offline(name: str) -> None:
    """No file of the page names another host."""
    assert not ELSEWHERE.findall(FILES[name])


def test_nothing_inline() -> None:
    """The page has no script or style of its own, which the policy would refuse."""
    text = FILES["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son[a-z]+=|\sstyle=", text)


def test_text_stays_text() -> None:
    """What the document says is never parsed as markup."""
    for name, text in FILES.items():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        ), name


def test_imports_are_there() -> None:
    """Every module that a script imports is one of the page's files."""
    for name, text in FILES.items():
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in FILES, (name, imported)
