"""Which store a server is told to open: one URL, made of FF_STORE or of the variables that name its parts.

`--store` beats them all, but for credentials, which a command line must not carry: user and password of Valkey are
added to whatever URL has none. What must stay true: a variable that would not act is refused by name, and nothing said
about a password quotes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from flowfabric.backends.urls import (
    SQLITE,
    VALKEY,
    has_credentials,
    kind_of,
    public_url,
    with_credentials,
    with_option,
)
from flowfabric.contract import ids
from flowfabric.contract.states import Durability
from flowfabric.server.setting_values import choice, integer, misuse, read_host, read_secret_file

STORE_DEFAULT: Final = "sqlite:///.flowfabric/flowfabric.db"
HOST_DEFAULT: Final = "localhost"
PORT_DEFAULT: Final = 6_379
DATABASE_MAX: Final = 65_535
HOSTS_MAX: Final = 100
SWITCH: Final = {"on": True, "off": False, "true": True, "false": False, "1": True, "0": False}
_WHERE: Final = ("FF_HOST", "FF_PORT", "FF_TLS", "FF_TLS_CA", "FF_CLUSTER", "FF_DATABASE")
_WHO: Final = ("FF_USER", "FF_PASSWORD", "FF_PASSWORD_FILE")
_FORMS: Final = "write sqlite:///file.db, valkey://host:port/0 or valkey+cluster://host:port,host:port"

Said = tuple[str, str]
"""Where something was said, and the text."""
Find = Callable[[str], Said | None]
"""Returns a variable and its text, None when it is not set."""


def read_store(override: Said | None, variable: Find) -> str:
    """Return the store's URL.

    Raises: `Misuse`, naming the variable or override.
    """
    if override is not None:
        url = _checked(*override)
        return _with_credentials(url, variable) if kind_of(url) == VALKEY else url
    said, sqlite_path = variable("FF_STORE"), variable("FF_SQLITE_PATH")
    kind = _kind(variable("FF_BACKEND"))
    parts = [name for name in _WHERE if variable(name) is not None]
    if said is not None:
        for name in ("FF_SQLITE_PATH", *parts):
            if variable(name) is not None:
                raise misuse("FF_STORE", f"and {name} both name a store", "unset one of the two")
        url = _checked(*said)
        if kind is not None and kind_of(url) != kind:
            raise misuse("FF_STORE", f"does not agree with FF_BACKEND={kind}", "unset FF_BACKEND")
    elif kind == VALKEY:
        if sqlite_path is not None:
            raise misuse("FF_SQLITE_PATH", "names a file, but FF_BACKEND=valkey", "unset one of the two")
        url = _from_parts(variable)
    else:
        url = _sqlite(sqlite_path)
    if kind_of(url) == VALKEY:
        return _with_credentials(url, variable)
    for name in (*parts, *_WHO):
        if variable(name) is not None:
            raise misuse(name, "is Valkey's, and the store is not", f"set FF_BACKEND=valkey, or unset {name}")
    return url


def asking(url: str, required: Durability | None) -> str:
    """Return the URL of a store whose acknowledgements wait for a replica, if that is what must be promised."""
    if (
        required is not Durability.REPLICATED
        or kind_of(url) != VALKEY
        or "durability=" in url.partition("?")[2]
    ):
        return url
    return with_option(url, "durability", Durability.REPLICATED.value)


def _checked(where: str, text: str) -> str:
    scheme, separator, _ = text.partition("://")
    if not separator:
        raise misuse(where, f"is not a URL: {ids.clip(text)!r}", _FORMS)
    if scheme in ("redis", "rediss"):
        raise misuse(where, "names a Redis, and FlowFabric runs on Valkey", "write valkey://host:port/0")
    if scheme in ("postgres", "postgresql"):
        raise misuse(where, f"names a {scheme}:// store, planned for a later version", _FORMS)
    return text


def _kind(said: Said | None) -> str | None:
    if said is None:
        return None
    where, text = said
    kind = text.lower()
    if kind == "postgres":
        raise misuse(where, "names postgres, planned for a later version", f"set {where} to sqlite or valkey")
    if kind not in (SQLITE, VALKEY):
        raise misuse(where, f"must be sqlite or valkey, not {ids.clip(text)!r}")
    return kind


def _sqlite(said: Said | None) -> str:
    if said is None:
        return STORE_DEFAULT
    name, text = said
    if "\x00" in text or text.endswith("/"):
        raise misuse(name, "names no file")
    return "sqlite:///" + quote(text, safe="/:")


# Valkey -----------------------------------------------------------------------------------------------------------


def _from_parts(variable: Find) -> str:
    """Make a URL of host, port, TLS, cluster and database."""

    def switch(name: str) -> bool:
        said = variable(name)
        return said is not None and choice(tuple(SWITCH), SWITCH.__getitem__)(*said)

    is_cluster, is_tls = switch("FF_CLUSTER"), switch("FF_TLS")
    said = variable("FF_PORT")
    port = PORT_DEFAULT if said is None else integer(1, 65_535)(*said)
    where, text = variable("FF_HOST") or ("FF_HOST", HOST_DEFAULT)
    hosts = [read_host(where, host.strip().removeprefix("[").removesuffix("]")) for host in text.split(",")]
    if len(hosts) > (HOSTS_MAX if is_cluster else 1):
        raise misuse(where, "names several hosts", "one is enough, or set FF_CLUSTER=true if it is a cluster")
    seeds = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)
    scheme = ("valkeys" if is_tls else "valkey") + ("+cluster" if is_cluster else "")
    said = variable("FF_DATABASE")
    database = 0 if said is None else integer(0, DATABASE_MAX)(*said)
    if is_cluster and database:
        raise misuse("FF_DATABASE", "is not 0, and a cluster has no other", "unset FF_DATABASE")
    url = f"{scheme}://{seeds}" + ("" if is_cluster else f"/{database}")
    authority = variable("FF_TLS_CA")
    if authority is None:
        return url
    if not is_tls:
        raise misuse("FF_TLS_CA", "is set, but FF_TLS is not", "set FF_TLS=true, or unset FF_TLS_CA")
    return with_option(url, "ca", quote(authority[1], safe="/"))


def _with_credentials(url: str, variable: Find) -> str:
    user, password, file = (variable(name) for name in _WHO)
    given = user or password or file
    if given is None:
        return url
    if has_credentials(url):
        raise misuse(
            given[0], f"and the store's URL ({public_url(url)}) both say who asks", f"unset {given[0]}"
        )
    if password is not None and file is not None:
        raise misuse("FF_PASSWORD", "and FF_PASSWORD_FILE both give the password", "unset one of the two")
    if file is not None:
        where, path = file
        secret = read_secret_file(where, Path(path)).rstrip("\r\n")
        if not secret or "\n" in secret:
            raise misuse(where, f"must name a file with one line, the password: {path}")
    elif password is not None:
        secret = password[1]
    else:
        raise misuse("FF_USER", "needs a password", "set FF_PASSWORD or FF_PASSWORD_FILE")
    return with_credentials(url, quote(user[1], safe="") if user is not None else "", quote(secret, safe=""))
