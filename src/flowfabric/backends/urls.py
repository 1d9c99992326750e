"""What can be told from a store's URL without its driver: what kind of store it names, and what may be shown of it.

Whether a URL makes sense is the driver's business. What must stay true: `public_url` shows neither user nor password,
whatever else is wrong with the URL.
"""

from __future__ import annotations

from typing import Final

SQLITE: Final = "sqlite"
VALKEY: Final = "valkey"
POSTGRES: Final = "postgres"
SCHEMES: Final = {
    "sqlite": SQLITE,
    "valkey": VALKEY,
    "valkeys": VALKEY,
    "valkey+unix": VALKEY,
    "valkey+cluster": VALKEY,
    "valkeys+cluster": VALKEY,
    "postgresql": POSTGRES,
    "postgres": POSTGRES,
}
"""Every scheme that `connect` takes, and the kind of store it names."""
_IN_QUERY: Final = "valkey+unix"


def kind_of(url: str) -> str | None:
    """Return the kind of store a URL names; None when it names none."""
    scheme, separator, _ = url.partition("://")
    return SCHEMES.get(scheme) if separator else None


def has_credentials(url: str) -> bool:
    """Say whether a URL carries a user or a password."""
    kind = kind_of(url)
    if kind not in (VALKEY, POSTGRES):
        return False
    scheme, _, rest = url.partition("://")
    if scheme != _IN_QUERY and "@" in rest:
        return True
    if kind == VALKEY and scheme != _IN_QUERY:
        return False
    return any(part.partition("=")[0] in ("user", "password") for part in rest.partition("?")[2].split("&"))


def public_url(url: str) -> str:
    """Return a URL without user, password and options: fit for logs, messages and process lists."""
    if kind_of(url) == SQLITE:
        return url
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    if scheme != _IN_QUERY:
        place, _, options = rest.partition("?")
        if kind_of(url) == POSTGRES and "@" in options:
            # Either an option holds it, or a password that is not encoded as it should be: what is before it may be
            # as secret as what is behind it.
            return f"{scheme}://" if "@" in place or ":" in place else f"{scheme}://{place}"
        rest = rest.rpartition("@")[2]
    return f"{scheme}://{rest.partition('?')[0]}"


def with_credentials(url: str, user: str, password: str) -> str:
    """Return a URL that carries user and password, both percent-encoded already; the user may be empty."""
    scheme, _, rest = url.partition("://")
    if scheme == _IN_QUERY:
        return with_option(with_option(url, "user", user) if user else url, "password", password)
    return f"{scheme}://{user}:{password}@{rest}"


def with_option(url: str, name: str, value: str) -> str:
    """Return a URL with one more option, percent-encoded already."""
    return f"{url}{'&' if '?' in url else '?'}{name}={value}"
