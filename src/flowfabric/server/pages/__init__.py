"""The static pages: files of this package, read once, served without a token because they hold no data."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'",
    ),
    (b"cache-control", b"no-cache"),
)


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    found: dict[str, tuple[bytes, str]] = {}
    for file in resources.files(__name__).iterdir():
        suffix = file.name[file.name.rfind(".") :] if "." in file.name else ""
        if suffix in CONTENT_TYPES:
            found[file.name] = (file.read_bytes(), CONTENT_TYPES[suffix])
    return found


def read(name: str) -> tuple[bytes, str] | None:
    """Return a page's bytes and media type, or None when there is no such page."""
    return _files().get(name)
