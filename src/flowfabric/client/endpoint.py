"""The server's address: which URLs are taken, and how a path is put behind one.

Credentials never travel in a URL: they would end up in logs, errors and process lists.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlsplit

import msgspec

from flowfabric.contract.errors import Misuse

DEFAULT_URL: Final = "http://127.0.0.1:9090"
SCHEMES: Final = ("http", "https")


class Endpoint(msgspec.Struct, frozen=True):
    """Where a server is: scheme, host and port, and a base path without a trailing slash."""

    base: str

    def url(self, path: str, query: str = "") -> str:
        """Put a path and a query, both percent-encoded, behind the base."""
        return f"{self.base}{path}?{query}" if query else self.base + path


def is_server_url(url: str) -> bool:
    """Say whether a URL names a server rather than a store."""
    return url.partition(":")[0].lower() in SCHEMES


def parse_endpoint(url: str) -> Endpoint:
    """Check a server's URL. A base path is allowed, a trailing slash is dropped.

    Raises: `Misuse` for anything but http or https, for credentials, a query or a fragment in the URL.
    """
    try:
        if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
            raise ValueError("it has characters outside printable ASCII")
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            # The URL is not repeated: it holds a secret.
            raise Misuse("put no user or password into the server's URL: pass token=...")
        if parts.scheme.lower() not in SCHEMES:
            raise ValueError(f"its scheme is not {' or '.join(SCHEMES)}")
        if not parts.hostname:
            raise ValueError("it names no host")
        if parts.query or parts.fragment or url.endswith(("?", "#")):
            raise ValueError("a query or fragment has no place in it")
        _ = parts.port
    except ValueError as error:
        raise Misuse(f"{url!r} is not a server's URL: {error}; write for example {DEFAULT_URL}") from error
    path = parts.path.rstrip("/")
    return Endpoint(f"{parts.scheme.lower()}://{parts.netloc}{quote(path, safe='/%:@!$&()*+,;=~-._')}")
